"""Dense CRF (Krähenbühl and Koltun, 2011): masks drawn to the edges of the image's colours.

Every pixel of a window is connected to every other, and two pixels that differ in label cost the
more the nearer they are and the more alike in colour. Windows are small, so that the messages of
mean-field inference are computed exactly, in place of the published lattice's approximation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import cv2
import numpy as np

from maskx_tf.ops import windows
from maskx_tf.ops.masks import bilinear_weights

SIDE = 64  # of a refined mask, and most pixels of a window's side; larger windows are scaled down
_EPSILON = 1e-4  # how sure a mask can be


class Parameters(NamedTuple):
    """Parameters of the energy and its inference.

    Attributes:
      weight: of the bilateral kernel, which compares colours.
      color: its standard deviation in grey levels of 255. Noise between alike pixels must be
        smaller.
      reach: its standard deviation in position, over the side of the box.
      smoothness: weight of the kernel that compares positions alone.
      smoothness_reach: its standard deviation in pixels of the window.
      steps: of mean-field inference.
      normalization: of messages: "symmetric" divides the kernel by the square roots of its sums
        over rows and columns, so that weights mean the same in windows of all sizes, as the
        authors' code does; "none", as in their article, which also leaves out a pixel's message to
        itself.
    """

    weight: float = 2.0
    color: float = 13.0
    reach: float = 0.15
    smoothness: float = 1.0
    smoothness_reach: float = 1.0
    steps: int = 10
    normalization: Literal["symmetric", "none"] = "symmetric"


def refine(
    image: np.ndarray,
    box_yxyx: Sequence[float],
    mask: np.ndarray,
    parameters: Parameters = Parameters(),  # noqa: B008 # a tuple
) -> np.ndarray:
    """A mask drawn to the image's edges; equal arguments give equal results in any thread.

    Args:
      image: uint8 [H, W, 3], channels in any order.
      box_yxyx: what the mask reaches over: 4 numbers, pixels of the image, exclusive corners; may
        leave the image.
      mask: float [m, n], probabilities over the box.
      parameters: of the CRF.

    Returns:
      float32 [SIDE, SIDE], probabilities over the box. Those of `mask`, resampled, of a box without
      area in the image.
    """
    y1, x1, y2, x2 = (float(v) for v in box_yxyx)
    top, bottom = windows.touched(y1, y2, image.shape[0])
    left, right = windows.touched(x1, x2, image.shape[1])
    mask = np.asarray(mask, np.float32)
    if not (top < bottom and left < right and y1 < y2 and x1 < x2):
        return cv2.resize(mask, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
    rows, _ = windows.widened(top, bottom, image.shape[0])
    columns, _ = windows.widened(left, right, image.shape[1])
    window, scale = windows.shrunk(image[rows, columns], SIDE)
    to_rows, from_rows = _resampling(y1, y2, rows, window.shape[0], mask.shape[0])
    to_columns, from_columns = _resampling(x1, x2, columns, window.shape[1], mask.shape[1])
    probabilities = np.clip(to_rows @ mask @ to_columns.T, _EPSILON, 1 - _EPSILON)
    logits = np.log(probabilities / (1 - probabilities))
    reach = parameters.reach * scale * np.sqrt((y2 - y1) * (x2 - x1))  # in pixels of the window
    logits = mean_field(logits, window, parameters._replace(reach=reach))
    return from_rows @ (1 / (1 + np.exp(-logits))) @ from_columns.T


def _resampling(
    low: float, high: float, pixels: slice, count: int, cells: int
) -> tuple[np.ndarray, np.ndarray]:
    """Bilinear weights between a mask's cells over [low, high) and a window, along one axis.

    Args:
      low: of the box.
      high: of the box.
      pixels: of the image, in the window.
      count: of the window's own pixels.
      cells: of the mask.

    Returns:
      [count, cells], which takes a mask, with zeros around it, to the window's pixels; [SIDE,
      count], which takes the window's pixels, repeated at its ends, to a mask of SIDE cells.
    """
    size = (pixels.stop - pixels.start) / count  # of a pixel of the window
    centres = pixels.start + (np.arange(count) + 0.5) * size
    to_window = bilinear_weights((centres - low) / (high - low) * cells - 0.5, cells)
    centres = low + (np.arange(SIDE) + 0.5) / SIDE * (high - low)
    position = np.clip((centres - pixels.start) / size - 0.5, 0, count - 1)
    return to_window, bilinear_weights(position, count)


def mean_field(logits: np.ndarray, image: np.ndarray, parameters: Parameters) -> np.ndarray:
    """Mean-field inference of a binary CRF in which all pixels are connected.

    With two labels, the logit of a pixel is its own plus Σ_j k(i, j) tanh(z_j / 2) over all pixels,
    for each kernel k times its weight.

    Args:
      logits: float [h, w], of the mask.
      image: uint8 [h, w, 3].
      parameters: of the CRF; `reach` in pixels.

    Returns:
      float32 [h, w], the logits after the last step.
    """
    logits = np.asarray(logits, np.float32)
    bilateral = _bilateral(image, parameters.reach, parameters.color)  # [h w, h w]
    near_y, near_x = (
        np.exp(_squares(side, parameters.smoothness_reach)) for side in logits.shape
    )  # [h, h], [w, w]
    if parameters.normalization == "symmetric":
        sums = 1 / np.sqrt(bilateral.sum(0))
        near_y, near_x = (k / np.sqrt(np.outer(k.sum(0), k.sum(0))) for k in (near_y, near_x))
        itself = 0.0
    else:
        sums, itself = np.ones(logits.size, np.float32), 1.0
    z = logits
    for _ in range(parameters.steps):
        q = np.tanh(z / 2)
        alike = (sums * (bilateral @ (sums * q.ravel()))).reshape(q.shape) - itself * q
        near = near_y @ q @ near_x - itself * q
        z = logits + parameters.weight * alike + parameters.smoothness * near
    return z


def _squares(side: int, reach: float) -> np.ndarray:
    """float32 [side, side], -d² / 2 of the distances d along one axis, in units of `reach`."""
    places = np.arange(side, dtype=np.float32) / np.float32(reach)
    return -0.5 * (places[:, None] - places) ** 2


def _bilateral(image: np.ndarray, reach: float, color: float) -> np.ndarray:
    """float32 [h w, h w], exp(-d² / 2) of the distances d between pixels."""
    height, width = image.shape[:2]
    colors = image.reshape(-1, 3).astype(np.float32)
    squares = 0.5 * (colors**2).sum(1)
    near_y, near_x = _squares(height, reach), _squares(width, reach)
    kernel = np.empty([len(colors)] * 2, np.float32)
    # Row by row of the image: what one needs stays in the processor's cache.
    for y, row in enumerate(kernel.reshape(height, width, -1)):
        pixels = slice(y * width, (y + 1) * width)
        np.matmul(colors[pixels], colors.T, out=row)  # of whole numbers: it is exact
        row -= squares
        row -= squares[pixels, None]
        row *= np.float32(1 / color**2)
        places = row.reshape(width, height, width)
        places += near_y[y][:, None]
        places += near_x[:, None]
        np.exp(row, out=row)
    return kernel
