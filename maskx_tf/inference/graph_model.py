"""An OpenVINO export as functions of images and of boxes; needs the package openvino."""

from __future__ import annotations

import json
import pathlib
import threading
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from maskx_tf.data.classes import Vocabulary
from maskx_tf.errors import UserError
from maskx_tf.inference.segmenter import MOST_BOXES

MODEL_FILE = "model.xml"
PROMPTS_FILE = "box_prompts/1/model.xml"  # where a model server looks for version 1 of a model
CONFIG_FILE = "config.json"  # of OpenVINO Model Server


def require() -> Any:
    """The package openvino; a UserError that says how to install it."""
    try:
        import openvino
    except ImportError:
        raise UserError(
            "OpenVINO is not installed: pip install openvino, or with the checkout "
            'pip install -c requirements.lock -e ".[openvino]".'
        ) from None
    return openvino


class _Compiled:
    """A model of a version, ready to run; several threads may call it, and take turns.

    Args:
      directory: the version.
      file: in it.
      vocabulary: its classes.
      threads: that it computes in; 0: OpenVINO's choice.

    Attributes:
      shapes: of the outputs by name, None where a dimension follows from the inputs.

    Raises:
      UserError: OpenVINO is missing, or cannot read the model.
    """

    def __init__(self, directory: pathlib.Path, file: str, vocabulary: Vocabulary, threads: int):
        openvino = require()
        settings = json.loads((directory / CONFIG_FILE).read_text())["model_config_list"][0]
        options = dict(settings["config"]["plugin_config"])
        if threads:
            options["INFERENCE_NUM_THREADS"] = threads
        path = directory / file
        try:
            self._compiled = openvino.Core().compile_model(str(path), "CPU", options)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise UserError(f"{path} cannot be loaded: {reason}") from None
        names = (name.encode() for name in ("background", *vocabulary.names))
        self._names = np.array(list(names), object)  # [K + 1]
        self._busy = threading.Lock()
        self.shapes = {
            output.any_name: [d.get_length() if d.is_static else None for d in output.partial_shape]
            for output in self._compiled.outputs
        }
        self.shapes["detection_class_names"] = self.shapes["detection_classes"]

    def run(self, **inputs: npt.ArrayLike) -> dict[str, np.ndarray]:
        """The outputs for inputs by name, as of `module.DetectionModule`."""
        with self._busy:
            results = self._compiled({name: np.asarray(value) for name, value in inputs.items()})
            found = {output.any_name: np.array(value) for output, value in results.items()}
        return found | {"detection_class_names": self._names[found["detection_classes"]]}


class OpenVINOModel(_Compiled):
    """A loaded version: images uint8 [B, H, W, 3] -> outputs as of `module.DetectionModule`."""

    def __init__(self, directory: pathlib.Path, vocabulary: Vocabulary, threads: int = 0):
        super().__init__(directory, MODEL_FILE, vocabulary, threads)

    def __call__(self, images: npt.ArrayLike) -> dict[str, np.ndarray]:
        """The detections of images uint8 [B, H, W, 3]."""
        return self.run(images=images)


class OpenVINOPrompts(_Compiled):
    """What gives masks to boxes in a loaded version."""

    def __init__(self, directory: pathlib.Path, vocabulary: Vocabulary, threads: int = 0):
        super().__init__(directory, PROMPTS_FILE, vocabulary, threads)
        self._ids = {name: number for number, name in enumerate(self._names) if number} | {b"": 0}

    def __call__(
        self, image: np.ndarray, boxes_yxyx: np.ndarray, class_names: Iterable[bytes | str]
    ) -> dict[str, np.ndarray]:
        """Masks of boxes, as `DetectionModule.segment_boxes` gives them.

        Args:
          image: uint8 RGB [H, W, 3].
          boxes_yxyx: float [N, 4] in its pixels, at most `MOST_BOXES`; they are clipped to it.
          class_names: of the boxes; of an empty one the likeliest class is taken.

        Raises:
          UserError: a box has no area in the image, a class is unknown, or there are too many.
        """
        names = [name.encode() if isinstance(name, str) else name for name in class_names]
        if unknown := [name.decode(errors="replace") for name in names if name not in self._ids]:
            raise UserError(f"The model does not know the classes {', '.join(unknown)}.")
        if len(names) != len(boxes_yxyx) or len(names) > MOST_BOXES:
            raise UserError(
                f"The request has {len(boxes_yxyx)} boxes and {len(names)} classes; at most "
                f"{MOST_BOXES}, as many of each."
            )
        height, width = image.shape[:2]
        boxes = np.clip(boxes_yxyx, 0, [height, width, height, width]).astype(np.float32)
        if not (boxes[:, 2:] > boxes[:, :2]).all():
            raise UserError("A box has no area in the image.")
        classes = np.array([self._ids[name] for name in names], np.int32)
        if len(boxes):
            return self.run(images=image[None], boxes=boxes[None], classes=classes[None])
        whole = np.array([[[0, 0, height, width]]], np.float32)  # the graph needs a box
        found = self.run(images=image[None], boxes=whole, classes=np.ones([1, 1], np.int32))
        none = {key: value[:, :0] for key, value in found.items() if key.startswith("detection")}
        return found | none | {"num_detections": np.zeros([1], np.int32)}
