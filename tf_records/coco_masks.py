"""COCO segmentations (polygons, RLE) to masks cropped to a box."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from pycocotools import mask as mask_lib

_FAR = 10  # image sides beyond which a polygon's coordinate cannot be meant


class MaskError(ValueError):
    """A segmentation that cannot be decoded."""


def crop_size(box_yxyx: np.ndarray, mask_size: int) -> tuple[int, int]:
    """(height, width) of the mask of a box: a pixel each, at most `mask_size` (0: no limit)."""
    sides = [max(1, math.ceil(side - 1e-6)) for side in (box_yxyx[2:] - box_yxyx[:2]).tolist()]
    height, width = (min(side, mask_size) if mask_size else side for side in sides)
    return height, width


def crop_mask(
    segmentation: Any, box_yxyx: np.ndarray, image_size: tuple[int, int], mask_size: int
) -> tuple[np.ndarray, bool]:
    """The part of a segmentation that lies in a box, stretched over the mask.

    Args:
      segmentation: polygons [[x, y, x, y, ...], ...], or RLE {"size": [h, w], "counts": a list, or
        a str as pycocotools compresses it}.
      box_yxyx: [4] float, pixels of the image, exclusive corners.
      image_size: (height, width) of the image that the segmentation was made for.
      mask_size: largest side of the result, 0: no limit.

    Returns:
      uint8 {0, 1} [h, w], and whether some polygons had to be left out.

    Raises:
      MaskError: nothing can be decoded.
    """
    size = crop_size(box_yxyx, mask_size)
    if isinstance(segmentation, dict):
        return sample(decode_rle(segmentation, image_size), box_yxyx, size), False
    if not isinstance(segmentation, list):
        raise MaskError(f"neither polygons nor RLE: {type(segmentation).__name__}")
    if segmentation and not isinstance(segmentation[0], list):
        segmentation = [segmentation]  # a single polygon without the outer list
    limit = _FAR * max(image_size)
    polygons = [points for part in segmentation if (points := _polygon(part, limit)) is not None]
    if not polygons:
        raise MaskError("no valid polygon")
    scale = np.array(size) / (box_yxyx[2:] - box_yxyx[:2])  # (y, x)
    moved = [((points - box_yxyx[1::-1]) * scale[::-1]).ravel().tolist() for points in polygons]
    mask = mask_lib.decode(mask_lib.merge(mask_lib.frPyObjects(moved, *size)))
    return mask, len(polygons) < len(segmentation)


def _polygon(part: Any, limit: float) -> np.ndarray | None:
    """float64 [n, 2] (x, y), or None if the part is no polygon."""
    if not isinstance(part, list) or len(part) < 6 or len(part) % 2:
        return None
    if not all(isinstance(value, (int, float)) for value in part):
        return None
    try:
        points = np.array(part, np.float64)
    except OverflowError:
        return None
    return points.reshape(-1, 2) if np.all(np.abs(points) <= limit) else None


def decode_rle(rle: dict[str, Any], image_size: tuple[int, int]) -> np.ndarray:
    """uint8 {0, 1} [height, width] of a COCO RLE; MaskError if it does not fill the image.

    pycocotools is not asked: it returns uninitialised memory for an RLE that is too short.
    """
    counts = rle.get("counts")
    if rle.get("size") != list(image_size):
        raise MaskError(f"RLE of size {rle.get('size')} for an image of {list(image_size)}")
    if isinstance(counts, (str, bytes)):
        counts = _decompress(counts.encode() if isinstance(counts, str) else counts)
    if not isinstance(counts, list) or not all(type(count) is int for count in counts):
        raise MaskError("the RLE has no counts")
    height, width = image_size
    if any(count < 0 for count in counts) or sum(counts) != height * width:
        raise MaskError(f"the RLE covers {sum(counts)} pixels of {height * width}")
    values = np.arange(len(counts), dtype=np.uint8) & 1
    return np.repeat(values, counts).reshape(width, height).T


def _decompress(text: bytes) -> list[int]:
    """COCO's compressed counts: 5 bits a byte, differences to the last but one from the third."""
    counts: list[int] = []
    value = shift = 0
    for byte in text:
        byte -= 48
        if not 0 <= byte < 64 or shift > 60:
            raise MaskError("the RLE has bytes that are none of an RLE")
        value |= (byte & 31) << shift
        shift += 5
        if byte & 32:
            continue
        if byte & 16:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
    if shift:
        raise MaskError("the RLE ends inside a number")
    return counts


def sample(mask: np.ndarray, box_yxyx: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The part of a mask [H, W] in a float box, area-averaged to `size` and cut at one half.

    Where a cell of the result is one pixel large this is bilinear interpolation at its centre.
    """
    y1, x1, y2, x2 = map(float, box_yxyx)
    rows, row_weights = _cells(y1, y2, size[0], mask.shape[0])
    columns, column_weights = _cells(x1, x2, size[1], mask.shape[1])
    part = mask[rows, columns].astype(np.float32)
    return (row_weights @ part @ column_weights.T >= 0.5).astype(np.uint8)


def _cells(start: float, end: float, count: int, limit: int) -> tuple[slice, np.ndarray]:
    """The pixels that [start, end] touches, and the share of each in `count` equal cells."""
    first, last = max(math.floor(start), 0), min(math.ceil(end), limit)
    edges = np.linspace(start, end, count + 1)
    pixels = np.arange(first, last)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    weights = np.clip(overlap, 0, None) * (count / (end - start))  # [count, pixels]
    return slice(first, last), weights.astype(np.float32)
