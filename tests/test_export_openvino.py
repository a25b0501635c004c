"""The OpenVINO export gives what the checkpoint gives, and is never left half written."""

import builtins
import json
import types

import numpy as np
import pytest
import tensorflow as tf

from export import comparison
from export.serving import server
from export.serving.errors import ServingError
from maskx_tf import checkpoints
from maskx_tf.errors import UserError
from maskx_tf.inference import detector
from maskx_tf.inference.module import DetectionModule
from tests import commands, exports, tiny

openvino = pytest.importorskip("openvino")

from export.openvino_ir import network, operations, quantization, version  # noqa: E402 (they need openvino)

# Of the size that the tiny network sees: nothing is resized.
SIZES = [(64, 96), (64, 80), (96, 64), (70, 64), (40, 96), (64, 64)]


def images() -> list[np.ndarray]:
    """uint8 noise of several shapes; white and black ones, whose scores tie."""
    generator = np.random.default_rng(0)
    noise = [generator.integers(0, 256, [*size, 3]).astype(np.uint8) for size in SIZES]
    return [*noise, np.zeros([64, 90, 3], np.uint8), np.full([96, 50, 3], 255, np.uint8)]


def export(directory, kind="openvino", **changes) -> None:
    """directory/run, a run of the tiny model, and directory/export/1."""
    exports.save_run(directory / "run", seed=1, **changes)
    done = commands.in_process(
        "export.command",
        f"--model_dir={directory / 'run'}",
        f"--output_dir={directory / 'export'}",
        f"--format={kind}",
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"written: {directory / 'export' / '1'} (equal to the model" in done.stdout


@pytest.fixture(scope="module")
def exported(shared):
    return shared("exported_openvino", export)


def require_equal(directory, tolerance=version.TOLERANCE) -> int:
    """Compares an export with its run on `images`; how many detections there are."""
    wanted = detector.load_checkpoint(str(directory / "run")).detect
    found = detector.load_export(str(directory / "export")).detect
    count = 0
    for image in images():
        outputs = {k: v.numpy() for k, v in wanted(tf.constant(image[None])).items()}
        assert comparison.difference(found(image[None]), outputs, tolerance) == ""
        count += int(outputs["num_detections"][0])
    return count


@pytest.mark.thorough
def test_detections_are_those_of_the_checkpoint(exported):
    assert require_equal(exported) > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"conventions": "detectron", "anchor_offset": 0.0, "mask_output": "class_specific"},
        {"class_groups": (3, 1), "mask_roi_scale": 1.5, "mask_norm": "group_norm"},
        {"box_head": "conv", "mask_branches": ("cam", "coords"), "mask_mlp": True},
        {"conventions": "torchvision", "score_threshold": 0.0},
        {"score_threshold": 1.0},  # no detections
    ],
    ids=["detectron", "groups", "cam", "torchvision", "none_found"],
)
def test_options_survive(changes, tmp_path):
    export(tmp_path, **changes)
    require_equal(tmp_path)


@pytest.mark.thorough
def test_masks_of_boxes_are_those_of_the_checkpoint(exported):
    loaded = checkpoints.load_model(str(exported / "run"))
    module = DetectionModule(*loaded[:4])
    path, image = exported / "export" / "1", images()[2]
    boxes = np.array([[0, 0, 96, 64], [5, 8, 60.5, 30], [-9, 3, 200, 20]], np.float32)
    servable = server.load(str(path), (0, 0))
    for names in (["ant", "dog", "bee"], ["", "cat", ""]):
        given = {
            "image_bytes": np.array([tf.io.encode_png(image).numpy()], object),
            "boxes": boxes[None],
            "class_names": np.array([[name.encode() for name in names]], object),
        }
        outputs = {k: v.numpy() for k, v in module.segment_boxes(**given).items()}
        found = servable.run("box_prompts", given)
        assert comparison.difference(found, outputs, version.PROMPTS) == ""
        np.testing.assert_array_equal(found["detection_classes"], outputs["detection_classes"])
        np.testing.assert_allclose(found["detection_boxes"], outputs["detection_boxes"], atol=1e-3)
    masks = [
        detector.load_export(str(path)).masks(image, boxes, "bee").box_masks / 255.0,
        detector.load_checkpoint(str(exported / "run")).masks(image, boxes, "bee").box_masks,
    ]
    assert np.abs(masks[0] - masks[1]).max() < 2 / 255
    assert len(detector.load_export(str(path)).masks(image, [], [])) == 0
    for problem, text in (
        ({"class_names": np.array([[b"ant", b"eel", b""]], object)}, "classes eel"),
        ({"boxes": np.full([1, 3, 4], 7, np.float32)}, "no area"),
        ({"boxes": boxes[None, :2]}, "2 boxes and 3 classes"),
    ):
        with pytest.raises(ServingError, match=text):
            servable.run("box_prompts", given | problem)


@pytest.mark.thorough
def test_a_batch_gives_what_its_images_give(exported):
    detect = detector.load_export(str(exported / "export")).detect
    pair = np.stack([images()[0], images()[0][::-1, ::-1]])
    together = detect(pair)
    for row, image in enumerate(pair):
        one = {key: value[row : row + 1] for key, value in together.items()}
        assert comparison.difference(one, detect(image[None]), version.TOLERANCE) == ""


@pytest.mark.thorough
def test_the_files_of_a_version(exported):
    path = exported / "export" / "1"
    assert {file.name for file in path.iterdir()} == {
        "assets",
        "box_prompts",
        "config.json",
        "model.bin",
        "model.xml",
    }
    classes = json.loads((path / "assets" / "classes.json").read_text())
    assert [entry["mask_seen"] for entry in classes] == [True, False, True, False]
    (entry,) = json.loads((path / "config.json").read_text())["model_config_list"]
    assert entry["config"]["plugin_config"] == {"INFERENCE_PRECISION_HINT": "f32"}
    assert "detection_masks" in (path / "assets" / "SERVING.md").read_text()


@pytest.mark.thorough
def test_the_local_server_answers_as_the_detector(exported):
    path = exported / "export" / "1"
    servable = server.load(str(path), (0, 0))
    assert servable.signature("").outputs.keys() == {*servable.signature("image_tensor").outputs}
    files = [tf.io.encode_png(image).numpy() for image in images()[:2]]  # of two sizes
    answer = servable.run("", {"image_bytes": np.array(files, object)})
    detect = detector.load_export(str(path)).detect
    for row, image in enumerate(images()[:2]):
        for key, value in detect(image[None]).items():
            np.testing.assert_array_equal(answer[key][row], value[0])
            assert tf.as_dtype(servable.signature("").outputs[key].dtype) == value.dtype or (
                value.dtype == object
            )
    few = servable.run("image_tensor", {"images": images()[0][None]}, output_filter=["image_size"])
    assert {key: value.tolist() for key, value in few.items()} == {"image_size": [[64, 96]]}
    none = servable.run("", {"image_bytes": np.zeros([0], object)})
    assert {key: value.shape for key, value in none.items()} == {
        key: (0, *value.shape[1:]) for key, value in answer.items()
    }
    with pytest.raises(ServingError, match="not a JPEG"):
        servable.run("", {"image_bytes": np.array([b"<html>"], object)})
    classes = servable.run("class_names", {"ids": np.array([[4, 1]], np.int32)})
    names = [tiny.VOCABULARY.names[i].encode() for i in (3, 0)]
    assert {key: value.tolist() for key, value in classes.items()} == {
        "class_names": [names], "mask_seen": [[False, True]], "num_classes": [4],
    }  # fmt: skip
    with pytest.raises(ServingError, match="1 to 4"):
        servable.run("class_names", {"ids": np.array([[0]], np.int32)})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("box_roi_op", "pool"),
        ("point_head", "agnostic"),
        ("mask_scoring", "transfer"),
        ("box_passes", 2),
        ("semantic_head", "gcn"),
    ],
)
def test_what_has_no_counterpart_is_refused(name, value):
    with pytest.raises(UserError, match=f"--{name}={value} cannot be exported for OpenVINO"):
        version.require_supported(tiny.config(**{name: value}))


@pytest.mark.thorough
def test_a_differing_export_is_refused_and_leaves_nothing(exported, tmp_path, monkeypatch):
    """Here that of a run with other weights."""
    files = ("model.xml", "box_prompts/1/model.xml")
    models = [openvino.Core().read_model(exported / "export" / "1" / file) for file in files]
    graph = network.Graph(*models, [])
    monkeypatch.setattr(version, "convert", lambda *arguments: graph)
    exports.save_run(tmp_path / "run", seed=2)
    done = commands.in_process(
        "export.command",
        f"--model_dir={tmp_path / 'run'}",
        f"--output_dir={tmp_path / 'export'}",
        "--format=openvino",
    )
    assert done.returncode == 2 and "The model is not kept" in done.stderr
    assert not any((tmp_path / "export").iterdir())


@pytest.mark.slow
def test_int8_leaves_the_last_layers_in_float():
    pytest.importorskip("nncf")
    config = tiny.config()
    graph = version.convert(tiny.model(config), config, tiny.VOCABULARY, tiny.SET_A)
    quantized = quantization.quantize(graph, images())
    is_float = {
        operation.get_friendly_name(): operation.input_value(0).get_node().get_type_name()
        != "FakeQuantize"
        for operation in quantized.get_ordered_ops()
        if operation.get_type_name() in ("Convolution", "MatMul")
    }
    assert graph.last_layers and all(is_float[name] for name in graph.last_layers)
    inner = [is_float[name] for name in is_float.keys() - set(graph.last_layers)]
    assert inner.count(False) > 10  # backbone, FPN, RPN, box head, mask head
    found = openvino.compile_model(quantized, "CPU")(images()[0][None])
    assert found["num_detections"][0] > 0


@pytest.mark.parametrize(("int8", "is_kept"), [(0.397, True), (0.394, False)])
def test_int8_that_costs_more_than_allowed_is_refused(int8, is_kept, monkeypatch):
    def score(name, *arguments, **options):
        ap = 0.4 if name == "float32" else int8
        results = {
            "box": {"A": {"AP": 0.4}, "B": {"AP": None}},
            "mask": {"A": {"AP": ap}, "B": {"AP": ap}},
        }
        return types.SimpleNamespace(evaluate=lambda: results)

    monkeypatch.setattr(quantization.scoring, "evaluate", score)
    arguments = "float32", "int8", ["records"], (1,), 0.5
    if is_kept:
        assert "mask A        40.0    39.7" in quantization.compare(*arguments)
    else:
        with pytest.raises(UserError, match=r"--max_ap_drop=0.5 points(.|\n)*mask B +40.0 +39.4"):
            quantization.compare(*arguments)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--int8"], "--int8 is of --format=openvino"),
        (["--int8", "--format=openvino"], "--int8 needs --calibration"),
        (["--int8", "--format=onnx"], "--int8 is of --format=openvino"),
        (["--rle", "--format=openvino"], "--rle is of --format=saved_model"),
        (["--precision=bfloat16", "--format=onnx"], "--precision=bfloat16 is not of --format=onnx"),
        (
            ["--int8", "--calibration=x", "--format=openvino", "--precision=bfloat16"],
            "--precision=bfloat16 and --int8 exclude each other",
        ),
    ],
)
def test_options_that_do_not_fit(options, text, tmp_path):
    done = commands.in_process(
        "export.command", "--model_dir=run", f"--output_dir={tmp_path}", *options
    )
    assert done.returncode == 2 and text in done.stderr


def run(outputs, parameters, *values):
    compiled = openvino.compile_model(
        openvino.Model(outputs, parameters, "test"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    return [np.array(value) for value in compiled(list(values)).values()]


@pytest.mark.parametrize("count", [1, 5, 40, 99])
def test_places_of_the_largest_are_tensorflows_with_ties_too(count):
    scores = openvino.opset15.parameter([-1, -1], openvino.Type.f32)
    places = operations.places_of_largest(scores.output(0), count)
    values = np.random.default_rng(count).integers(0, 8, [3, 60]).astype(np.float32)
    values[1] = -np.inf
    (found,) = run([places], [scores], values)
    wanted = tf.math.top_k(values, min(count, 60)).indices.numpy()
    np.testing.assert_array_equal(found, np.sort(wanted, axis=1))


def test_nms_keeps_what_tensorflow_keeps():
    opset = openvino.opset15
    boxes = opset.parameter([-1, -1, 4], openvino.Type.f32)
    scores = opset.parameter([-1, -1], openvino.Type.f32)
    generator = np.random.default_rng(0)
    corners = generator.integers(0, 9, [2, 50, 2])
    # Whole sides: IoUs of exactly 0.5, which must stay, among them.
    values = np.concatenate([corners, corners + generator.integers(1, 5, [2, 50, 2])], -1)
    values = values.astype(np.float32)
    points = generator.permuted(np.arange(50, dtype=np.float32)[None].repeat(2, 0), axis=1)
    kept = operations.suppress(boxes.output(0), scores.output(0), 0.5, 4.0)
    (found,) = run([kept], [boxes, scores], values, points)
    for row in range(2):
        wanted = tf.image.non_max_suppression(
            values[row], points[row], 50, iou_threshold=0.5, score_threshold=4.0
        )
        assert set(np.flatnonzero(found[row] > operations.LOWEST)) == set(wanted.numpy())


def test_without_openvino_the_command_says_what_to_install(monkeypatch, tmp_path):
    imported = builtins.__import__

    def absent(name, *arguments, **options):
        if name.split(".")[0] == "openvino":
            raise ImportError(name)
        return imported(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", absent)
    done = commands.in_process(
        "export.command", "--model_dir=run", f"--output_dir={tmp_path}", "--format=openvino"
    )
    assert done.returncode == 2 and "pip install" in done.stderr
