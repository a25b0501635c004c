"""The part of an image around a box: what methods that look at pixels work on."""

import math

import cv2
import numpy as np

_MARGIN = 0.25  # of a box's side, on each side of it


def touched(start: float, end: float, limit: int) -> tuple[int, int]:
    """First pixel of [start, end) inside the image, and the one after its last."""
    first = min(max(math.floor(start), 0), limit)
    return first, max(min(math.ceil(end), limit), first)


def widened(start: int, end: int, limit: int) -> tuple[slice, int]:
    """The pixels with a margin of at least one around them, and where they start in it."""
    margin = max(math.ceil(_MARGIN * (end - start)), 1)
    low = max(start - margin, 0)
    return slice(low, min(end + margin, limit)), start - low


def shrunk(window: np.ndarray, most: int) -> tuple[np.ndarray, float]:
    """An image [h, w, C] with sides of at most `most` pixels, and the factor on its sides."""
    scale = min(1.0, most / max(window.shape[:2]))
    if scale < 1:
        sides = [scaled(side, scale) for side in window.shape[1::-1]]
        window = cv2.resize(window, sides, interpolation=cv2.INTER_AREA)
    return window, scale


def scaled(side: int, scale: float) -> int:
    """A side of at least one pixel."""
    return max(round(side * scale), 1)
