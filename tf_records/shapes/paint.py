"""Scenes of Shapes as pixels: background, colours, noise. Colours say nothing about the class."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from tf_records.shapes.draw import texture
from tf_records.shapes.objects import SceneObject, SceneOptions


def paint(
    objects: Sequence[SceneObject], rng: np.random.Generator, options: SceneOptions
) -> np.ndarray:
    """The image, uint8 RGB [image_size, image_size, 3], of objects from bottom to top."""
    image = _background(rng, options)
    first = None
    for item in objects:
        first, second = _colours(rng, options, avoid=first if item.is_upper else None)
        y1, x1, y2, x2 = item.box_yxyx
        period = rng.uniform(*options.texture_period)
        pattern = texture(item.texture, y2 - y1, x2 - x1, period, rng)
        colours = np.where(pattern[..., None], second, first)  # [h, w, 3]
        part = image[y1:y2, x1:x2]
        part[item.kept] = colours[item.kept]
    image += rng.normal(0, options.image_noise, image.shape)
    return np.clip(np.round(image), 0, 255).astype(np.uint8)


def _colours(
    rng: np.random.Generator, options: SceneOptions, avoid: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Two colours [3], far enough apart, the first also far enough from `avoid`."""
    while True:
        first, second = rng.uniform(0, 255, [2, 3])
        if np.linalg.norm(first - second) < options.colour_contrast:
            continue
        if avoid is None or np.linalg.norm(first - avoid) >= options.pair_contrast:
            return first, second


def _background(rng: np.random.Generator, options: SceneOptions) -> np.ndarray:
    """float64 [size, size, 3]: a gradient between four random corner colours, strokes, noise."""
    size = options.image_size
    corners = rng.uniform(40, 215, [2, 2, 3])
    image = cv2.resize(corners, (size, size), interpolation=cv2.INTER_LINEAR)
    for _ in range(rng.integers(options.strokes[0], options.strokes[1] + 1)):
        start, end = rng.integers(0, size, [2, 2]).tolist()
        colour = rng.uniform(0, 255, 3).tolist()
        cv2.line(image, start, end, colour, thickness=int(rng.integers(1, 4)))
    return image + rng.normal(0, options.background_noise, image.shape)
