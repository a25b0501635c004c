"""The ONNX export gives what the checkpoint gives; the graphs are those of the OpenVINO export."""

import numpy as np
import pytest

from export.serving import server
from maskx_tf.errors import UserError
from maskx_tf.inference import detector
from tests.test_export_openvino import export, images, require_equal

openvino = pytest.importorskip("openvino")
pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")

from export.openvino_ir import onnx_graph  # noqa: E402 (they need openvino and onnx)
from maskx_tf.inference import onnx_model  # noqa: E402


@pytest.mark.thorough
def test_detections_and_masks_are_those_of_the_checkpoint(tmp_path):
    export(tmp_path, "onnx")
    assert require_equal(tmp_path) > 0
    path, image = tmp_path / "export" / "1", images()[0]
    assert {file.name for file in path.iterdir()} == {"assets", "box_prompts", "model.onnx"}
    opset = onnx.load(str(path / "model.onnx")).opset_import[0]
    assert (opset.domain, opset.version) == ("", onnx_graph.OPSET)
    assert "onnxruntime.InferenceSession" in (path / "assets" / "SERVING.md").read_text()
    boxes = [[0, 0, 60, 90], [5, 8, 40, 30]]
    ours, theirs = (
        load(str(directory)).masks(image, boxes, ["ant", "dog"])
        for load, directory in (
            (detector.load_export, tmp_path / "export"),
            (detector.load_checkpoint, tmp_path / "run"),
        )
    )
    assert np.abs(ours.box_masks / 255.0 - theirs.box_masks).max() < 2 / 255
    servable = server.load(str(path), (0, 0))
    answer = servable.run("image_tensor", {"images": image[None]})
    found = detector.load_export(str(path)).detect(image[None])
    np.testing.assert_array_equal(answer["detection_boxes"], found["detection_boxes"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"conventions": "detectron", "anchor_offset": 0.0, "mask_output": "class_specific"},
        {"class_groups": (3, 1), "mask_roi_scale": 1.5, "mask_norm": "group_norm"},
        {"box_head": "conv", "mask_branches": ("cam", "coords"), "mask_mlp": True},
        {"conventions": "torchvision", "score_threshold": 1.0},  # no detections
    ],
    ids=["detectron", "groups", "cam", "torchvision"],
)
def test_options_survive(changes, tmp_path):
    export(tmp_path, "onnx", **changes)
    require_equal(tmp_path)


def outputs_of(model: openvino.Model, tmp_path, *values) -> list[tuple[np.ndarray, np.ndarray]]:
    """What OpenVINO and ONNX Runtime make of values."""
    for number, node in enumerate([*model.inputs, *model.outputs]):
        node.get_tensor().set_names({f"tensor_{number}"})
    onnx.save(onnx_graph.convert(model), str(tmp_path / "model.onnx"))
    session = onnx_model.Session(tmp_path, tmp_path / "model.onnx", 1)
    found = session(dict(zip((node.any_name for node in model.inputs), values, strict=True)))
    hint = {"INFERENCE_PRECISION_HINT": "f32"}
    wanted = openvino.compile_model(model, "CPU", hint)(list(values))
    return [(found[node.any_name], wanted[node.any_name]) for node in model.outputs]


def test_slices_quotients_and_gathers_are_openvinos(tmp_path):
    ops = openvino.opset15
    x = ops.parameter([-1, 5, 7], openvino.Type.f32)
    n = ops.parameter([-1, 2], openvino.Type.i32)

    def sliced(begin, end, strides, **masks):
        given = {key: masks.get(key, [0] * len(begin)) for key in ("begin_mask", "end_mask")}
        rest = {key: masks.get(key, []) for key in ("new_axis_mask", "shrink_axis_mask")}
        rest["ellipsis_mask"] = masks.get("ellipsis_mask", [])
        return ops.strided_slice(x, begin, end, strides, **given, **rest)

    results = [
        sliced([0, 1, 2], [0, 4, -1], [1, 2, 1], begin_mask=[1, 0, 0], end_mask=[1, 0, 0]),
        sliced([0, -1], [0, 0], [1, 1], shrink_axis_mask=[0, 1], ellipsis_mask=[1, 0]),
        sliced([0, 3], [0, 6], [1, 1], ellipsis_mask=[1, 0]),
        sliced([0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 2], begin_mask=[1, 1, 0, 1],
               end_mask=[1, 1, 0, 1], new_axis_mask=[0, 0, 1, 0]),
        ops.divide(n, ops.constant(np.int32(-3))),
        ops.floor_mod(n, ops.constant(np.int32(-3))),
        ops.mod(n, ops.constant(np.int32(-3))),
        ops.gather(x, n, ops.constant(np.int32(1)), batch_dims=1),
        ops.round(ops.multiply(x, ops.constant(np.float32(2.5))), "half_to_even"),
        ops.ceiling(ops.multiply(x, ops.constant(np.float32(0.3)))),
        ops.squared_difference(x, ops.constant(np.float32(2.5))),
        ops.reduce_logical_and(ops.greater(x, ops.constant(np.float32(-8))), ops.constant([1])),
        ops.reduce_logical_or(ops.greater(x, ops.constant(np.float32(8))), ops.constant([1])),
    ]  # fmt: skip
    generator = np.random.default_rng(0)
    values = generator.integers(-9, 9, [2, 5, 7]).astype(np.float32)
    places = np.array([[0, 4], [3, 1]], np.int32)
    for found, wanted in outputs_of(
        openvino.Model(results, [x, n], "test"), tmp_path, values, places
    ):
        assert found.dtype == wanted.dtype
        np.testing.assert_array_equal(found, wanted)


def test_an_unknown_operation_is_named():
    ops = openvino.opset15
    x = ops.parameter([2, 3], openvino.Type.f32)
    model = openvino.Model([ops.erf(x)], [x], "test")
    with pytest.raises(UserError, match="operation Erf"):
        onnx_graph.convert(model)
