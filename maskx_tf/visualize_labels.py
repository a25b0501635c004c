"""Text labels on pictures: legible ink, and places that do not cover one another."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont


@functools.cache
def font_of_size(size_px: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, so that no system font is needed."""
    return ImageFont.load_default(size_px)


def draw_labels(
    picture: np.ndarray, boxes: np.ndarray, labels: Sequence[str], colors: np.ndarray
) -> np.ndarray:
    """Writes labels at the boxes' upper left corners, moved where they would cover another.

    Args:
      picture: uint8 [H, W, 3] RGB.
      boxes: float [N, 4] yxyx, pixels of the picture.
      labels: N texts; "" draws nothing.
      colors: uint8 [N, 3] RGB, the background of each label.

    Returns:
      uint8 [H, W, 3], a copy.
    """
    canvas = Image.fromarray(picture)
    pen = ImageDraw.Draw(canvas)
    font = font_of_size(int(np.clip(max(picture.shape[:2]) / 42, 13, 26)))
    taken: list[tuple[int, int, int, int]] = []
    for box, label, color in zip(boxes, labels, colors, strict=True):
        if not label:
            continue
        _, _, right, bottom = pen.textbbox((0, 0), label, font=font)
        place = _place(box, int(right) + 6, int(bottom) + 5, canvas.size, taken)
        taken.append(place)
        luminance = float(np.dot(color, (0.299, 0.587, 0.114)))
        pen.rectangle(place, fill=tuple(int(v) for v in color))
        ink = (0, 0, 0) if luminance > 120 else (255, 255, 255)
        pen.text((place[0] + 3, place[1] + 1), label, fill=ink, font=font)
    return np.array(canvas)


def _place(
    box: np.ndarray,
    width: int,
    height: int,
    size: tuple[int, int],
    taken: list[tuple[int, int, int, int]],
) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of a label: above its box, else the first free place around it."""
    y1, x1, y2, x2 = (round(float(v)) for v in box)
    first = y1 - height if y1 >= height else max(y1, 0)
    places = []
    for left in (x1, x2 - width, x2, x1 - width):
        for top in range(first, max(y2 + height, first + 1), height):
            top = int(np.clip(top, 0, max(size[1] - height, 0)))
            edge = int(np.clip(left, 0, max(size[0] - width, 0)))
            places.append((edge, top, edge + width, top + height))
    free = (place for place in places if not any(_overlap(place, other) for other in taken))
    return next(free, places[0])


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
