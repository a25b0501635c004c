"""Silhouettes and textures of Shapes: what the two factors of a class look like."""

from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import numpy as np

Contour = np.ndarray  # float64 [n, 2] (x, y), any scale
_SUBPIXEL_BITS = 4


def _circle(radius: float = 1.0) -> Contour:
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=-1)


def _points(*coordinates: float) -> Contour:
    return np.array(coordinates, np.float64).reshape(-1, 2)


def _star() -> Contour:
    angles = np.pi * np.arange(10) / 5 - np.pi / 2
    radii = np.where(np.arange(10) % 2, 0.42, 1.0)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=-1)


def _heart() -> Contour:
    t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([16 * np.sin(t) ** 3, -y], axis=-1)


def _crescent() -> Contour:
    """The unit disc without a disc of radius 0.8 centred 0.55 to the right."""
    shift, inner = 0.55, 0.8
    x = (1 - inner**2 + shift**2) / (2 * shift)  # where the circles meet
    tip = math.acos(x)
    inner_tip = math.atan2(math.sin(tip), x - shift)
    outer = np.linspace(tip, 2 * np.pi - tip, 36)
    back = np.linspace(2 * np.pi - inner_tip, inner_tip, 24)
    outer_arc = np.stack([np.cos(outer), np.sin(outer)], axis=-1)
    inner_arc = np.stack([shift + inner * np.cos(back), inner * np.sin(back)], axis=-1)
    return np.concatenate([outer_arc, inner_arc])


# A pixel belongs to the silhouette if an odd number of its contours hold it.
SILHOUETTES: dict[str, list[Contour]] = {
    "disc": [_circle()],
    "square": [_points(-1, -1, 1, -1, 1, 1, -1, 1)],
    "triangle": [_points(0, -1, 1, 1, -1, 1)],
    "star": [_star()],
    "cross": [_points(-0.35, -1, 0.35, -1, 0.35, -0.35, 1, -0.35, 1, 0.35, 0.35, 0.35, 0.35, 1,
                      -0.35, 1, -0.35, 0.35, -1, 0.35, -1, -0.35, -0.35, -0.35)],
    "ring": [_circle(), _circle(0.55)],
    "diamond": [_points(0, -1, 1, 0, 0, 1, -1, 0)],
    "heart": [_heart()],
    "crescent": [_crescent()],
    "hourglass": [_points(-1, -1, 1, -1, 0.2, 0, 1, 1, -1, 1, -0.2, 0)],
    "arrow": [_points(0, -1, 1, 0.1, 0.4, 0.1, 0.4, 1, -0.4, 1, -0.4, 0.1, -1, 0.1)],
    "ell": [_points(-1, -1, -0.25, -1, -0.25, 0.25, 1, 0.25, 1, 1, -1, 1)],
}  # fmt: skip


def silhouette(shape: str, height: int, width: int, angle: float) -> np.ndarray:
    """Mask, bool [height, width]: the shape turned by `angle` radians, touching all sides."""
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    contours = [contour @ turn.T for contour in SILHOUETTES[shape]]
    points = np.concatenate(contours)
    low, high = points.min(axis=0), points.max(axis=0)
    scale = (np.array([width, height]) - 1) / (high - low)  # pixel centres 0..width-1, 0..height-1
    fixed = [
        np.round((contour - low) * scale * (1 << _SUBPIXEL_BITS)).astype(np.int32)
        for contour in contours
    ]
    mask = np.zeros([height, width], np.uint8)
    cv2.fillPoly(mask, fixed, 1, lineType=cv2.LINE_8, shift=_SUBPIXEL_BITS)
    return mask.astype(bool)


def _plain(ys: np.ndarray, xs: np.ndarray, period: float, rng: np.random.Generator) -> np.ndarray:
    del rng, period
    return np.zeros(np.broadcast_shapes(ys.shape, xs.shape), bool)


def _striped(ys: np.ndarray, xs: np.ndarray, period: float, rng: np.random.Generator) -> np.ndarray:
    del rng
    return np.broadcast_to(ys % period < period / 2, np.broadcast_shapes(ys.shape, xs.shape))


def _barred(ys: np.ndarray, xs: np.ndarray, period: float, rng: np.random.Generator) -> np.ndarray:
    del rng
    return np.broadcast_to(xs % period < period / 2, np.broadcast_shapes(ys.shape, xs.shape))


def _checkered(
    ys: np.ndarray, xs: np.ndarray, period: float, rng: np.random.Generator
) -> np.ndarray:
    del rng
    return (ys % period < period / 2) ^ (xs % period < period / 2)


def _dotted(ys: np.ndarray, xs: np.ndarray, period: float, rng: np.random.Generator) -> np.ndarray:
    del rng
    y, x = ys % period - period / 2, xs % period - period / 2
    return y * y + x * x < (0.33 * period) ** 2


def _speckled(
    ys: np.ndarray, xs: np.ndarray, period: float, rng: np.random.Generator
) -> np.ndarray:
    del period
    return rng.random(np.broadcast_shapes(ys.shape, xs.shape)) < 0.4


# adjective -> function (rows [h, 1], columns [1, w], period in pixels, generator) -> bool [h, w],
# where the second colour goes. The rows and columns start at a random phase.
TEXTURES: dict[str, Callable[..., np.ndarray]] = {
    "plain": _plain,
    "striped": _striped,
    "barred": _barred,
    "checkered": _checkered,
    "dotted": _dotted,
    "speckled": _speckled,
}


def texture(
    name: str, height: int, width: int, period: float, rng: np.random.Generator
) -> np.ndarray:
    """Mask, bool [height, width]: where the second of an object's two colours goes."""
    phase = rng.uniform(0, period, 2)
    ys = np.arange(height)[:, None] + phase[0]
    xs = np.arange(width)[None, :] + phase[1]
    return TEXTURES[name](ys, xs, period, rng)
