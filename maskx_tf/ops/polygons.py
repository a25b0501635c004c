"""The outline of a mask as COCO polygons: exact, or with as few points as an IoU allows.

One polygon for each part of the mask whose pixels share sides. Corners are corners of pixels:
OpenCV's contours run through the centres of the border's pixels instead, and lose half a pixel all
around. COCO's polygons have no holes; here the edge of a hole belongs to the polygon around it,
which reaches and leaves it through a cut without width. Filling sees nothing of the cut, so that
the exact polygons give the same mask again. `export/serving/page/polygons.js` does the same.
"""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
from pycocotools import mask as mask_api

_TOLERANCES_PX = (2.0, 1.4, 1.0, 0.7, 0.5)  # of a simplified line from the exact one, tried in turn

Ring = list[tuple[int, int]]  # corners (x, y), the mask to the right of the way from each to next


def from_rle(rle: dict, least_iou: float = 1.0) -> list[list[float]]:
    """Polygons of a mask in an image.

    Args:
      rle: COCO's compressed run-length code, of the size of the image.
      least_iou: IoU with the mask that simplified polygons must keep; 1: the exact outline.

    Returns:
      As of `outline`, in pixels of the image.
    """
    x, y, width, height = (int(v) for v in mask_api.toBbox(rle))
    region = mask_api.decode(rle)[y : y + height, x : x + width]
    exact = outline(region)
    candidates = _simplified(exact) if least_iou < 1 else iter(())
    polygons = next((c for c in candidates if _iou(c, region) >= least_iou), exact)
    return [[v + (x, y)[i % 2] for i, v in enumerate(polygon)] for polygon in polygons]


def _simplified(polygons: list[list[float]]) -> Iterator[list[list[float]]]:
    """The same with fewer points, the roughest first; a part that becomes a line is left out."""
    corners = [np.array(polygon, np.float32).reshape(-1, 2) for polygon in polygons]
    for tolerance in _TOLERANCES_PX:
        simple = [cv2.approxPolyDP(points, tolerance, closed=True) for points in corners]
        yield [points.ravel().tolist() for points in simple if len(points) >= 3]


def _iou(polygons: list[list[float]], mask: np.ndarray) -> float:
    if not polygons:
        return 0.0
    filled = mask_api.merge(mask_api.frPyObjects(polygons, *mask.shape))
    return float(mask_api.iou([filled], [mask_api.encode(np.asfortranarray(mask))], [0])[0, 0])


def outline(region: np.ndarray, top: int = 0, left: int = 0) -> list[list[float]]:
    """The exact polygons of a mask, one for each part of it whose pixels share sides.

    Args:
      region: {0, 1} or bool [h, w].
      top: added to y.
      left: added to x.

    Returns:
      Lists [x1, y1, x2, y2, …], clockwise from the topmost, then leftmost corner, in the order of
      these; none for an empty mask.
    """
    padded = np.pad(np.asarray(region, bool), 1)
    rings, ring_above = _trace(padded)
    joined = {i: i for i, ring in enumerate(rings) if _doubled_area(ring) > 0}
    outer = list(joined)
    holes = [i for i in range(len(rings)) if i not in joined]
    # A hole comes after whatever is straight above it, so that this is already joined.
    for i in sorted(holes, key=lambda i: min((y, x) for x, y in rings[i])):
        x, y = min(rings[i], key=lambda corner: (corner[1], corner[0]))
        column = padded[: y + 1, x + 1]  # down to the last pixel above the hole
        edge = int(np.flatnonzero(~column)[-1])  # its y: that of the first pixel below the gap
        joined[i] = joined[ring_above[edge, x]]
        rings[joined[i]] = _join(rings[joined[i]], rings[i], (x, y), edge)
    return [[float(v) for x, y in rings[i] for v in (x + left, y + top)] for i in outer]


def _trace(padded: np.ndarray) -> tuple[list[Ring], dict[tuple[int, int], int]]:
    """All rings around and inside a mask with a margin of one, and the ring of each upper edge.

    Returns:
      (rings, {(y, x): number of the ring that the upper edge of pixel (y, x) belongs to}).
    """
    stride = padded.shape[1]
    pixels = padded.tobytes()
    steps = (1, stride, -1, -stride)  # east, south, west, north, from corner to corner
    ahead_right = (0, -1, -stride - 1, -stride)  # the pixel on that side, seen from a corner
    ahead_left = (-stride, 0, -1, -stride - 1)
    rings: list[Ring] = []
    ring_of: dict[int, int] = {}
    upper_edges = np.flatnonzero(padded[1:] & ~padded[:-1]) + stride
    for start in upper_edges.tolist():
        if start in ring_of:
            continue
        ring, at, heading = [], start, 0
        while heading or at not in ring_of:
            if heading == 0:
                ring_of[at] = len(rings)
            at += steps[heading]
            turn = 0
            if not pixels[at + ahead_right[heading]]:
                turn = 1  # so that pixels that share but a corner belong to two rings
            elif pixels[at + ahead_left[heading]]:
                turn = 3
            if turn:
                ring.append((at % stride - 1, at // stride - 1))
            heading = (heading + turn) % 4
        rings.append(ring[-1:] + ring[:-1])
    return rings, {(k // stride - 1, k % stride - 1): ring for k, ring in ring_of.items()}


def _doubled_area(ring: Ring) -> int:
    """Positive for the outline of a part, negative for that of a hole."""
    following = ring[1:] + ring[:1]
    return sum(x * v - u * y for (x, y), (u, v) in zip(ring, following, strict=True))


def _join(ring: Ring, hole: Ring, corner: tuple[int, int], edge: int) -> Ring:
    """The ring with a cut from its edge at y = `edge` down to the corner of the hole."""
    first = hole.index(corner)
    there = (corner[0], edge)
    for i, (x, y) in enumerate(ring):
        u, v = ring[(i + 1) % len(ring)]
        if y == v == edge and x <= corner[0] < u:
            before = ring[: i + 1] if (x, y) == there else [*ring[: i + 1], there]
            return [*before, *hole[first:], *hole[:first], corner, there, *ring[i + 1 :]]
    raise AssertionError("no edge above the hole")
