"""COCO segmentations (polygons, RLE) to masks cropped to a box."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from pycocotools import mask as mask_lib

_FAR = 10  # image sides beyond which a polygon's coordinate cannot be meant
_LONGEST_OUTLINE = 1e6  # mask pixels; rasterising takes memory in proportion to it
_MAX_PIXELS = 1 << 28  # of an RLE; more than any image that can be opened has
# Least side of a mask drawn from polygons, which are finer than pixels: at a pixel a cell, the mask
# of an object of some ten pixels would lose a tenth of them.
POLYGON_CELLS = 112


class MaskError(ValueError):
    """A segmentation that cannot be decoded."""


def crop_size(box_yxyx: np.ndarray, mask_size: int, least: int = 1) -> tuple[int, int]:
    """(height, width) of the mask of a box: a pixel a cell, or finer, see below.

    Args:
      box_yxyx: [4] float, pixels of the image.
      mask_size: largest side, 0: no limit.
      least: side that is not gone below, unless `mask_size` is smaller.
    """
    pixels = [math.ceil(side - 1e-6) for side in (box_yxyx[2:] - box_yxyx[:2]).tolist()]
    sides = [max(least, side) for side in pixels]
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
    if isinstance(segmentation, dict):
        size = crop_size(box_yxyx, mask_size)
        return sample(decode_rle(segmentation, image_size), box_yxyx, size), False
    polygons, parts = _polygons(segmentation, image_size)
    size = crop_size(box_yxyx, mask_size, least=POLYGON_CELLS)
    scale = np.array(size) / (box_yxyx[2:] - box_yxyx[:2])  # (y, x)
    moved = [(points - box_yxyx[1::-1]) * scale[::-1] for points in polygons]
    drawable = [points.ravel().tolist() for points in moved if _outline(points) <= _LONGEST_OUTLINE]
    if not drawable:
        raise MaskError("the polygons are too large for their box")
    mask = mask_lib.decode(mask_lib.merge(mask_lib.frPyObjects(drawable, *size)))
    return mask, len(drawable) < parts


def clean_segmentation(segmentation: Any, image_size: tuple[int, int]) -> tuple[Any, bool]:
    """What of a segmentation pycocotools can decode; arguments and errors as of `crop_mask`.

    Returns:
      polygons or the RLE, and whether some polygons had to be left out.
    """
    if isinstance(segmentation, dict):
        _rle_counts(segmentation, image_size)
        return segmentation, False
    polygons, parts = _polygons(segmentation, image_size)
    return [points.ravel().tolist() for points in polygons], len(polygons) < parts


def _polygons(segmentation: Any, image_size: tuple[int, int]) -> tuple[list[np.ndarray], int]:
    """The valid polygons, float64 [n, 2] (x, y), and how many there are in all."""
    if not isinstance(segmentation, list):
        raise MaskError(f"neither polygons nor RLE: {type(segmentation).__name__}")
    if segmentation and not isinstance(segmentation[0], list):
        segmentation = [segmentation]  # a single polygon without the outer list
    limit = _FAR * max(image_size)
    polygons = [points for part in segmentation if (points := _polygon(part, limit)) is not None]
    if not polygons:
        raise MaskError("no valid polygon")
    return polygons, len(segmentation)


def _outline(points: np.ndarray) -> float:
    """Pixels on the outline of a polygon [n, 2]."""
    return float(np.abs(np.diff(points, axis=0, append=points[:1])).max(axis=1).sum())


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
    counts = _rle_counts(rle, image_size)
    height, width = image_size
    values = np.arange(len(counts), dtype=np.uint8) & 1
    return np.repeat(values, counts).reshape(width, height).T


def _rle_counts(rle: dict[str, Any], image_size: tuple[int, int]) -> list[int]:
    """Run lengths that fill the image; MaskError if these do not."""
    counts = rle.get("counts")
    height, width = image_size
    if rle.get("size") != list(image_size) or height * width > _MAX_PIXELS:
        raise MaskError(f"the RLE is not of the size {list(image_size)} of the image")
    if isinstance(counts, (str, bytes)):
        text = counts.encode("utf-8", "surrogatepass") if isinstance(counts, str) else counts
        counts = _decompress(text)
    if not isinstance(counts, list) or not all(type(count) is int for count in counts):
        raise MaskError("the RLE has no counts")
    if any(count < 0 for count in counts) or sum(counts) != height * width:
        raise MaskError(f"the RLE does not cover the {height * width} pixels of the image")
    return counts


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
    rows, columns = _touched(y1, y2, mask.shape[0]), _touched(x1, x2, mask.shape[1])
    part = mask[rows, columns]
    sums = _sums(part, np.linspace(y1, y2, size[0] + 1) - rows.start)  # [h, columns]
    sums = _sums(sums.T, np.linspace(x1, x2, size[1] + 1) - columns.start).T  # [h, w]
    return (sums >= 0.5 * (y2 - y1) / size[0] * (x2 - x1) / size[1]).astype(np.uint8)


def _touched(start: float, end: float, limit: int) -> slice:
    """The pixels that [start, end] touches."""
    return slice(max(math.floor(start), 0), min(math.ceil(end), limit))


def _sums(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Integrals over axis 0 of `values` [n, m], zero outside, between edges [k + 1]: [k, m]."""
    count = len(values)
    running = np.zeros([count + 2, values.shape[1]])
    np.cumsum(values, axis=0, out=running[1:-1])
    running[-1] = running[-2]
    edges = np.clip(edges, 0, count)
    whole = edges.astype(np.int64)
    share = (edges - whole)[:, None]
    at_edges = running[whole] * (1 - share) + running[whole + 1] * share
    return np.diff(at_edges, axis=0)
