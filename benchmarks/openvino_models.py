"""Our model as an OpenVINO or ONNX export, for the measurements of inference."""

import pathlib
import tempfile

import numpy as np

from benchmarks import models
from maskx_tf.data.classes import Vocabulary
from maskx_tf.inference import graph_model

CALIBRATION_IMAGES = 4  # of noise: they decide on rounding, not on speed


def write(directory: pathlib.Path, height: int, width: int, num_classes: int, form: str) -> None:
    """Writes a version with random weights; `form` is float32, bfloat16, int8 or onnx."""
    from export.openvino_ir import quantization, version

    precision = "bfloat16" if form == "bfloat16" else "float32"
    config = models.configuration(height, width, precision=precision)
    model = models.random_model(config, num_classes)
    classes = Vocabulary.from_names(f"class {c}" for c in range(1, num_classes + 1)), (1,)
    graph = version.convert(model, config, *classes)
    exported = graph.model
    if form == "int8":
        generator = np.random.default_rng(1)
        shape = [CALIBRATION_IMAGES, height, width, 3]
        images = list(generator.integers(0, 256, shape, np.uint8))
        exported = quantization.quantize(graph, images)
    kind = "onnx" if form == "onnx" else "openvino"
    version.write(exported, graph.prompts, config, *classes, directory, "maskx", kind)


def load(directory: pathlib.Path, height: int, width: int):
    """A run of a version on one image."""
    vocabulary = Vocabulary.load(directory / "assets" / "classes.json")
    detect = graph_model.GraphModel(directory, vocabulary)
    image = np.random.default_rng(0).integers(0, 256, [1, height, width, 3], np.uint8)
    return lambda: detect(image)


def exported(height: int, width: int, num_classes: int, form: str):
    """A run of a new version on one image."""
    with tempfile.TemporaryDirectory() as temporary:
        directory = pathlib.Path(temporary) / "model"
        write(directory, height, width, num_classes, form)
        return load(directory, height, width)
