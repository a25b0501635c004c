"""Masks as polygons, for tools and formats without run lengths."""

from __future__ import annotations

import cv2
import numpy as np
from pycocotools import mask as mask_api

_TOLERANCES_PX = (2.0, 1.4, 1.0, 0.7, 0.5)


def outlines(mask: np.ndarray) -> list[np.ndarray]:
    """Outlines of a mask along the edges of its pixels.

    Args:
      mask: {0, 1} [h, w].

    Returns:
      Polygons, int [n, 2] each (x, y), n >= 4, without holes: a part of the mask that has one is
      cut in two there. Filled, they give the mask again.
    """
    count, labels = cv2.connectedComponents(np.asarray(mask, np.uint8))  # 8 neighbours
    return [outline for label in range(1, count) for outline in _component(labels == label)]


def _component(mask: np.ndarray) -> list[np.ndarray]:
    """Outlines of a connected mask, bool [h, w]."""
    # A border of zeros, and each pixel as 2 x 2: then a contour, which joins the centres of pixels,
    # tells the left and upper edge of a pixel (even) from the right and lower one (odd).
    doubled = np.pad(mask.astype(np.uint8), 1).repeat(2, axis=0).repeat(2, axis=1)
    contours, hierarchy = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    holes = [c for c, links in zip(contours, hierarchy[0], strict=True) if links[3] >= 0]
    if not holes:
        return [_corners((contours[0][:, 0] + 1) // 2 - 1)]
    holes.sort(key=lambda hole: cv2.boundingRect(hole)[0])
    x, _, width, _ = cv2.boundingRect(holes[len(holes) // 2])  # each part keeps half at most
    cut = (x + width // 2) // 2 - 1  # a column through the hole
    columns = np.arange(mask.shape[1])
    return [*outlines(mask & (columns < cut)), *outlines(mask & (columns >= cut))]


def _corners(points: np.ndarray) -> np.ndarray:
    """A closed line [n, 2] without repeated points and points that lie on a straight part."""
    points = points[(points != np.roll(points, 1, axis=0)).any(axis=1)]
    before, after = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
    turns = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    backwards = (before * after).sum(axis=1) < 0
    return points[turns | backwards]


def from_rle(rle: dict, least_iou: float) -> list[np.ndarray]:
    """A mask as polygons with as few points as it can be told by.

    Args:
      rle: COCO's run-length code.
      least_iou: IoU that the polygons must keep with the mask; 1: its exact outline.

    Returns:
      Polygons, float [n, 2] each (x, y), pixels of the image; none if the mask is empty.
    """
    x, y, width, height = (int(v) for v in mask_api.toBbox(rle))
    if not width:
        return []
    corner = np.array([x, y], np.float64)
    region = mask_api.decode(rle)[y : y + height, x : x + width]
    exact = [outline.astype(np.float64) for outline in outlines(region)]
    whole = mask_api.encode(np.asfortranarray(region))
    for tolerance in _TOLERANCES_PX if least_iou < 1 else ():
        simple = [
            cv2.approxPolyDP(part.astype(np.float32), tolerance, True)[:, 0].astype(np.float64)
            for part in exact
        ]
        simple = [part for part in simple if len(part) >= 3]
        if simple and _iou(simple, whole) >= least_iou:
            return [part + corner for part in simple]
    return [part + corner for part in exact]


def _iou(polygons: list[np.ndarray], rle: dict) -> float:
    flat = [part.ravel().tolist() for part in polygons]
    merged = mask_api.merge(mask_api.frPyObjects(flat, *rle["size"]))
    return float(mask_api.iou([merged], [rle], [0])[0, 0])
