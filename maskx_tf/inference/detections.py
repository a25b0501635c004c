"""What the served model found in an image: typed, in original pixels, masks pasted on demand."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from maskx_tf.errors import UserError
from maskx_tf.ops import masks as mask_ops
from maskx_tf.ops import polygons

_KINDS = {  # output: (dtype, rank), without the batch dimension; D detections, masks m × m
    "num_detections": (np.int32, 0),
    "detection_boxes": (np.float32, 2),
    "detection_scores": (np.float32, 1),
    "detection_classes": (np.int32, 1),
    "detection_class_names": (np.object_, 1),
    "detection_masks": (np.uint8, 3),
    "detection_mask_seen": (np.bool_, 1),
    "image_size": (np.int32, 1),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Detection:
    """An object in an image.

    Attributes:
      class_name: name of its class.
      class_id: number of its class in the model, 1..K; not the data set's own category id.
      score: 0 to 1.
      box_yxyx: (y1, x1, y2, x2), pixels of the original image, exclusive corners.
      mask_seen: whether the class had training masks (set A of the paper).
      box_mask: uint8 [m, m], 255 times the mask's probability over the box.
      image_size: (height, width) of the image in pixels; of a photograph with an EXIF orientation
        that the model honours, as it is seen upright.
    """

    class_name: str
    class_id: int
    score: float
    box_yxyx: tuple[float, float, float, float]
    mask_seen: bool
    box_mask: np.ndarray
    image_size: tuple[int, int]

    def mask(self, threshold: float = 0.5) -> np.ndarray:
        """The mask in the image, uint8 {0, 1} [height, width]; pasting as of `ops.masks`."""
        return mask_ops.paste_mask(
            self.box_mask / 255.0, self.box_yxyx, *self.image_size, threshold
        )

    def rle(self, threshold: float = 0.5) -> mask_ops.Rle:
        """The mask as COCO's compressed run-length code."""
        values, boxes = self.box_mask[None] / 255.0, np.array([self.box_yxyx])
        return mask_ops.paste_to_rle(values, boxes, *self.image_size, threshold)[0]

    def polygons(self, threshold: float = 0.5) -> list[list[float]]:
        """The mask's exact outline as COCO polygons [x1, y1, x2, y2, …]; see `polygons`."""
        region, top, left = mask_ops.paste_region(
            self.box_mask / 255.0, self.box_yxyx, *self.image_size, threshold
        )
        return polygons.outline(region, top, left)

    @property
    def box_xywh(self) -> tuple[float, float, float, float]:
        """The box as COCO writes it."""
        y1, x1, y2, x2 = self.box_yxyx
        return x1, y1, x2 - x1, y2 - y1


@dataclasses.dataclass(frozen=True, eq=False)
class ImageDetections:
    """The objects of an image, best first.

    Attributes:
      name: what the image was given as: its path, or the name given with its bytes.
      image_size: (height, width) in pixels, as of `Detection`.
      detections: its objects, by descending score.
    """

    name: str
    image_size: tuple[int, int]
    detections: tuple[Detection, ...]


def parse(outputs: Mapping[str, Any], name: str, server: str) -> ImageDetections:
    """The objects in a model's outputs for one image (arrays or lists, without batch dimension).

    Args:
      outputs: as of `maskx_tf.inference.module.DetectionModule`; others are ignored.
      name: of the image.
      server: what error messages call the model.

    Raises:
      UserError: they are not the outputs of a model of this project.
    """
    arrays = {key: _array(outputs, key, *kind, server) for key, kind in _KINDS.items()}
    height, width = (int(side) for side in arrays["image_size"])
    count = int(arrays["num_detections"])
    return ImageDetections(
        name,
        (height, width),
        tuple(_detection(arrays, index, (height, width)) for index in range(count)),
    )


def _detection(arrays: dict[str, np.ndarray], index: int, size: tuple[int, int]) -> Detection:
    y1, x1, y2, x2 = (float(v) for v in arrays["detection_boxes"][index])
    class_name = arrays["detection_class_names"][index]
    return Detection(
        class_name=class_name.decode() if isinstance(class_name, bytes) else class_name,
        class_id=int(arrays["detection_classes"][index]),
        score=float(arrays["detection_scores"][index]),
        box_yxyx=(y1, x1, y2, x2),
        mask_seen=bool(arrays["detection_mask_seen"][index]),
        box_mask=arrays["detection_masks"][index],
        image_size=size,
    )


def _array(outputs: Mapping[str, Any], key: str, dtype: type, rank: int, server: str) -> np.ndarray:
    try:
        array: np.ndarray = np.asarray(outputs[key], dtype)
    except KeyError:
        raise UserError(
            f"{server} has no output {key}: it was not made by export.saved_model."
        ) from None
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{server}: its output {key} cannot be read: {error}.") from None
    if array.ndim != rank:
        raise UserError(f"{server}: its output {key} has {array.ndim} dimensions, not {rank}.")
    return array
