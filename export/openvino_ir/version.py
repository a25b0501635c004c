"""Writes a model as an OpenVINO or ONNX model, in the layout that model servers read."""

from __future__ import annotations

import json
import pathlib
import string
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import openvino as ov
import tensorflow as tf

from export import comparison, versions
from export.openvino_ir import network, quantization
from maskx_tf.assembly import rebuilt
from maskx_tf.config import Config
from maskx_tf.data import preprocessing
from maskx_tf.data.classes import Vocabulary
from maskx_tf.errors import UserError
from maskx_tf.inference import detector, folding, graph_model, onnx_model, openvino_model
from maskx_tf.inference.module import DetectionModule

# Of images that need no resizing, which OpenVINO rounds differently in one pixel of 2,000.
TOLERANCE = comparison.Tolerance(boxes=1e-2, scores=1e-4, masks=2)
PROMPTS = TOLERANCE._replace(
    scores=0.01
)  # a pixel at exactly 0.5 changes what is expected by so much
PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}  # ours: OpenVINO's INFERENCE_PRECISION_HINT

_HOW = {
    "openvino": """\
`model.xml` and `model.bin` are an OpenVINO model; this directory is one version of it. Serve the
directory above it (OUTPUT_DIR below) with OpenVINO Model Server:

```bash
docker run --rm -p 8500:8500 -p 8501:8501 -v "$$PWD/OUTPUT_DIR:/models/$model_name:ro" \\
    openvino/model_server --port 8500 --rest_port 8501 \\
    --config_path /models/$model_name/$version/config.json
```
""",
    "onnx": """\
`model.onnx` is a model of the standard operations of ONNX, opset 18; ONNX Runtime runs it.
""",
}
_IN_PYTHON = {
    "openvino": """\
In Python, `maskx_tf.load("OUTPUT_DIR")` loads it. With OpenVINO alone, set the precision that the
export was compared in: on processors with bfloat16 OpenVINO's own choice is bfloat16.

```python
compiled = openvino.compile_model("model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "$hint"})
```
""",
    "onnx": """\
In Python, `maskx_tf.load("OUTPUT_DIR")` loads it. With ONNX Runtime alone:

```python
session = onnxruntime.InferenceSession("model.onnx")
outputs = session.run(None, {"images": images})  # in the order of session.get_outputs()
```
""",
}
_SERVING = string.Template("""\
# Serving this model

$how
The input `images` is uint8 RGB [B, H, W, 3], images of one size. Outputs, for B images:

$outputs

Boxes are (y1, x1, y2, x2) in pixels of these images. A mask is 255 times the probability over its
box, or over `detection_mask_windows` where these are among the outputs. `detection_mask_seen` is
false for classes that had no masks in training. `assets/classes.json` lists the classes.

The model in `box_prompts/1` gives masks to boxes, in float32. Its inputs are also `boxes`, float32
[B, N, 4], N at least 1, and `classes`, int32 [B, N], 0 for the likeliest; its outputs are the same
in the order of the boxes, with the IoU that the model expects of a mask as its score.

$in_python""")


class Int8(NamedTuple):
    """What layers in int8 are calibrated on and may cost, see `quantization`."""

    records: Sequence[str]
    max_drop: float = 0.5


def export(
    model,
    config: Config,
    vocabulary: Vocabulary,
    mask_class_ids: Sequence[int],
    output_dir: str,
    images: Sequence[np.ndarray] = (),
    model_name: str = "maskx",
    int8: Int8 | None = None,
    kind: str = "openvino",
) -> tuple[str, str]:
    """Writes an OpenVINO or ONNX model, its float32 form proven equal to the model.

    Args:
      model: a `MaskXRCNN`.
      config: its options; of `precision` bfloat16 the settings ask OpenVINO to compute in it.
      vocabulary: its classes, written to `assets/classes.json`.
      mask_class_ids: set A.
      output_dir: directory of versions; the next free number is taken.
      images: uint8 [H, W, 3] RGB, to compare on besides random ones.
      model_name: in `config.json`.
      int8: layers are to compute in int8; of OpenVINO only.
      kind: "openvino" or "onnx".

    Returns:
      The path OUTPUT_DIR/<version>, and with `int8` a table of AP before and after.

    Raises:
      UserError: the graph cannot be written for OpenVINO, or gives other results than the model;
        nothing is kept then.
    """
    require_supported(config)
    asked = [resized(image, config) for image in images] + comparison.random_images(config, 2)
    batches = [image[None] for image in asked] + [np.stack(asked[-2:])]  # the last two: portraits
    reference = DetectionModule(model, config, vocabulary, mask_class_ids)
    expected = [reference.detect_images(tf.constant(batch)) for batch in batches]
    with versions.unfinished(output_dir) as directory:
        graph = convert(model, config, vocabulary, mask_class_ids)
        what = (graph.prompts, config, vocabulary, mask_class_ids)
        write(graph.model, *what, directory, model_name, kind)
        detect = graph_model.GraphModel(directory, vocabulary)
        for number, (batch, wanted) in enumerate(zip(batches, expected, strict=True), start=1):
            _compare(detect(batch), wanted, config, f"request {number} of {len(batches)}")
        prompts = graph_model.GraphPrompts(directory, vocabulary)
        for number, image in enumerate(asked, start=1):
            given = comparison.prompts(image, vocabulary.names)
            wanted = reference.segment_boxes(tf.io.encode_png(image)[None], **given)
            boxes, names = (value[0].numpy() for value in given.values())
            _compare(
                prompts(image, boxes, names), wanted, config, f"boxes in image {number}", PROMPTS
            )
        table = ""
        if int8:
            directory = directory.with_name("int8")
            pictures = quantization.calibration_images(int8.records)
            write(quantization.quantize(graph, pictures), *what, directory, model_name)
            pair = (detect, graph_model.GraphModel(directory, vocabulary))
            before, after = (detector.Detector(one, vocabulary) for one in pair)
            table = quantization.compare(before, after, int8.records, mask_class_ids, int8.max_drop)
        return str(versions.publish(directory, output_dir)), table


def require_supported(config: Config) -> None:
    """A UserError where the graph has no counterpart in OpenVINO."""
    supported: dict[str, Any] = {
        "box_roi_op": "align",
        "mask_roi_op": "align",
        "loss_joint": 0.0,
        "box_passes": 1,
        "point_head": "none",
        "mask_scoring": "none",
        "semantic_head": "none",
    }
    if config.cascade_ious:  # each group of classes has a cascade of its own
        supported["class_groups"] = config.class_groups[:1]
    if config.has_mnc:
        supported["box_head"] = "fc"
    for name, value in supported.items():
        if getattr(config, name) != value:
            raise UserError(
                f"A model with --{name}={getattr(config, name)} cannot be exported for OpenVINO or "
                f"ONNX, only one with --{name}={value}; leave out --format."
            )


def resized(image: np.ndarray, config: Config) -> np.ndarray:
    """An image uint8 [H, W, 3] of the size that the network sees it in."""
    sides = config.image_min_side, config.image_max_side
    canvas, size, _ = preprocessing.resize_and_pad(tf.constant(image), *sides)
    height, width = (int(side) for side in size.numpy())
    return canvas.numpy()[:height, :width]


def convert(
    model, config: Config, vocabulary: Vocabulary, mask_class_ids: Sequence[int]
) -> network.Graph:
    """The graph; `model` stays as it is. Arguments are those of `export`."""
    plain = config.replace(precision="float32", convolutions="direct")
    copied = rebuilt(model, plain)
    folding.fold(copied)
    seen = [number in set(mask_class_ids) for number in range(vocabulary.num_classes + 1)]
    return network.detector(copied, plain, seen)


def write(
    graph: ov.Model,
    prompts: ov.Model,
    config: Config,
    vocabulary: Vocabulary,
    mask_class_ids: Sequence[int],
    directory: pathlib.Path,
    model_name: str,
    kind: str = "openvino",
) -> None:
    """Writes the files of a version into a new directory; arguments are those of `export`."""
    assets, of_boxes = directory / "assets", directory / graph_model.PROMPTS
    assets.mkdir(parents=True)
    of_boxes.mkdir(parents=True)
    versions.write_classes(assets, vocabulary, mask_class_ids)
    for model, place in ((graph, directory), (prompts, of_boxes)):
        if kind == "onnx":
            import onnx

            from export.openvino_ir import onnx_graph

            onnx.save(onnx_graph.convert(model), str(place / onnx_model.MODEL_FILE))
        else:
            path = str(place / openvino_model.MODEL_FILE)
            ov.save_model(model, path, compress_to_fp16=False)
    hint = PRECISIONS[config.precision]
    if kind == "openvino":
        served = {
            "name": model_name,
            "base_path": f"/models/{model_name}",
            "plugin_config": {"INFERENCE_PRECISION_HINT": hint},
        }
        text = json.dumps({"model_config_list": [{"config": served}]}, indent=1)
        (directory / openvino_model.CONFIG_FILE).write_text(text + "\n")
    width = max(len(output.any_name) for output in graph.outputs)
    outputs = (
        f"    {output.any_name:{width}}  {output.element_type.to_string()} {output.partial_shape}"
        for output in graph.outputs
    )
    names = {"model_name": model_name, "version": "VERSION", "hint": hint}
    how, in_python = (string.Template(text[kind]).substitute(names) for text in (_HOW, _IN_PYTHON))
    text = _SERVING.substitute(how=how, in_python=in_python, outputs="\n".join(outputs))
    (assets / "SERVING.md").write_text(text)


def _compare(
    found: comparison.Outputs,
    wanted,
    config: Config,
    description: str,
    tolerance: comparison.Tolerance = TOLERANCE,
) -> None:
    if config.precision != "float32":
        tolerance = comparison.TOLERANCES["bfloat16"]
    wanted = {key: value.numpy() for key, value in wanted.items()}
    if problem := comparison.difference(found, wanted, tolerance):
        raise UserError(
            f"The model is not kept: for {description} it differs from the model: "
            f"{problem}. Please report this."
        )
