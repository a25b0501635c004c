"""An OpenVINO or ONNX export as functions of images and of boxes."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from maskx_tf.data.classes import Vocabulary
from maskx_tf.errors import UserError
from maskx_tf.inference import onnx_model, openvino_model
from maskx_tf.inference.inputs import MOST_BOXES

_SESSIONS: dict[str, type[openvino_model.Session] | type[onnx_model.Session]] = {
    openvino_model.MODEL_FILE: openvino_model.Session,
    onnx_model.MODEL_FILE: onnx_model.Session,
}
MODEL_FILES = tuple(_SESSIONS)
PROMPTS = "box_prompts/1"  # where a model server looks for version 1 of a model


def is_version(directory: pathlib.Path) -> bool:
    """Whether a directory is a version of such an export, or its `PROMPTS`."""
    return any((directory / name).is_file() for name in MODEL_FILES)


class _Loaded:
    """A model of a version, ready to run; several threads may call it.

    Args:
      directory: the version.
      vocabulary: its classes.
      threads: that it computes in; 0: the runtime's choice.

    Attributes:
      shapes: of the outputs by name, None where a dimension follows from the inputs.

    Raises:
      UserError: the runtime is missing, or cannot read the model.
    """

    _at = "."

    def __init__(self, directory: pathlib.Path, vocabulary: Vocabulary, threads: int = 0):
        place = directory / self._at
        name = next(name for name in MODEL_FILES if (place / name).is_file())
        self._session = _SESSIONS[name](directory, place / name, threads)
        names = (name.encode() for name in ("background", *vocabulary.names))
        self._names = np.array(list(names), object)  # [K + 1]
        self.shapes = dict(self._session.shapes)
        self.shapes["detection_class_names"] = self.shapes["detection_classes"]

    def run(self, **inputs: npt.ArrayLike) -> dict[str, np.ndarray]:
        """The outputs for inputs by name, as of `module.DetectionModule`."""
        found = self._session({name: np.asarray(value) for name, value in inputs.items()})
        return found | {"detection_class_names": self._names[found["detection_classes"]]}


class GraphModel(_Loaded):
    """A loaded version: images uint8 [B, H, W, 3] -> outputs as of `module.DetectionModule`."""

    def __call__(self, images: npt.ArrayLike) -> dict[str, np.ndarray]:
        """The detections of images uint8 [B, H, W, 3]."""
        return self.run(images=images)


class GraphPrompts(_Loaded):
    """What gives masks to boxes in a loaded version."""

    _at = PROMPTS

    def __init__(self, directory: pathlib.Path, vocabulary: Vocabulary, threads: int = 0):
        super().__init__(directory, vocabulary, threads)
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
