"""Masks on the NumPy side: pasting box-sized masks into an image, and COCO run-length codes.

All work is done on the part of the box that lies inside the image, so that the cost follows the
object and not the image.
"""

from collections.abc import Sequence

import numpy as np
from pycocotools import mask as mask_api

Rle = dict  # {"size": [height, width], "counts": str}, COCO's compressed form


def paste_region(
    mask: np.ndarray,
    box_yxyx: Sequence[float],
    height: int,
    width: int,
    threshold: float = 0.5,
    whole_pixels: bool = False,
) -> tuple[np.ndarray, int, int]:
    """Resamples a mask to the pixels of its box that lie inside the image.

    A pixel is looked up at its centre: pixel x of a box [x1, x2) lands at
    `(x + 0.5 - x1) / (x2 - x1) * m - 0.5` in a mask of m columns, is interpolated bilinearly and
    set where the value is at least `threshold`; the mask is surrounded by zeros. This is what
    detectron2 does.

    Args:
      mask: float or {0, 1} [m, n], values over the box.
      box_yxyx: 4 numbers, pixels of the image, exclusive corners; may leave the image.
      height: image height in pixels.
      width: image width in pixels.
      threshold: smallest value of a set pixel, above 0.
      whole_pixels: do as Detectron does: the box that the mask covers with a ring of one cell
        around it, from its first to its last pixel, is cut to whole pixels; pixels above the
        threshold are set.

    Returns:
      (region uint8 {0, 1} [h, w], top, left): the set pixels, and where the region starts in the
      image; h or w is 0 where the box has no area inside the image.
    """
    y1, x1, y2, x2 = (float(v) for v in box_yxyx)
    weights = _whole_pixel_weights if whole_pixels else _weights
    top, rows = weights(y1, y2, mask.shape[0], height)
    left, columns = weights(x1, x2, mask.shape[1], width)
    values = columns @ np.asarray(mask, np.float32).T @ rows.T  # [w, h], the order of COCO's runs
    is_set = values > threshold if whole_pixels else values >= threshold
    return is_set.view(np.uint8).T, top, left


def _weights(low: float, high: float, cells: int, limit: int) -> tuple[int, np.ndarray]:
    """First pixel and bilinear weights [pixels, cells] of the pixels that touch [low, high)."""
    if not high > low:
        return 0, np.zeros((0, cells), np.float32)
    first = int(np.clip(np.floor(low), 0, limit))
    last = int(np.clip(np.ceil(high), first, limit))
    position = (np.arange(first, last) + 0.5 - low) / (high - low) * cells - 0.5
    return first, bilinear_weights(position, cells)


def _whole_pixel_weights(low: float, high: float, cells: int, limit: int) -> tuple[int, np.ndarray]:
    """As `_weights`, by Detectron's rule."""
    if not high > low:
        return 0, np.zeros((0, cells), np.float32)
    centre, half = (low + high - 1) / 2, (high - 1 - low) / 2 * (cells + 2) / cells
    start, end = int(centre - half), int(centre + half)  # the last pixel; towards zero, as there
    pixels = max(end - start + 1, 1)
    first = int(np.clip(start, 0, limit))
    last = int(np.clip(end + 1, first, limit))
    position = (np.arange(first, last) + 0.5 - start) / pixels * (cells + 2) - 0.5
    return first, bilinear_weights(np.clip(position, 0, cells + 1) - 1, cells)


def bilinear_weights(position: np.ndarray, cells: int) -> np.ndarray:
    """Weights float32 [pixels, cells] at positions in cells, the centres of cells being 0, 1, 2."""
    return np.maximum(0, 1 - np.abs(position[:, None] - np.arange(cells))).astype(np.float32)


def paste_mask(
    mask: np.ndarray, box_yxyx: Sequence[float], height: int, width: int, threshold: float = 0.5
) -> np.ndarray:
    """Pastes a mask over its box; see `paste_region`. Returns uint8 {0, 1} [height, width]."""
    region, top, left = paste_region(mask, box_yxyx, height, width, threshold)
    image = np.zeros((height, width), np.uint8)
    image[top : top + region.shape[0], left : left + region.shape[1]] = region
    return image


def paste_to_rle(
    masks: np.ndarray,
    boxes_yxyx: np.ndarray,
    height: int,
    width: int,
    threshold: float = 0.5,
    whole_pixels: bool = False,
) -> list[Rle]:
    """Pastes and encodes masks without making an image of each.

    Args:
      masks: float or {0, 1} [N, m, n].
      boxes_yxyx: float [N, 4], pixels of the image, exclusive corners.
      height: image height in pixels.
      width: image width in pixels.
      threshold: smallest value of a set pixel.
      whole_pixels: see `paste_region`.

    Returns:
      N COCO run-length codes of size [height, width].
    """
    regions = (
        paste_region(mask, box, height, width, threshold, whole_pixels)
        for mask, box in zip(masks, boxes_yxyx, strict=True)
    )
    return [encode_region(*region, height, width) for region in regions]


def encode_region(region: np.ndarray, top: int, left: int, height: int, width: int) -> Rle:
    """Run-length code of an image [height, width], zero but for a region at (top, left).

    Args:
      region: uint8 {0, 1} [h, w], inside the image.
      top: first row of the region.
      left: first column of the region.
      height: of the image.
      width: of the image.
    """
    rows, columns = region.shape
    step = rows + int(rows < height)  # a zero under each column keeps its runs from the next one's
    flat = np.zeros(columns * step + 2, np.uint8)  # with a zero before and after
    flat[1:-1].reshape(columns, step)[:, :rows] = region.T  # COCO's runs go down the columns
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    column, row = np.divmod(edges, max(step, 1))
    positions = (column + left) * height + row + top
    counts = np.diff(positions, prepend=0, append=height * width)
    counts = counts[:-1] if counts[-1] == 0 else counts  # the last pixel is set
    return _to_text(
        mask_api.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    )


def _to_text(rle: dict) -> Rle:
    counts = rle["counts"]
    text = counts.decode("ascii") if isinstance(counts, bytes) else counts
    return {"size": [int(side) for side in rle["size"]], "counts": text}


def encode_rle(mask: np.ndarray) -> Rle:
    """COCO's compressed run-length code of a mask, {0, 1} or bool [height, width]."""
    return _to_text(mask_api.encode(np.asfortranarray(mask, dtype=np.uint8)))


def decode_rle(rle: Rle) -> np.ndarray:
    """The mask, uint8 {0, 1} [height, width], of a compressed run-length code (str or bytes)."""
    return mask_api.decode(rle)


def segmentation_to_rle(segmentation: list | dict, height: int, width: int) -> Rle:
    """A COCO `segmentation` (polygons, run lengths as numbers or compressed) as compressed code."""
    if isinstance(segmentation, list):
        return _to_text(mask_api.merge(mask_api.frPyObjects(segmentation, height, width)))
    if isinstance(segmentation["counts"], list):
        return _to_text(mask_api.frPyObjects(segmentation, height, width))
    return _to_text(segmentation)


def rle_area(rle: Rle) -> int:
    """Number of set pixels."""
    return int(mask_api.area(rle))


def box_agreement(rle: Rle, box_yxyx: Sequence[float]) -> float:
    """IoU of the box around a mask's own pixels with another box; 0 of a mask without pixels.

    Args:
      rle: of the mask.
      box_yxyx: 4 numbers, pixels of the image, exclusive corners.
    """
    if not rle_area(rle):
        return 0.0
    y1, x1, y2, x2 = box_yxyx
    given = np.array([[x1, y1, x2 - x1, y2 - y1]], np.float64)
    return float(mask_api.iou(mask_api.toBbox(rle)[None], given, [0])[0, 0])
