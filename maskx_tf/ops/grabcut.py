"""GrabCut (Rother et al., 2004): the foreground of a box from the colours around it, untrained.

It stands in for masks in two baselines of the paper's table 2: detections of a box detector get
masks from it at test time, and ground-truth boxes get masks from it to train Mask R-CNN on.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from maskx_tf.ops import windows

_ITERATIONS = 5
_MAX_SIDE_PX = 160  # of the window that is segmented; larger ones are scaled down


def segment(image: np.ndarray, box_yxyx: Sequence[float]) -> tuple[np.ndarray, int, int]:
    """The foreground in a box; equal arguments give equal results in any thread.

    Args:
      image: uint8 [H, W, 3], channels in any order.
      box_yxyx: 4 numbers, pixels of the image, exclusive corners; may leave the image.

    Returns:
      (region uint8 {0, 1} [h, w], top, left): the pixels that the box touches, and where they
      start. They are all 1 where GrabCut can tell nothing: no pixel lies around the box, too few in
      it, or all of it would be background. h or w is 0 for a box without area in the image.
    """
    top, bottom = windows.touched(box_yxyx[0], box_yxyx[2], image.shape[0])
    left, right = windows.touched(box_yxyx[1], box_yxyx[3], image.shape[1])
    height, width = bottom - top, right - left
    region = np.ones([height, width], np.uint8)
    if not region.size:
        return region, top, left
    # The margin is known to be background.
    rows, inner_y = windows.widened(top, bottom, image.shape[0])
    columns, inner_x = windows.widened(left, right, image.shape[1])
    window, scale = windows.shrunk(image[rows, columns], _MAX_SIDE_PX)
    y = min(round(inner_y * scale), window.shape[0] - 1)
    x = min(round(inner_x * scale), window.shape[1] - 1)
    rect = (x, y, windows.scaled(width, scale), windows.scaled(height, scale))
    found = _grabcut(np.ascontiguousarray(window), rect)
    if found is not None:
        values = cv2.resize(found, (width, height), interpolation=cv2.INTER_LINEAR)
        region = (values >= 0.5).astype(np.uint8)
    return (region if region.any() else np.ones_like(region)), top, left


def _grabcut(window: np.ndarray, rect: tuple[int, int, int, int]) -> np.ndarray | None:
    """float32 {0, 1} [h, w], the foreground in the rect (x, y, w, h); None where it fails."""
    x, y, width, height = rect
    labels = np.zeros(window.shape[:2], np.uint8)
    models = np.zeros([1, 65]), np.zeros([1, 65])
    cv2.setRNGSeed(0)  # of this thread; its clusters start at random
    try:
        cv2.grabCut(window, labels, rect, *models, _ITERATIONS, cv2.GC_INIT_WITH_RECT)
    except cv2.error:  # fewer pixels than clusters inside or outside
        return None
    inside = labels[y : y + height, x : x + width]
    return np.isin(inside, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.float32)
