"""Segmentations of COCO jsons (polygons, run-length codes): read, bounded, cropped to a box."""

from __future__ import annotations

import ast
import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as mask_lib

from maskx_tf.data.coco.values import as_number, whole_number
from maskx_tf.ops import masks as mask_ops

_FAR = 10  # image sides beyond which a polygon's coordinate cannot be meant
_LONGEST_OUTLINE = 1e6  # mask pixels; rasterising takes memory in proportion to it
_MAX_PIXELS = 1 << 28  # of an RLE; more than any image that can be opened has
# Least side of a mask drawn from polygons, which are finer than pixels: at a pixel a cell, the mask
# of an object of some ten pixels would lose a tenth of them.
POLYGON_CELLS = 112


class MaskError(ValueError):
    """A segmentation that cannot be decoded; `reason` is a key of `issues.REASONS`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclasses.dataclass(frozen=True)
class Segmentation:
    """A mask as it is annotated.

    Attributes:
      polygons: float64 [n, 2] each, (x, y) in pixels of the image; none of a run-length code.
      counts: int64 [n], lengths of its runs of zeros and ones, down the columns; none of polygons.
      size: (height, width) that the runs fill.
      is_incomplete: some polygons could not be read and are left out.
    """

    polygons: tuple[np.ndarray, ...] = ()
    counts: np.ndarray | None = None
    size: tuple[int, int] = (0, 0)
    is_incomplete: bool = False

    def bounds(self) -> np.ndarray | None:
        """boxes_yxyx, float64 [4], of the polygons or the set pixels; None if there is no pixel."""
        if self.counts is None:
            points = np.concatenate(self.polygons)[:, ::-1]
            return np.concatenate([points.min(axis=0), points.max(axis=0)])
        ends = np.cumsum(self.counts)
        starts = ends - self.counts
        is_run = (np.arange(len(ends)) % 2 == 1) & (self.counts > 0)
        if not is_run.any():
            return None
        (first, top), (last, bottom) = (
            np.divmod(places[is_run], self.size[0]) for places in (starts, ends - 1)
        )
        crosses = last > first  # a run over the end of a column touches both ends
        top, bottom = np.where(crosses, 0, top), np.where(crosses, self.size[0] - 1, bottom)
        corners = [top.min(), first.min(), bottom.max() + 1, last.max() + 1]
        return np.array(corners, np.float64)

    def crop(self, box_yxyx: np.ndarray, mask_size: int) -> tuple[np.ndarray, bool]:
        """The part in a box, stretched over the mask.

        Args:
          box_yxyx: [4] float, pixels of the image, exclusive corners.
          mask_size: largest side of the result, 0: no limit.

        Returns:
          uint8 {0, 1} [h, w], and whether some polygons had to be left out.

        Raises:
          MaskError: the polygons are too large for the box.
        """
        if self.counts is not None:
            return sample(self._decode(), box_yxyx, crop_size(box_yxyx, mask_size)), False
        size = crop_size(box_yxyx, mask_size, least=POLYGON_CELLS)
        scale = np.array(size) / (box_yxyx[2:] - box_yxyx[:2])  # (y, x)
        moved = [(points - box_yxyx[1::-1]) * scale[::-1] for points in self.polygons]
        polygons = _drawable(moved)
        mask = mask_lib.decode(mask_lib.merge(mask_lib.frPyObjects(polygons, *size)))
        return mask, self.is_incomplete or len(polygons) < len(self.polygons)

    def rle(self, size: tuple[int, int]) -> dict[str, Any]:
        """COCO's compressed run-length code for an image of a (height, width).

        Raises:
          MaskError: the polygons are too large.
        """
        if self.counts is None:
            return mask_ops.segmentation_to_rle(_drawable(self.polygons), *size)
        if self.size == size:
            code = {"size": list(size), "counts": self.counts.tolist()}
            return mask_ops.segmentation_to_rle(code, *size)
        mask = np.zeros(size, np.uint8)
        height, width = np.minimum(size, self.size).tolist()
        mask[:height, :width] = self._decode()[:height, :width]
        return mask_ops.encode_rle(mask)

    def _decode(self) -> np.ndarray:
        """uint8 {0, 1} [height, width] of the runs.

        pycocotools is not asked: it returns uninitialised memory for runs that are too short.
        """
        assert self.counts is not None
        values = np.arange(len(self.counts), dtype=np.uint8) & 1
        return np.repeat(values, self.counts).reshape(self.size[::-1]).T


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


def read_segmentation(value: Any, sizes: Sequence[tuple[int, int]]) -> Segmentation | None:
    """A `segmentation` of a json; None if there is none.

    Read are polygons [[x, y, x, y, ...], ...], with or without the outer list or as lists of
    points, and run-length codes {"size": [h, w], "counts": a list, or text as pycocotools
    compresses it}. Either may be the text of json, counts the text of Python's bytes.

    Args:
      value: as `json` gives it.
      sizes: (height, width) that a run-length code may have: of the image, and of the json.

    Raises:
      MaskError: nothing can be decoded.
    """
    if isinstance(value, str) and value:
        value = _parsed(value)
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
        (value,) = value
    if value in (None, "", {}) or (isinstance(value, list) and all(part == [] for part in value)):
        return None  # some tools write [[]]
    if isinstance(value, list) and all(part in (None, "", []) for part in value):
        raise MaskError("mask_blank")
    if isinstance(value, dict):
        return _rle(value, sizes)
    if not isinstance(value, list):
        raise MaskError("mask_invalid")
    parts = _parts(value)
    limit = _FAR * max(map(max, sizes))
    polygons = [polygon for part in parts if (polygon := _polygon(part, limit)) is not None]
    if not polygons:
        raise MaskError("mask_no_polygon")
    return Segmentation(tuple(polygons), is_incomplete=len(polygons) < len(parts))


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise MaskError("mask_invalid") from None


def _parts(value: list[Any]) -> list[Any]:
    """What are to be polygons, each a flat list or a list of points."""
    if all(as_number(part) is not None for part in value):
        return [value]  # a single polygon without the outer list
    if all(isinstance(part, list) and len(part) == 2 for part in value):
        return [value]  # a single polygon of points
    return [inner for part in value for inner in (part if _is_nested(part) else [part])]


def _is_nested(part: Any) -> bool:
    """Whether a part is a list of polygons."""
    return isinstance(part, list) and all(isinstance(p, list) and len(p) >= 6 for p in part)


def _polygon(part: Any, limit: float) -> np.ndarray | None:
    """float64 [n, 2] (x, y), or None if the part is no polygon."""
    if not isinstance(part, list):
        return None
    if all(isinstance(point, list) and len(point) == 2 for point in part):
        part = [value for point in part for value in point]
    numbers = [number for value in part if (number := as_number(value)) is not None]
    if len(numbers) < len(part) or len(part) < 6 or len(part) % 2:
        return None
    points = np.array(numbers, np.float64)
    return points.reshape(-1, 2) if np.all(np.abs(points) <= limit) else None


def _drawable(polygons: Sequence[np.ndarray]) -> list[list[float]]:
    """The polygons [n, 2] whose outlines are not too long to draw, as pycocotools takes them."""
    flat = [points.ravel().tolist() for points in polygons if _outline(points) <= _LONGEST_OUTLINE]
    if not flat:
        raise MaskError("mask_too_large")
    return flat


def _outline(points: np.ndarray) -> float:
    """Pixels on the outline of a polygon [n, 2]."""
    return float(np.abs(np.diff(points, axis=0, append=points[:1])).max(axis=1).sum())


def _rle(rle: dict[str, Any], sizes: Sequence[tuple[int, int]]) -> Segmentation:
    """Runs that fill one of the sizes; MaskError if these do not."""
    sides = rle.get("size")
    numbers = tuple(map(whole_number, sides)) if isinstance(sides, list) else ()
    size = next((size for size in sizes if size == numbers), None)
    if size is None and numbers[::-1] in sizes:
        raise MaskError("mask_size_swapped")
    if size is None or size[0] * size[1] > _MAX_PIXELS:
        raise MaskError("mask_size_differs")
    counts = rle.get("counts")
    if isinstance(counts, str):
        counts = _decompress(_bytes(counts))
    if not isinstance(counts, list):
        raise MaskError("mask_counts_invalid")
    pixels = size[0] * size[1]
    runs = [
        run for count in counts if (run := whole_number(count)) is not None and 0 <= run <= pixels
    ]
    if len(runs) < len(counts) or sum(runs) != pixels:
        raise MaskError("mask_counts_invalid")
    return Segmentation(counts=np.array(runs, np.int64), size=size)


def _bytes(counts: str) -> bytes:
    """COCO's compressed counts, which Python's `str(bytes)` may have put into b'...'."""
    if counts[:2] in ("b'", 'b"'):
        try:
            counts = ast.literal_eval(counts).decode("ascii")
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            raise MaskError("mask_counts_invalid") from None
    return counts.encode("utf-8", "surrogatepass")


def _decompress(text: bytes) -> list[int]:
    """COCO's compressed counts: 5 bits a byte, differences to the last but one from the third."""
    counts: list[int] = []
    value = shift = 0
    for byte in text:
        byte -= 48
        if not 0 <= byte < 64 or shift > 60:
            raise MaskError("mask_counts_invalid")
        value |= (byte & 31) << shift
        shift += 5
        if byte & 32:
            continue
        if byte & 16:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
    if shift:
        raise MaskError("mask_counts_invalid")
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
