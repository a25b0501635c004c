"""How far OpenVINO's and ONNX Runtime's answers are from the model's, on many images.

Example:
  python -m benchmarks.export_parity --classes=1,80,3000

R-50-FPN with random weights. Images are noise and one of black, landscape and portrait, of sizes
that need no resizing.
"""

from __future__ import annotations

import pathlib
import tempfile

import numpy as np
import tensorflow as tf
from absl import flags

from benchmarks import cases, models, timing
from maskx_tf.data.classes import Vocabulary
from maskx_tf.inference import graph_model
from maskx_tf.inference.module import DetectionModule
from maskx_tf.system import cli


def define_flags() -> None:
    """Defines this command's flags."""
    flags.DEFINE_list("classes", ["1", "80", "3000"], "Numbers of classes.")
    flags.DEFINE_list("formats", ["openvino", "onnx"], "Formats of the exports.")
    flags.DEFINE_string("size", "128x192", "Height x width of the network's input.")
    flags.DEFINE_integer("images", 100, "Images that are compared.", 1)


def pictures(height: int, width: int, count: int) -> list[np.ndarray]:
    """uint8 [1, h, w, 3], every other a portrait; smooth noise, and the last is black."""
    generator, made = np.random.default_rng(0), []
    for number in range(count):
        coarse = generator.uniform(0, 255, [6 + number % 20, 8, 3])
        image = tf.image.resize(coarse, [height, width - number % 7 * 4], method="bicubic").numpy()
        image = np.clip(image, 0, 255).astype(np.uint8)
        made.append((image.transpose(1, 0, 2) if number % 2 else image)[None])
    return [*made[:-1], np.zeros_like(made[-1])]


def main() -> None:
    """Prints a line for each number of classes and format."""
    from export import comparison
    from export.openvino_ir import version

    values = flags.FLAGS
    height, width = cases.size(values.size, "size")
    images = pictures(height, width, values.images)
    print(timing.machine())
    for count in map(int, values.classes):
        config = models.configuration(height, width)
        model = models.random_model(config, count)
        vocabulary = Vocabulary.from_names(f"class {c}" for c in range(1, count + 1))
        module = DetectionModule(model, config, vocabulary, (1,))
        wanted = [
            {k: v.numpy() for k, v in module.detect_images(tf.constant(image)).items()}
            for image in images
        ]
        number = sum(int(outputs["num_detections"][0]) for outputs in wanted)
        graph = version.convert(model, config, vocabulary, (1,))
        for kind in values.formats:
            with tempfile.TemporaryDirectory() as temporary:
                directory = pathlib.Path(temporary) / "1"
                what = (config, vocabulary, (1,), directory, "maskx", kind)
                version.write(graph.model, graph.prompts, *what)
                detect = graph_model.GraphModel(directory, vocabulary)
                found = [detect(image) for image in images]
            pairs = list(zip(found, wanted, strict=True))
            problems = [comparison.difference(*pair, version.TOLERANCE) for pair in pairs]
            differ = [problem for problem in problems if problem]
            print(
                f"  {count} classes, {kind}: {len(images) - len(differ)} of {len(images)} images "
                f"agree within {version.TOLERANCE[:3]}, {number} detections"
                f"{'; first difference: ' + differ[0] if differ else ''}",
                flush=True,
            )


if __name__ == "__main__":
    define_flags()
    cli.run(main)
