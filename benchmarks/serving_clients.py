"""The local server in a process of its own, and clients of both its protocols."""

from __future__ import annotations

import base64
import http.client
import json
import os
import pathlib
import subprocess
import sys
import time

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from maskx_tf.errors import UserError

NAME = "maskx"
DEADLINE_S = 30.0


class Grpc:
    """A client of its own channel."""

    def __init__(self, server: LocalServer):
        options = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
        channel = grpc.insecure_channel(f"127.0.0.1:{server.port}", options)
        self._stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)

    def __call__(self, images: list[bytes]) -> dict[str, np.ndarray]:
        request = predict_pb2.PredictRequest()
        request.model_spec.name = NAME
        request.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto(images))
        outputs = self._stub.Predict(request, timeout=DEADLINE_S).outputs
        return {key: tf.make_ndarray(value) for key, value in outputs.items()}


class Rest:
    """A client with a connection that stays open."""

    def __init__(self, server: LocalServer):
        self._connection = http.client.HTTPConnection(
            "127.0.0.1", server.rest_api_port, timeout=DEADLINE_S
        )

    def __call__(self, images: list[bytes]) -> dict:
        body = {"inputs": [{"b64": base64.b64encode(image).decode()} for image in images]}
        path = f"/v1/models/{NAME}:predict"
        try:
            self._connection.request("POST", path, json.dumps(body))
            response = self._connection.getresponse()
            text = response.read()
        except (OSError, http.client.HTTPException):
            self._connection.close()
            raise
        if response.status != 200:
            raise RuntimeError(f"{response.status}: {text[:200]!r}")
        return json.loads(text)["outputs"]


class LocalServer:
    """The server in a process of its own."""

    def __init__(self, root: pathlib.Path, *arguments: str):
        command = [sys.executable, "-m", "export.serving.server", "--port=0", "--rest_api_port=0"]
        command += [f"--model_base_path={root}", f"--model_name={NAME}", *arguments]
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self._process.stdout
        ports = {}
        for line in self._process.stdout:
            words = line.split()
            ports[words[0]] = words[1]
            if words[0] == "gRPC":
                break
        else:
            raise UserError(f"the server did not start: {' '.join(command)}")
        self.port = int(ports["gRPC"].rsplit(":", 1)[1])
        self.rest_api_port = int(ports["REST"].split("/")[2].rsplit(":", 1)[1])

    def versions(self) -> dict[int, str]:
        """State by version."""
        connection = http.client.HTTPConnection("127.0.0.1", self.rest_api_port)
        connection.request("GET", f"/v1/models/{NAME}")
        found = json.load(connection.getresponse()).get("model_version_status", [])
        return {int(status["version"]): status["state"] for status in found}

    def wait_for(self, version: int, state: str) -> None:
        """Returns when a version has a state."""
        while self.versions().get(version) != state:
            time.sleep(0.1)

    def resident_bytes(self) -> int:
        pages = pathlib.Path(f"/proc/{self._process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()
