"""Boxes, polygons and masks of label files, in pixels of the image."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from maskx_tf.ops import masks as mask_ops

NO_MASK = "not a mask"  # in place of a segmentation; COCO's rules list it as one they cannot read
MAX_PIXELS = 1 << 28  # of a mask; more than any image that can be opened has
_DIGITS = 6  # of a pixel; shares and percentages of a side become whole pixels where they were
_ELLIPSE_POINTS = 64
_FAR = 10  # image sides beyond which a polygon's coordinate cannot be meant
_FEWEST = 6  # numbers of a polygon


def pixels(value: float, side: float) -> float:
    """A share of a side in pixels."""
    return round(value * side, _DIGITS)


def bounds(polygon: Sequence[float]) -> list[float]:
    """[x, y, width, height] around a polygon [x, y, x, y, ...]."""
    return box_around(zip(polygon[::2], polygon[1::2], strict=True))


def box_around(points: Iterable[tuple[float, float]]) -> list[float]:
    """[x, y, width, height] around points (x, y)."""
    xs, ys = zip(*points, strict=True)
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]


def box_of_corners(x1: float, y1: float, x2: float, y2: float) -> list[float]:
    """[x, y, width, height]."""
    return [x1, y1, round(x2 - x1, _DIGITS), round(y2 - y1, _DIGITS)]


def turned(
    points: Iterable[tuple[float, float]], degrees: float, x: float, y: float
) -> list[tuple[float, float]]:
    """Points (x, y) around the origin turned clockwise, then moved by x, y."""
    angle = math.radians(degrees)
    cos, sin = math.cos(angle), math.sin(angle)
    return [(x + px * cos - py * sin, y + px * sin + py * cos) for px, py in points]


def ellipse(x: float, y: float, rx: float, ry: float, degrees: float) -> list[float]:
    """A polygon [x, y, x, y, ...] on an ellipse of a centre, two radii and a rotation."""
    angles = [2 * math.pi * step / _ELLIPSE_POINTS for step in range(_ELLIPSE_POINTS)]
    points = [(rx * math.cos(angle), ry * math.sin(angle)) for angle in angles]
    return [value for point in turned(points, degrees, x, y) for value in point]


def united(parts: Sequence[Any], size: tuple[int, int] | None) -> Any:
    """The segmentation of an object that is labelled in parts.

    Args:
      parts: polygons [x, y, x, y, ...], COCO's run-length codes, or NO_MASK.
      size: (width, height) of the image; None if unknown.

    Returns:
      Polygons if all parts are such; else a run-length code, or NO_MASK if a part is none.
    """
    if all(isinstance(part, list) for part in parts):
        return list(parts)
    codes = [_code(part, size) for part in parts]
    if any(code is None for code in codes):
        return NO_MASK
    united = codes[0]
    for code in codes[1:]:
        united = mask_ops.encode_rle(mask_ops.decode_rle(united) | mask_ops.decode_rle(code))
    return united


def _code(part: Any, size: tuple[int, int] | None) -> Any:
    if isinstance(part, dict):
        return part
    is_polygon = isinstance(part, list) and len(part) >= _FEWEST and len(part) % 2 == 0
    if not is_polygon or size is None or not are_finite(part):
        return None
    if max(map(abs, part)) > _FAR * max(size):
        return None
    return mask_ops.segmentation_to_rle([part], size[1], size[0])


def are_finite(values: Iterable[Any]) -> bool:
    """Whether all are finite floats."""
    return all(isinstance(value, float) and math.isfinite(value) for value in values)
