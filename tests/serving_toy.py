"""Small SavedModels and clients for the tests of the local server."""

import contextlib
import http.client
import json
import os
import pathlib
import threading
import time

import grpc
import tensorflow as tf
from tensorflow.python.framework import config as tf_config
from tensorflow_serving.apis import (
    model_service_pb2_grpc,
    predict_pb2,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
)
from tensorflow_serving.config import model_server_config_pb2

from export.serving.core import Options
from export.serving.server import Server, running

NAME = "toy"


class Toy(tf.Module):
    """Doubles numbers, names its version, and waits."""

    def __init__(self, version: int):
        super().__init__()
        self.version = version

    @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float32, name="x")])
    def double(self, x):
        return {"double": 2 * x, "version": tf.fill(tf.shape(x)[:1], self.version)}

    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.string, name="text"),
            tf.TensorSpec([None, 1], tf.int32, name="number"),
        ]
    )
    def mixed(self, text, number):
        return {
            "text": text,
            "text_bytes": text,
            "even": tf.equal(number % 2, 0),
            "square": number * number,
        }

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float64, name="seconds")])
    def wait(self, seconds):
        """Runs as long as it is told to: of several, the longest."""
        end = tf.timestamp() + tf.reduce_max(seconds)
        turns = tf.while_loop(lambda i: tf.timestamp() < end, lambda i: [i + 1], [0])
        with tf.control_dependencies(turns):
            return {"waited": tf.identity(seconds)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int32, name="x")])
    def scalar(self, x):
        return {"sum": tf.reduce_sum(x), "x": x}


def save(root: pathlib.Path, version: int, warm_up: list | None = None) -> pathlib.Path:
    """Writes a version as the exporter does: elsewhere, and renamed into place."""
    toy = Toy(version)
    temporary = root / f".{version}"
    signatures = {"serving_default": toy.double} | {
        name: getattr(toy, name) for name in ("mixed", "wait", "scalar")
    }
    tf.saved_model.save(toy, str(temporary), signatures=signatures)
    if warm_up is not None:
        (temporary / "assets.extra").mkdir()
        with tf.io.TFRecordWriter(
            str(temporary / "assets.extra/tf_serving_warmup_requests")
        ) as writer:
            for request in warm_up:
                log = prediction_log_pb2.PredictionLog()
                log.predict_log.request.CopyFrom(request)
                writer.write(log.SerializeToString())
    target = root / str(version)
    os.rename(temporary, target)
    return target


def model_config(root, name: str = NAME, **fields):
    return model_server_config_pb2.ModelConfig(name=name, base_path=str(root), **fields)


def predict_request(signature: str = "", model: str = NAME, **inputs):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = model
    request.model_spec.signature_name = signature
    for name, value in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    return request


class Client:
    """Both protocols of a server."""

    def __init__(self, server: Server):
        self.address = f"127.0.0.1:{server.rest_api_port}"
        self._channel = grpc.insecure_channel(
            f"127.0.0.1:{server.port}", [("grpc.max_send_message_length", -1)]
        )
        self.prediction = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self.model_service = model_service_pb2_grpc.ModelServiceStub(self._channel)

    def rest(self, method: str, path: str, body=None, headers=None):
        """(status, decoded body) of one request."""
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        connection = http.client.HTTPConnection(self.address, timeout=60)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            raw = response.read()
        finally:
            connection.close()
        is_json = response.headers.get_content_type() == "application/json"
        return response.status, json.loads(raw) if is_json else raw.decode()

    def predict(self, body, path: str = f"/v1/models/{NAME}:predict"):
        return self.rest("POST", path, body)

    @contextlib.contextmanager
    def unsent_predict(self, timeout: float):
        """A gRPC call of Predict whose one request is not sent until the end of the context."""
        end = threading.Event()

        def requests():
            end.wait(timeout)
            yield predict_request(x=[[1.0, 2.0]])

        method = self._channel.stream_unary(
            "/tensorflow.serving.PredictionService/Predict",
            predict_pb2.PredictRequest.SerializeToString,
            predict_pb2.PredictResponse.FromString,
        )
        try:
            yield method.future(requests(), timeout=timeout)
        finally:
            end.set()

    def close(self) -> None:
        self._channel.close()


@contextlib.contextmanager
def serving(root, name: str = NAME, config=None, **options):
    """(Server, Client) with the versions under `root`, ready; on free ports."""
    # Training in the same process leaves it on, and then `Toy.wait` cannot read the clock.
    tf_config.disable_op_determinism()
    defaults = {"port": 0, "rest_api_port": 0, "file_system_poll_wait_seconds": 0.05}
    server = Server([config or model_config(root, name)], Options(**(defaults | options)))
    with running(server):
        client = Client(server)
        try:
            wait_until(lambda: server.core.ready)
            yield server, client
        finally:
            client.close()


def wait_until(condition, seconds: float = 60.0) -> None:
    """Waits for a condition, or fails."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
