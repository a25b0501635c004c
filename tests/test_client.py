"""The client: its messages against the official ones, its answers, its errors, its command."""

import base64
import contextlib
import io
import json
import os
import pathlib
import subprocess
import sys
import threading
import time
from concurrent import futures

import grpc
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tensorflow_serving.apis import (
    get_model_status_pb2,
    predict_pb2,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
)

from export import predict_pb2 as ours
from export.client import Client, Detections, ImageError, ServerError, retries, tensors
from export.client import __main__ as client_command
from export.client.errors import UnavailableError
from export.serving import server as local_server
from maskx_tf.errors import UserError
from maskx_tf.inference.detector import load_export
from maskx_tf.ops import masks
from tests import harness, serving_toy, stub_server, tiny
from tests.stub_server import outputs, serve


class GrpcStub(prediction_service_pb2_grpc.PredictionServiceServicer):
    """The official service, with answers made by a test."""

    def __init__(self, model):
        self.model = model
        self.requests = []

    def Predict(self, request, context):
        self.requests.append(request)
        if request.model_spec.name != "maskx":
            context.abort(grpc.StatusCode.NOT_FOUND, "Servable not found")
        found = self.model(request.inputs["image_bytes"].string_val[0])
        if isinstance(found, tuple):
            context.abort(*found)
        response = predict_pb2.PredictResponse(model_spec=request.model_spec)
        for key, value in found.items():
            response.outputs[key].CopyFrom(tf.make_tensor_proto(value))
        return response


@contextlib.contextmanager
def serve_grpc(model):
    stub = GrpcStub(model)
    server = grpc.server(futures.ThreadPoolExecutor(4))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(stub, server)
    address = f"localhost:{server.add_insecure_port('localhost:0')}"
    server.start()
    try:
        yield stub, address
    finally:
        server.stop(None).wait()


def png(height=12, width=16, seed=0):
    return harness.encode_image(harness.random_image(height, width, seed), ".png")


def assert_same(found, wanted):
    assert found.image_size == wanted.image_size
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one.box_mask, other.box_mask)
        for field in ("class_name", "class_id", "score", "box_yxyx", "mask_seen", "image_size"):
            assert getattr(one, field) == getattr(other, field)


class TestMessages:
    """Wire compatibility with TensorFlow Serving's own classes."""

    @pytest.mark.parametrize(
        "official",
        [
            predict_pb2.PredictRequest,
            predict_pb2.PredictResponse,
            get_model_status_pb2.GetModelStatusRequest,
            get_model_status_pb2.GetModelStatusResponse,
            prediction_log_pb2.PredictionLog,
        ],
        ids=lambda official: official.__name__,
    )
    def test_the_fields_are_the_official_ones(self, official):
        def compare(ours, theirs):
            for field in ours.fields:
                other = theirs.fields_by_name[field.name]
                assert (field.number, field.type) == (other.number, other.type), field.full_name
                assert field.is_repeated == other.is_repeated, field.full_name
                if field.enum_type:
                    for value in field.enum_type.values:
                        assert value.number == other.enum_type.values_by_name[value.name].number
                elif field.message_type and field.message_type.file == ours.file:
                    compare(field.message_type, other.message_type)

        compare(getattr(ours, official.__name__).DESCRIPTOR, official.DESCRIPTOR)

    def test_a_request_has_the_official_bytes(self):
        made = []
        for kind in (ours.PredictRequest, predict_pb2.PredictRequest):
            request = kind()
            request.model_spec.name = "maskx"
            request.model_spec.signature_name = "serving_default"
            request.model_spec.version.value = 3
            request.output_filter.append("image_size")
            request.inputs["image_bytes"].dtype = ours.DT_STRING
            request.inputs["image_bytes"].tensor_shape.dim.add(size=1)
            request.inputs["image_bytes"].string_val.append(b"\xff\xd8 bytes")
            made.append(request.SerializeToString(deterministic=True))
        assert made[0] == made[1] and len(made[0]) > 40

    @pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "uint8", "int16", "int8"])
    @pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4), (0, 4)])
    @pytest.mark.parametrize("packed", [True, False])
    def test_numbers(self, dtype, shape, packed):
        array = (np.random.default_rng(0).uniform(-100, 100, shape)).astype(dtype)
        assert_array(array, packed)

    @pytest.mark.parametrize("array", [np.array([2**40, -1]), np.array([[True], [False]])])
    @pytest.mark.parametrize("packed", [True, False])
    def test_int64_and_bool(self, array, packed):
        assert_array(array, packed)

    def test_strings(self):
        array = np.array([["bird", "größer"], ["", "x"]])
        encoded = tf.make_tensor_proto(array).SerializeToString()
        found = tensors.to_array(ours.TensorProto.FromString(encoded))
        assert np.char.decode(found.astype("S"), "utf-8").tolist() == array.tolist()

    def test_values_left_out_repeat_the_last(self):
        tensor = tf.make_tensor_proto([7, 8, 8, 8, 8, 8], tf.int32, [2, 3])
        tensor.tensor_content = b""
        tensor.int_val[:] = [7, 8]
        found = tensors.to_array(ours.TensorProto.FromString(tensor.SerializeToString()))
        np.testing.assert_array_equal(found, tf.make_ndarray(tensor))
        assert found.tolist() == [[7, 8, 8], [8, 8, 8]]

    def test_too_many_values_or_unknown_types_are_refused(self):
        tensor = ours.TensorProto(dtype=3, int_val=[1, 2])
        with pytest.raises(ValueError, match=r"2 values for a tensor of shape \(\)"):
            tensors.to_array(tensor)
        with pytest.raises(ValueError, match="type number 8"):
            tensors.to_array(ours.TensorProto(dtype=8))

    def test_the_states_of_versions_are_read(self):
        official = get_model_status_pb2.GetModelStatusResponse()
        official.model_version_status.add(version=3, state="LOADING").status.error_message = "no"
        official.model_version_status.add(version=2, state="START")
        read = ours.GetModelStatusResponse.FromString(official.SerializeToString())
        states = [(status.version, status.state) for status in read.model_version_status]
        assert states == [(3, ours.ModelVersionStatus.LOADING), (2, ours.ModelVersionStatus.START)]

    def test_an_official_response_is_read(self):
        response = predict_pb2.PredictResponse()
        for key, value in outputs().items():
            response.outputs[key].CopyFrom(tf.make_tensor_proto(value))
        read = ours.PredictResponse.FromString(response.SerializeToString())
        assert read.outputs.keys() == outputs().keys()
        assert read.SerializeToString(deterministic=True) == response.SerializeToString(
            deterministic=True
        )


def assert_array(array, packed):
    """A tensor arrives as it was, from its packed bytes or from single values."""
    tensor = tf.make_tensor_proto(array)
    if not packed:  # as TensorFlow Serving answers by default
        number = tensor.dtype
        tensor.tensor_content = b""
        for name in ("float_val", "double_val", "int_val", "int64_val", "bool_val"):
            tensor.ClearField(name)
        field = tensors._DTYPES[number][1]
        getattr(tensor, field).extend(array.flatten().tolist())
    found = tensors.to_array(ours.TensorProto.FromString(tensor.SerializeToString()))
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


def test_tensorflow_is_not_imported():
    """Neither by the library nor by the command; gRPC's part included."""
    script = """
import sys
import export.client.__main__, export.client.grpc_transport
from export.client import Client
Client(grpc="localhost:1").close()
loaded = [m for m in sys.modules if m.split(".")[0] in ("tensorflow", "tf_keras", "official")]
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-c", script], cwd=harness.REPOSITORY, check=True)


class TestAnswers:
    def test_rest_and_grpc_give_what_the_model_gave(self):
        image, wanted = png(), outputs(count=6, seed=3)
        single = {key: value[0] for key, value in wanted.items()}
        direct = Detections.from_outputs(single, name="a.png")
        assert len(direct) == 6
        seen = []
        with serve(lambda data: (seen.append(data), wanted)[1]) as server:
            with Client(server.url) as client:
                assert_same(client.detect(image, "a.png"), direct)
            path, body = server.requests[0]
        assert path == "/v1/models/maskx:predict" and seen == [image]
        assert body["signature_name"] == "serving_default"
        assert base64.b64decode(body["instances"][0]["image_bytes"]["b64"]) == image
        with serve_grpc(lambda data: wanted) as (stub, address), Client(grpc=address) as client:
            assert_same(client.detect(image, "a.png"), direct)
        request = stub.requests[0]
        assert tf.make_ndarray(request.inputs["image_bytes"]).tolist() == [image]
        assert request.model_spec.signature_name == "serving_default"
        assert not request.model_spec.HasField("version")

    def test_a_version_can_be_asked_for(self):
        with serve(lambda data: outputs()) as server:
            Client(f"{server.url}/", version=4).detect(png())
            assert server.requests[0][0] == "/v1/models/maskx/versions/4:predict"
        with serve_grpc(lambda data: outputs()) as (stub, address):
            with Client(grpc=address, version=4) as client:
                client.detect(png())
            assert stub.requests[0].model_spec.version.value == 4

    def test_an_answer_larger_than_grpcs_default(self):
        large = outputs(count=100, padding=6000)
        with serve_grpc(lambda data: large) as (_, address), Client(grpc=address) as client:
            assert len(client.detect(png())) == 100

    def test_no_detections(self):
        with serve(lambda data: outputs(count=0)) as server:
            assert len(Client(server.url).detect(png())) == 0

    def test_many_images_come_in_order_several_at_a_time(self, tmp_path):
        """With the unreadable and the refused one in their places."""
        paths = [tmp_path / f"{i}.png" for i in range(20)]
        for i, path in enumerate(paths):
            path.write_bytes(png(height=100 + i))
        paths[5].unlink()
        together, lock = [0, 0], threading.Lock()

        def model(data):
            with lock:
                together[0] += 1
                together[1] = max(together)
            time.sleep(0.02)
            with lock:
                together[0] -= 1
            with Image.open(io.BytesIO(data)) as image:
                height = image.height
            return (400, "no image") if height == 107 else outputs(height=height)

        with serve(model) as server:
            found = list(Client(server.url).detect_many(paths, parallel=3))
        assert [path for path, _ in found] == paths
        assert together[1] == 3
        for i, (_, one) in enumerate(found):
            if i in (5, 7):
                assert isinstance(one, ImageError) and f"{i}.png" in str(one)
            else:
                assert one.image_size == (100 + i, 160) and one.name == str(paths[i])


class TestAnswersOfAnotherKind:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"detection_masks": [["a"]]}, "its output detection_masks cannot be read"),
            ({"detection_boxes": [1, 2]}, "detection_boxes has 1 dimensions, not 2"),
            ({"image_size": ["a", "b"]}, "image_size cannot be read"),
        ],
    )
    def test_outputs_of_another_kind_are_refused(self, change, message):
        answer = {key: stub_server.to_json(v[0]) for key, v in outputs().items()} | change
        with serve(lambda data: outputs()) as server:
            server.answer = lambda path, body: (200, {"predictions": [answer]})
            with pytest.raises(ServerError, match=message) as caught:
                Client(server.url).detect(png())
        assert server.url in str(caught.value)

    def test_a_model_without_an_output_is_refused(self):
        with serve(lambda data: outputs()) as server:
            server.answer = lambda path, body: (200, {"predictions": [{"logits": [1.0]}]})
            with pytest.raises(ServerError, match="no output num_detections: it was not"):
                Client(server.url).detect(png())


class TestErrors:
    def test_a_busy_server_is_asked_again(self):
        answers = [(503, "queue is full"), (503, "queue is full")]
        with serve(lambda data: answers.pop() if answers else outputs()) as server:
            assert len(Client(server.url).detect(png())) == 5
            assert len(server.requests) == 3

    def test_pauses_double_up_to_a_limit(self):
        pauses = []

        def request():
            raise UnavailableError("http://x is busy")

        with pytest.raises(ServerError, match=r"http://x is busy \(tried 9 times\)"):
            retries.call(request, 8, pauses.append)
        longest = [0.2, 0.4, 0.8, 1.6, 3.2, 5, 5, 5]
        assert len(pauses) == 8
        for pause, limit in zip(pauses, longest, strict=True):
            assert limit / 2 <= pause <= limit

    @pytest.mark.parametrize(
        ("answer", "kind", "message"),
        [
            ((400, "Expected image, got\n empty"), ImageError, "a.png: .*/maskx:predict answered "
             "400: Expected image, got empty"),
            ((413, "too large"), ImageError, "413: too large"),
            ((503, "queue is full"), ServerError, r"503: queue is full \(tried once\)"),
            ((502, "bad gateway"), ServerError, r"502: bad gateway \(tried once\)"),
            ((429, "too many"), ServerError, r"429: too many \(tried once\)"),
            ((401, "who are you"), ServerError, "401: who are you; are the URL"),
        ],
    )  # fmt: skip
    def test_refusals_over_rest(self, answer, kind, message):
        with serve(lambda data: answer) as server, pytest.raises(kind, match=message) as caught:
            Client(server.url, max_retries=0).detect(png(), "a.png")
        assert server.url in str(caught.value) and "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("code", "kind", "message"),
        [
            (grpc.StatusCode.INVALID_ARGUMENT, ImageError, "a.png: gRPC .* INVALID_ARGUMENT: why"),
            (grpc.StatusCode.UNAVAILABLE, ServerError, r"UNAVAILABLE: why \(tried once\)"),
            (grpc.StatusCode.UNIMPLEMENTED, ServerError, "UNIMPLEMENTED: why; are the address"),
        ],
    )
    def test_refusals_over_grpc(self, code, kind, message):
        with serve_grpc(lambda data: (code, "why")) as (_, address):
            client = Client(grpc=address, max_retries=0)
            with client, pytest.raises(kind, match=message) as caught:
                client.detect(png(), "a.png")
        assert address in str(caught.value)

    def test_a_model_that_is_not_there(self):
        with serve(lambda data: outputs()) as server, pytest.raises(ServerError, match="404"):
            Client(server.url, "other").detect(png())
        with (
            serve_grpc(lambda data: outputs()) as (_, address),
            Client("", "x", grpc=address) as client,
            pytest.raises(ServerError, match="model 'x' answered NOT_FOUND: Servable"),
        ):
            client.detect(png())

    def test_a_model_that_is_still_loading_is_asked_again(self, tmp_path, monkeypatch):
        """Over both protocols of the local server; one that cannot be loaded is not there."""
        (tmp_path / "1").mkdir()
        (tmp_path / "1" / "saved_model.pb").write_text("")
        done = threading.Event()

        def load(path, *others):
            assert done.wait(60)
            raise OSError("damaged")

        monkeypatch.setattr(local_server, "Servable", load)
        server = local_server.Server(
            [serving_toy.model_config(tmp_path, "maskx")],
            serving_toy.Options(port=0, rest_api_port=0, file_system_poll_wait_seconds=0),
        )
        versions = server.core.models["maskx"]._versions
        with local_server.running(server):
            clients = (
                Client(f"http://127.0.0.1:{server.rest_api_port}", max_retries=1),
                Client(grpc=f"127.0.0.1:{server.port}", version=1, max_retries=1),
            )
            try:
                serving_toy.wait_until(lambda: versions)
                for client in clients:
                    with pytest.raises(ServerError, match=r"still loading \(tried 2 times\)"):
                        client.detect(png())
            finally:
                done.set()
            serving_toy.wait_until(lambda: versions[1].error)
            for client in clients:
                with client, pytest.raises(ServerError, match="the model's name right"):
                    client.detect(png())

    @pytest.mark.thorough
    def test_masks_of_boxes_are_those_of_the_export(self, exported):
        """By both protocols of the local server, and from Python."""
        encoded = (exported / "image.png").read_bytes()
        model = load_export(str(exported / "export"))
        boxes, names = [[2.0, 3, 30, 41], [10, 5, 28, 22]], list(model.class_names[:2])
        wanted = model.masks(encoded, boxes, names)
        server = local_server.Server(
            [serving_toy.model_config(exported / "export", "maskx")],
            serving_toy.Options(port=0, rest_api_port=0),
        )
        with local_server.running(server):
            serving_toy.wait_until(lambda: server.core.ready)
            for client in (
                Client(f"http://127.0.0.1:{server.rest_api_port}"),
                Client(grpc=f"127.0.0.1:{server.port}"),
            ):
                with client:
                    found = client.masks(encoded, boxes, names)
                    for name in ("boxes_yxyx", "class_names", "scores", "box_masks"):
                        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))
                    assert client.masks(encoded, boxes).class_ids.min() > 0
                    seen = {n: i in tiny.SET_A for i, n in enumerate(tiny.VOCABULARY.names, 1)}
                    assert client.classes() == seen and list(seen) == list(model.class_names)
                    with pytest.raises(ImageError, match="yak"):
                        client.masks(encoded, boxes, "yak")
                    with pytest.raises(UserError, match="2 boxes have 1 classes"):
                        client.masks(encoded, boxes, ["yak"])

    def test_a_model_that_cannot_name_its_classes(self):
        with (
            serve(lambda data: outputs()) as server,
            Client(server.url) as client,
            pytest.raises(ServerError, match="export"),
        ):
            assert client.classes() == dict.fromkeys(stub_server.NAMES[1:], True)
            server.old = True
            client.classes()

    def test_no_answer_in_time(self):
        with serve(lambda data: outputs()) as server:
            server.delay_s = 1
            with pytest.raises(ImageError, match=r"a.png: http.* gave no answer within 0.2 s"):
                Client(server.url, timeout_s=0.2).detect(png(), "a.png")
        with (
            serve_grpc(lambda data: time.sleep(1) or outputs()) as (_, address),
            Client(grpc=address, timeout_s=0.2) as client,
            pytest.raises(ImageError, match="a.png: gRPC .* gave no answer within 0.2 s"),
        ):
            client.detect(png(), "a.png")

    def test_no_proxy_stands_before_this_machine(self, monkeypatch):
        """Another machine's proxy is named where it cannot be reached."""
        for name in ("http_proxy", "HTTP_PROXY", "grpc_proxy"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")
        for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
            monkeypatch.delenv(name, raising=False)
        model = outputs()
        with serve(lambda image: model) as server, Client(server.url) as client:
            assert client.detect(png())
        with serve_grpc(lambda image: model) as (_, address), Client(grpc=address) as client:
            assert client.detect(png())
        client = Client("http://maskx.invalid:8501", max_retries=0)
        with client, pytest.raises(ServerError, match=r"by the proxy http://127\.0\.0\.1:9"):
            client.detect(png())

    def test_a_server_that_is_not_there(self):
        with pytest.raises(ServerError, match=r"127.0.0.1:9/v1.* cannot be reached: .*refused"):
            Client("http://127.0.0.1:9", max_retries=0).detect(png())
        message = r"127.0.0.1:9.*UNAVAILABLE.*tried 2 times"
        with (
            Client(grpc="127.0.0.1:9", max_retries=1) as client,
            pytest.raises(ServerError, match=message),
        ):
            client.detect(png())

    @pytest.mark.parametrize("url", ["localhost:8501", "ftp://x", "", "http://", "http://x:port"])
    def test_no_url(self, url):
        with pytest.raises(ServerError, match="looks like http://localhost:8501"):
            Client(url)

    def test_a_file_that_is_not_there(self):
        with pytest.raises(ImageError, match=r"none/a.jpg cannot be read: No such file"):
            Client().detect("none/a.jpg")

    def test_another_kind_of_server(self):
        with serve(lambda data: outputs()) as server:
            server.answer = lambda path, body: (200, {"outputs": "<html>"})
            with pytest.raises(ServerError, match="answered .*outputs.* is it TensorFlow Serving"):
                Client(server.url).detect(png())


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "export.client", *arguments],
        cwd=harness.REPOSITORY,
        capture_output=True,
        text=True,
    )


class TestCommand:
    @pytest.fixture
    def folder(self, tmp_path):
        """Two pictures, one of them a photograph lying on its side, and junk."""
        root = tmp_path / "images"
        root.mkdir()
        (root / "a.png").write_bytes(png(120, 160))
        exif = Image.Exif()
        exif[0x0112] = 6  # upright when turned to the right
        lying = Image.fromarray(harness.random_image(120, 160))
        lying.save(root / "b.jpg", exif=exif, quality=95)
        (root / "junk.jpg").write_bytes(b"junk")
        return root

    @staticmethod
    def model(data):
        """As a model that honours EXIF orientations."""
        if data == b"junk":
            return 400, "no image"
        with Image.open(io.BytesIO(data)) as image:
            turned = image.getexif().get(0x0112) == 6
        return outputs(height=160, width=120, seed=1) if turned else outputs()

    def run(self, folder, *arguments):
        with serve(self.model) as server:
            return command(f"--url={server.url}", f"--images={folder}", *arguments)

    def expected(self, path, image_id, format_):
        single = {key: value[0] for key, value in self.model(path.read_bytes()).items()}
        return Detections.from_outputs(single).to_coco(image_id, path.name, format_)

    @pytest.mark.parametrize("format_", ["rle", "polygon"])
    def test_results(self, folder, tmp_path, format_):
        output = tmp_path / "new" / "found.json"
        done = self.run(folder, f"--output={output}", f"--format={format_}")
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"written: {output} (2 of 3 images)\n"
        *_, heading, problem = done.stderr.splitlines()
        assert heading == "1 of 3 images had problems:"
        assert problem.startswith(f"{folder / 'junk.jpg'}: it is no image")
        wanted = [
            *self.expected(folder / "a.png", 1, format_),
            *self.expected(folder / "b.jpg", 2, format_),
        ]
        assert json.loads(output.read_text()) == wanted

    def test_masks_as_files_and_pictures(self, folder, tmp_path):
        output = tmp_path / "found.json"
        done = self.run(
            folder,
            f"--output={output}",
            "--format=png",
            "--min_score=0.5",
            f"--overlays={tmp_path / 'drawn'}",
        )
        assert done.returncode == 0, done.stderr
        found = json.loads(output.read_text())
        wanted = self.expected(folder / "a.png", 1, "rle") + self.expected(
            folder / "b.jpg", 2, "rle"
        )
        wanted = [result for result in wanted if result["score"] >= 0.5]
        assert 0 < len(wanted) == len(found) < 10
        for result, other in zip(found, wanted, strict=True):
            mask = np.asarray(Image.open(tmp_path / result["mask_file"]))
            np.testing.assert_array_equal(mask, 255 * masks.decode_rle(other["segmentation"]))
            assert "segmentation" not in result and result["bbox"] == other["bbox"]
        files = sorted(path.name for path in (tmp_path / "found_masks").iterdir())
        assert files == sorted(pathlib.Path(r["mask_file"]).name for r in found)
        with Image.open(tmp_path / "drawn" / "b.jpg") as upright:
            assert upright.height > upright.width
        with Image.open(tmp_path / "drawn" / "a.png") as other:
            assert other.height < other.width

    def test_ids_come_from_annotations(self, folder, tmp_path):
        categories = [{"id": 90 + i, "name": name} for i, name in enumerate(stub_server.NAMES)]
        images = [{"id": 7, "file_name": "a.png"}]
        annotations = tmp_path / "coco.json"
        annotations.write_text(json.dumps({"images": images, "categories": categories}))
        output = tmp_path / "found.json"
        done = self.run(folder / "a.png", f"--output={output}", f"--annotations={annotations}")
        assert done.returncode == 0, done.stderr
        for result in json.loads(output.read_text()):
            assert result["image_id"] == 7
            assert stub_server.NAMES[result["category_id"] - 90] == result["category_name"]

    def test_over_grpc(self, folder, tmp_path):
        output = tmp_path / "found.json"
        with serve_grpc(lambda data: outputs()) as (_, address):
            done = command(
                f"--grpc={address}", f"--images={folder / 'a.png'}", f"--output={output}"
            )
        assert done.returncode == 0, done.stderr
        assert json.loads(output.read_text()) == self.expected(folder / "a.png", 1, "rle")

    def test_a_server_that_goes_away_leaves_what_was_done(self, folder, tmp_path):
        output = tmp_path / "found.json"
        answers = [outputs()]
        with serve(lambda data: answers.pop() if answers else (503, "going down")) as server:
            done = command(
                f"--url={server.url}", f"--images={folder}", f"--output={output}",
                "--parallel=1", "--max_retries=0",
            )  # fmt: skip
        assert done.returncode == 2
        last = done.stderr.splitlines()[-1]
        assert last.startswith(f"error: {server.url}/v1/models/maskx:predict answered 503: going")
        assert last.endswith(f"1 of 3 images were done and are in {output}.")
        assert {r["file_name"] for r in json.loads(output.read_text())} == {"a.png"}

    @pytest.mark.parametrize(
        ("error", "text"),
        [
            (UserError("no category 'cat'."), "no category 'cat'; 1 of 2 images were done and are"),
            (OSError(28, "No space left on device"), "No space left on device"),
            (KeyboardInterrupt(), ""),
        ],
    )
    def test_whatever_ends_it_leaves_what_was_done(self, folder, tmp_path, capsys, error, text):
        paths, output = [folder / "a.png", folder / "b.jpg"], tmp_path / "found.json"
        single = {key: value[0] for key, value in outputs().items()}

        def answers():
            yield paths[0], Detections.from_outputs(single)
            raise error

        options = {"mask_format": "rle", "category_ids": None, "overlays": ""}
        collector = client_command.Collector(
            paths, [1, 2], output, min_score=0.0, score_threshold=0.5, **options
        )
        with pytest.raises(type(error)) as caught:
            client_command._collect(collector, answers())
        assert text in str(caught.value)
        assert json.loads(output.read_text()) == self.expected(paths[0], 1, "rle")
        said = str(caught.value) if isinstance(error, UserError) else capsys.readouterr().err
        assert said.strip().endswith(f"1 of 2 images were done and are in {output}.")

    def test_sigterm_leaves_what_was_done(self, folder, tmp_path):
        """As schedulers send it; by itself, Python would end at once."""
        output, ended = tmp_path / "found.json", threading.Event()

        def model(data):
            if len(server.requests) > 1:
                ended.wait(60)
            time.sleep(0.5)  # quick ones do not show in the progress bar
            return outputs()

        with serve(model) as server:
            process = subprocess.Popen(
                [
                    sys.executable, "-m", "export.client", f"--url={server.url}", "--parallel=1",
                    f"--images={folder}", f"--output={output}",
                ],
                cwd=harness.REPOSITORY, stderr=subprocess.PIPE,
            )  # fmt: skip
            said = b""
            while b"1/3" not in said:
                said += (piece := os.read(process.stderr.fileno(), 1000))
                assert piece, said
            process.terminate()
            time.sleep(1)
            ended.set()  # it waits for the request under way
            _, rest = process.communicate(timeout=300)
        assert process.returncode == 143, rest
        assert "a.png" in {result["file_name"] for result in json.loads(output.read_text())}

    def test_a_class_that_the_annotations_lack(self, folder, tmp_path):
        """It may turn up in any image: those before it are not lost."""
        images = [{"id": i, "file_name": name} for i, name in enumerate(("a.png", "b.jpg"), 1)]
        annotations, output = tmp_path / "coco.json", tmp_path / "found.json"
        categories = [{"id": 1, "name": "none"}]
        annotations.write_text(json.dumps({"images": images, "categories": categories}))
        (folder / "junk.jpg").unlink()
        answers = [outputs(), outputs(count=0)]
        with serve(lambda data: answers.pop()) as server:
            done = command(
                f"--url={server.url}", f"--images={folder}", f"--output={output}",
                f"--annotations={annotations}", "--parallel=1",
            )  # fmt: skip
        assert done.returncode == 2
        last = done.stderr.splitlines()[-1]
        assert last.startswith("error: --annotations has no category") and "model.;" not in last
        assert last.endswith(f"1 of 2 images were done and are in {output}.")
        assert json.loads(output.read_text()) == []

    def test_nothing_but_junk_fails(self, folder, tmp_path):
        done = self.run(folder / "junk.jpg", f"--output={tmp_path / 'found.json'}")
        assert done.returncode == 1 and "(0 of 1 images)" in done.stdout

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "--output=FILE.json is needed."),
            (["--output=x.json"], "--images is needed: image files"),
            (["--output=x.json", "--images=README.md", "--url=http://x", "--grpc=x"], "either"),
            (["--output=x.json", "--images=README.md", "--format=svg"], "svg"),
            (["--output=docs", "--images=README.md"], "--output=docs is a directory; a file in it"),
            (["--output=README.md/x.json", "--images=README.md"], "README.md: Not a directory."),
            (
                ["--output=x.json", "--images=README.md", "--overlays=README.md/drawn"],
                "--overlays=README.md/drawn cannot be written: ",
            ),
        ],
    )
    def test_a_mistaken_command_is_one_line(self, arguments, message):
        done = command(*arguments)
        assert done.returncode == 2 and message in done.stderr
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
