"""What stands beside the exported graph, and TensorFlow Serving's configuration: it parses."""

import pathlib
import re
import shlex

import numpy as np
import pytest
import tensorflow as tf
import yaml
from google.protobuf import text_format

from export import serving_files, warmup
from maskx_tf.inference.batching import Batching
from maskx_tf.system.verbs import VERBS
from tests import harness, tiny

SERVING = harness.REPOSITORY / "export" / "serving"
OUTPUTS = {"num_detections": "int32 [B]", "image_size": "int32 [B, 2]"}


def test_models_config():
    model_server_config = pytest.importorskip("tensorflow_serving.config.model_server_config_pb2")
    parsed = text_format.Parse(
        (SERVING / "models.config").read_text(), model_server_config.ModelServerConfig()
    )
    (config,) = parsed.model_config_list.config
    assert (config.name, config.base_path) == ("maskx", "/models/maskx")
    assert config.model_platform == "tensorflow"
    assert config.model_version_policy.latest.num_versions == 1


def test_monitoring_config():
    """MonitoringConfig is in no package: its fields are { prometheus_config { enable, path } }."""
    text = _without_comments((SERVING / "monitoring.config").read_text())
    pattern = r'prometheus_config \{ enable: true path: "(.*)" \}'
    assert re.fullmatch(pattern, text)[1] == "/monitoring/prometheus/metrics"


def test_batching_parameters_are_those_of_an_export():
    assert (SERVING / "batching_parameters.txt").read_text() == serving_files.batching_parameters(
        Batching()
    )


def test_batching_parameters_have_the_syntax_of_their_message():
    """BatchingParameters is in no package: wrapped numbers, and a repeated one."""
    text = _without_comments(serving_files.batching_parameters(Batching((1, 8), 5, 6, 7)))
    assert text == (
        "max_batch_size { value: 8 } batch_timeout_micros { value: 5 } "
        "num_batch_threads { value: 6 } max_enqueued_batches { value: 7 } "
        "allowed_batch_sizes: 1 allowed_batch_sizes: 8"
    )


def _without_comments(text):
    return " ".join(" ".join(line for line in text.splitlines() if line[:1] != "#").split())


def test_docker_compose():
    (service,) = yaml.safe_load((SERVING / "docker-compose.yml").read_text())["services"].values()
    assert service["image"].startswith("tensorflow/serving:")
    assert service["ports"] == ["8500:8500", "8501:8501"]
    model, config = service["volumes"]
    assert model.endswith(":/models/maskx:ro") and config == ".:/config:ro"
    flags = dict(argument.split("=") for argument in service["command"])
    named = {path for path in flags.values() if path.startswith("/config/")}
    assert named == {"/config/models.config", "/config/monitoring.config"}
    assert all((SERVING / pathlib.Path(path).name).is_file() for path in named)
    assert "--enable_batching" not in flags
    kind, *command = service["healthcheck"]["test"]
    assert kind == "CMD" and command[:2] == ["bash", "-c"]
    assert "GET /v1/models/maskx HTTP/1.0\\r\\n\\r\\n" in command[2]


def test_warmup_requests(tmp_path):
    """One for each batch size, with so many images of each lie, as TensorFlow Serving reads it."""
    prediction_log = pytest.importorskip("tensorflow_serving.apis.prediction_log_pb2")
    landscape, portrait = tiny.images()[:2]
    warmup.write(tmp_path, "name", Batching((1, 3)), landscape, portrait)
    records = list(tf.data.TFRecordDataset(str(tmp_path / warmup.FILE)).as_numpy_iterator())
    assert len(records) == 2
    for size, record in zip((1, 3), records, strict=True):
        log = prediction_log.PredictionLog.FromString(record)
        assert log.WhichOneof("log_type") == "predict_log"
        request = log.predict_log.request
        assert request.model_spec.name == "name"
        assert request.model_spec.signature_name == "serving_default"
        assert list(request.inputs) == ["image_bytes"]
        encoded = tf.make_ndarray(request.inputs["image_bytes"])
        shapes = [tf.io.decode_jpeg(image).shape for image in encoded]
        assert sorted(map(tuple, shapes)) == sorted([landscape.shape, portrait.shape] * size)
        assert log.SerializeToString() == record  # nothing that the messages do not know


def test_serving_md(tmp_path):
    serving_files.write(tmp_path, "fish", Batching((1, 8), 5, 6, 7), 123_456, OUTPUTS)
    text = (tmp_path / "assets.extra" / "SERVING.md").read_text()
    assert "\n    num_detections  int32 [B]\n    image_size      int32 [B, 2]\n" in text
    assert "more than 123,456 pixels" in text and "(sizes 1, 8; a request waits\n  5 µs" in text
    for command in (
        "-e MODEL_NAME=fish",
        '"$PWD/OUTPUT_DIR:/models/fish:ro"',
        '--model_base_path="$PWD/OUTPUT_DIR"',
        "maskx serve --model_base_path=OUTPUT_DIR --model_name=fish",
        "curl http://localhost:8501/v1/models/fish ",
        "`grpc.max_receive_message_length` = -1",
    ):
        assert command in text
    for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
        assert shlex.split(block, comments=True)  # quotes and continued lines are closed
    commands = re.findall(r"^maskx (\w+)((?:\\\n|.)*)", text, re.MULTILINE)
    assert [verb for verb, _ in commands] == ["serve"]
    for verb, arguments in commands:
        module = VERBS[verb].module.replace(".", "/")
        source = (harness.REPOSITORY / f"{module}.py").read_text()
        defined = re.findall(r'DEFINE_\w+\(\s*"(\w+)"', source)
        used = re.findall(r"--(\w+)", arguments)
        assert len(used) == 4 and set(used) <= set(defined)
    written = (tmp_path / "assets.extra" / "batching_parameters.txt").read_text()
    assert written == serving_files.batching_parameters(Batching((1, 8), 5, 6, 7))


def test_without_shared_batches_the_files_say_so(tmp_path):
    outputs = {"num_detections": "int32 [B]"}
    serving_files.write(tmp_path, "fish", Batching(), 9, outputs, shared_batches=False)
    text = (tmp_path / "assets.extra" / "SERVING.md").read_text()
    assert "--batching=none" in text and "$" not in text.replace("$PWD", "").replace("$(", "")
    assert not (tmp_path / "assets.extra" / "batching_parameters.txt").exists()


def test_warmup_images_are_what_the_signature_takes(tmp_path):
    """JPEG files: not arrays, which REST and gRPC clients of this signature cannot send."""
    pair = np.zeros((4, 6, 3), np.uint8), np.zeros((6, 4, 3), np.uint8)
    warmup.write(tmp_path, "m", Batching((1,)), *pair)
    assert (tmp_path / warmup.FILE).read_bytes().count(b"\xff\xd8\xff") == 2


def test_warmup_requests_are_no_larger_than_a_request_may_be(tmp_path):
    """Both lies of the largest batch are more than the one batch that may wait."""
    pair = np.zeros((4, 6, 3), np.uint8), np.zeros((6, 4, 3), np.uint8)
    warmup.write(tmp_path, "m", Batching((1, 3), max_enqueued=1), *pair)
    records = tf.data.TFRecordDataset(str(tmp_path / warmup.FILE)).as_numpy_iterator()
    assert [record.count(b"\xff\xd8\xff") for record in records] == [2, 3, 3]
