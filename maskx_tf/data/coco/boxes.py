"""Boxes of a COCO json, checked and clipped."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from maskx_tf.data.coco.values import as_number

_MIN_SIDE = 0.01  # pixels; what is thinner is as good as empty
_NORMALISED_PX = 8  # least side of an image in which a box within one pixel is no object


def clean_box(bbox: Any, height: int, width: int) -> tuple[np.ndarray | None, list[str]]:
    """A COCO bbox as box_yxyx, clipped to the image.

    Args:
      bbox: [x, y, width, height] in pixels, as it stands in the json.
      height: of the image.
      width: of the image.

    Returns:
      float64 [4] or None if it is unusable, and the reasons (of `issues`) for every change.
    """
    if bbox is None or bbox == []:
        return None, ["box_missing"]
    if not isinstance(bbox, list) or len(bbox) != 4:
        return None, ["box_not_numeric"]
    values = [number for value in bbox if (number := as_number(value)) is not None]
    if len(values) < 4:
        return None, ["box_not_numeric"]
    if not all(map(math.isfinite, values)):
        return None, ["box_not_finite"]
    x, y, box_width, box_height = values
    if box_width < _MIN_SIDE or box_height < _MIN_SIDE:
        return None, ["box_empty"]
    is_within_one = min(values) >= 0 and max(values) <= 1 and min(height, width) >= _NORMALISED_PX
    if is_within_one and not all(value.is_integer() for value in values):
        return None, ["box_normalised"]
    corners = (y, x, y + box_height, x + box_width)
    limits = (height, width, height, width)
    box = [min(max(value, 0.0), limit) for value, limit in zip(corners, limits, strict=True)]
    if box[2] - box[0] < _MIN_SIDE or box[3] - box[1] < _MIN_SIDE:
        return None, ["box_outside_image"]
    changed = any(abs(a - b) > _MIN_SIDE for a, b in zip(box, corners, strict=True))
    return np.array(box, np.float64), ["box_clipped"] if changed else []
