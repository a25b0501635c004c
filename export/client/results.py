"""Detections as COCO results, with masks as run-length codes, polygons or files; and pictures."""

from __future__ import annotations

import io
import json
import pathlib
from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image, ImageOps

from export.client.errors import ImageError
from maskx_tf.errors import UserError
from maskx_tf.inference.detections import Detection, ImageDetections
from maskx_tf.system.files import write_atomically

# Fields of a result that hold a detection's mask.
Fields = dict[str, object]


def rle_fields(detection: Detection) -> Fields:
    """The mask as COCO's compressed run-length code."""
    return {"segmentation": detection.rle()}


def polygon_fields(detection: Detection) -> Fields:
    """The mask as polygons; see `maskx_tf.ops.polygons`."""
    return {"segmentation": detection.polygons()}


def write_mask(detection: Detection, path: pathlib.Path) -> None:
    """Writes the mask as a PNG of the image's size, 255 where it is set."""
    buffer = io.BytesIO()
    Image.fromarray(detection.mask() * np.uint8(255)).save(buffer, "PNG")
    write_atomically(path, buffer.getvalue())


def to_coco(
    found: ImageDetections,
    image_id: int,
    file_name: str,
    mask_fields: Callable[[Detection], Fields] = rle_fields,
    category_ids: Mapping[str, int] | None = None,
    min_score: float = 0.0,
) -> list[dict]:
    """The detections of one image as COCO results, as `python -m maskx_tf.predict` writes them.

    Args:
      found: of one image.
      image_id: goes into the results.
      file_name: too.
      mask_fields: what a result says of the mask.
      category_ids: the data set's ids by class name; None: the numbers of the classes in the
        model, which are those of their order in the vocabulary, from 1.
      min_score: detections below it are left out.

    Raises:
      UserError: `category_ids` lacks a class.
    """
    return [
        {
            "image_id": image_id,
            "file_name": file_name,
            "category_id": _category_id(detection, category_ids),
            "category_name": detection.class_name,
            "bbox": [round(v, 3) for v in detection.box_xywh],
            "score": round(detection.score, 6),
            **mask_fields(detection),
            "mask_seen": detection.mask_seen,
        }
        for detection in found.detections
        if detection.score >= min_score
    ]


def _category_id(detection: Detection, category_ids: Mapping[str, int] | None) -> int:
    if category_ids is None:
        return detection.class_id
    if detection.class_name not in category_ids:
        raise UserError(f"--annotations has no category {detection.class_name!r} of the model.")
    return category_ids[detection.class_name]


def category_ids(annotations: str) -> dict[str, int] | None:
    """Ids by name of the categories in a COCO json; None without one."""
    if not annotations:
        return None
    try:
        categories = json.loads(pathlib.Path(annotations).read_text())["categories"]
        return {category["name"].strip(): category["id"] for category in categories}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"--annotations={annotations} is not a COCO json: {error!r}.") from None


def read_upright(path: pathlib.Path, image_size: tuple[int, int]) -> np.ndarray:
    """The picture that detections refer to, uint8 RGB [height, width, 3].

    Args:
      path: image file.
      image_size: (height, width) as of the detections: it tells whether the model honours an
        orientation in the file's EXIF data.

    Raises:
      ImageError: it cannot be read, or is not of that size either way.
    """
    try:
        with Image.open(path) as stored:
            is_jpeg = stored.format in ("JPEG", "MPO")  # the model turns no others
            upright = ImageOps.exif_transpose(stored) if is_jpeg else stored
            for picture in (upright, stored):
                if (picture.height, picture.width) == image_size:
                    return _rgb(picture)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise ImageError(f"{path} cannot be drawn on: {error}") from None
    raise ImageError(
        f"{path} cannot be drawn on: it has {upright.width} × {upright.height} pixels here, and "
        f"{image_size[1]} × {image_size[0]} for the server."
    )


def _rgb(picture: Image.Image) -> np.ndarray:
    """uint8 RGB [height, width, 3]; of 16 bits the upper 8, as the model takes them."""
    if picture.mode.startswith("I;16"):
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    return np.asarray(picture.convert("RGB"))
