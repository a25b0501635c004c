"""Large images piece by piece: overlapping tiles, and objects that borders cut made whole again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import cv2
import numpy as np

from maskx_tf.inference.detections import Detections
from maskx_tf.inference.tiling import Tile, Tiling, tiles

# Two parts are one object where, in what both tiles see, their masks have at least this IoU.
LEAST_IOU = 0.5
NEAR_BORDER_PX = 2.0  # a box that ends so close to a tile's border is cut by it
SIDE = 112  # of merged masks, in cells
_MOST_TILES = 4  # that are cut out at a time


class Segmenter(Protocol):
    """What gives masks to boxes: a model's, an export's or a tiled one."""

    def segment(
        self, image: np.ndarray, boxes_yxyx: np.ndarray, class_ids: np.ndarray, **others: Any
    ) -> Detections:
        """As `segmenter.Segmenter.segment`."""
        ...


class TiledSegmenter:
    """Gives masks to boxes in tiles of an image.

    A box is looked at in the tile that holds it whole with its middle nearest to the tile's; one
    that no tile holds, in the whole image.

    Args:
      segmenter: a model's.
      tiling: of the images.
    """

    def __init__(self, segmenter: Segmenter, tiling: Tiling):
        self._segmenter, self._tiling = segmenter, tiling

    def segment(
        self, image: np.ndarray, boxes_yxyx: np.ndarray, class_ids: np.ndarray, **others: Any
    ) -> Detections:
        """As `segmenter.Segmenter.segment`."""
        size = (image.shape[0], image.shape[1])
        whole = (0, 0, *size)
        places = [*tiles(*size, *self._tiling), whole]
        chosen = [_tile_of(box, places) for box in boxes_yxyx]
        every, order = [], []
        for number in sorted(set(chosen)) or [len(places) - 1]:
            rows = [row for row, tile in enumerate(chosen) if tile == number]
            y1, x1, y2, x2 = places[number]
            crop = np.ascontiguousarray(image[y1:y2, x1:x2])
            boxes = boxes_yxyx[rows] - np.tile([y1, x1], 2)
            found = self._segmenter.segment(crop, boxes, class_ids[rows])
            every.append(_moved(found, (y1, x1), size))
            order += rows
        together = _concatenated(every, size)[np.argsort(np.array(order, int))]
        return dataclasses.replace(together, boxes_yxyx=boxes_yxyx, image=image, **others)


def _tile_of(box_yxyx: np.ndarray, places: Sequence[Tile]) -> int:
    """The number of the tile that a box is looked at in; the last is the whole image."""
    corners = np.array(places[:-1], float)  # [T, 4]
    holds = (corners[:, :2] <= box_yxyx[:2]).all(1) & (corners[:, 2:] >= box_yxyx[2:]).all(1)
    if not holds.any():
        return len(places) - 1
    middles = corners[:, :2] + corners[:, 2:] - box_yxyx[:2] - box_yxyx[2:]
    return int(np.argmin(np.where(holds, np.abs(middles).sum(1), np.inf)))


def detect(
    detect_images: Callable[[Sequence[np.ndarray]], list[Detections]],
    image: np.ndarray,
    tile: int,
    overlap: float,
) -> Detections:
    """The objects of an image, found tile by tile.

    Memory is that of the image, of a few tiles and of the objects' masks.

    Args:
      detect_images: images uint8 [H, W, 3] of one size -> their objects.
      image: uint8 RGB [H, W, 3].
      tile: see `Tiling`.
      overlap: see `Tiling`. An object is whole in one tile if it is not larger than the overlap;
        parts of larger ones are merged.

    Returns:
      The objects best first, in pixels of the image; masks of `SIDE` x `SIDE` cells if an object
      was merged.
    """
    height, width = image.shape[:2]
    places = tiles(height, width, tile, overlap)
    found: list[Detections] = []
    for start in range(0, len(places), _MOST_TILES):
        batch = places[start : start + _MOST_TILES]
        crops = [np.ascontiguousarray(image[y1:y2, x1:x2]) for y1, x1, y2, x2 in batch]
        found += detect_images(crops)
    return merge(found, places, (height, width))


def merge(
    found: Sequence[Detections], places: Sequence[Tile], image_size: tuple[int, int]
) -> Detections:
    """The objects of tiles as those of their image.

    Detections of one class in two tiles are one object where their masks agree in what both tiles
    see. Of an object that is whole in a tile the best such detection is taken, with its mask. Of
    one that is cut in all of them, masks and boxes are united; its score is the best.

    Args:
      found: of each tile, in pixels of the tile.
      places: of the tiles in the image.
      image_size: (height, width) of the image.
    """
    parts: list[_Part] = []
    every: list[Detections] = []
    for detections, (y1, x1, y2, x2) in zip(found, places, strict=True):
        every.append(_moved(detections, (y1, x1), image_size))
        border = _inner_borders((y1, x1, y2, x2), image_size)
        parts += [_Part(one, (y1, x1, y2, x2), border) for one in _masks_of(every[-1])]
    together = _concatenated(every, image_size)
    chosen = [_united(together, parts, group) for group in _groups(parts, together)]
    merged = _assembled(together, chosen)
    return merged[np.argsort(-merged.scores, kind="stable")]


@dataclasses.dataclass
class _Mask:
    """Set pixels of an object, bool [h, w], from (top, left) of the image on; and its box."""

    region: np.ndarray
    top: int
    left: int
    box_yxyx: np.ndarray

    def within(self, y1: int, x1: int, y2: int, x2: int) -> np.ndarray:
        """The pixels of a part of the image, bool [y2 - y1, x2 - x1]."""
        pixels = np.zeros([y2 - y1, x2 - x1], bool)
        height, width = self.region.shape
        top, left = max(y1, self.top), max(x1, self.left)
        bottom, right = min(y2, self.top + height), min(x2, self.left + width)
        if top < bottom and left < right:
            pixels[top - y1 : bottom - y1, left - x1 : right - x1] = self.region[
                top - self.top : bottom - self.top, left - self.left : right - self.left
            ]
        return pixels

    @property
    def extent(self) -> Tile:
        height, width = self.region.shape
        return self.top, self.left, self.top + height, self.left + width


class _Part:
    """A detection of a tile: its pixels, where it was seen, and whether a border cuts it."""

    def __init__(self, mask: _Mask, tile: Tile, border: np.ndarray):
        self.mask, self.tile = mask, tile
        outwards = np.array([-1, -1, 1, 1]) * (border - mask.box_yxyx)
        self.is_cut = bool((outwards < NEAR_BORDER_PX).any())

    def is_one_with(self, other: _Part) -> bool:
        """Whether the masks agree in what both tiles see of the two."""
        seen = _intersection(self.tile, other.tile)
        joint = _union(self.mask.extent, other.mask.extent)
        y1, x1, y2, x2 = _intersection(seen, joint)
        if y1 >= y2 or x1 >= x2:
            return False
        a, b = self.mask.within(y1, x1, y2, x2), other.mask.within(y1, x1, y2, x2)
        common, union = np.count_nonzero(a & b), np.count_nonzero(a | b)
        return bool(common > 0 and common >= LEAST_IOU * union)


def _intersection(a: Tile, b: Tile) -> Tile:
    return max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])


def _union(a: Tile, b: Tile) -> Tile:
    return min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])


def _inner_borders(tile: Tile, image_size: tuple[int, int]) -> np.ndarray:
    """The tile's borders (y1, x1, y2, x2); infinitely far where the image ends too."""
    ends = (0, 0, *image_size)
    far = (-np.inf, -np.inf, np.inf, np.inf)
    return np.array([f if t == e else t for t, e, f in zip(tile, ends, far, strict=True)], float)


def _moved(detections: Detections, corner: tuple[int, int], size: tuple[int, int]) -> Detections:
    """Detections of a tile in pixels of its image."""
    shift = np.tile(np.array(corner, np.float32), 2)
    windows = detections.mask_windows_yxyx
    return dataclasses.replace(
        detections,
        boxes_yxyx=detections.boxes_yxyx + shift,
        mask_windows_yxyx=None if windows is None else windows + shift,
        image_size=size,
    )


def _masks_of(detections: Detections) -> Iterator[_Mask]:
    """The set pixels of each; of a model of boxes only, those of the box."""
    for detection in detections:
        box = np.array(detection.box_yxyx)
        if detection.box_mask is None:
            y1, x1, y2, x2 = np.round(box).astype(int)
            yield _Mask(np.ones([y2 - y1, x2 - x1], bool), y1, x1, box)
        else:
            region, top, left = detection.region()
            yield _Mask(region.astype(bool), top, left, box)


def _concatenated(every: Sequence[Detections], image_size: tuple[int, int]) -> Detections:
    """The detections of all tiles as one list."""
    first = every[0]
    columns: dict[str, Any] = {
        field.name: np.concatenate([getattr(one, field.name) for one in every])
        for field in dataclasses.fields(Detections)
        if field.name != "image" and isinstance(getattr(first, field.name), np.ndarray)
    }
    return dataclasses.replace(first, **columns, image_size=image_size)


def _groups(parts: Sequence[_Part], together: Detections) -> list[list[int]]:
    """Numbers of the parts that are one object, best first."""
    parent = list(range(len(parts)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    boxes = together.boxes_yxyx
    tile_of = np.array([part.tile for part in parts]).reshape(-1, 4)
    for i, part in enumerate(parts):
        near = (boxes[i + 1 :, :2] < boxes[i, 2:]).all(1) & (boxes[i + 1 :, 2:] > boxes[i, :2]).all(
            1
        )
        near &= together.class_ids[i + 1 :] == together.class_ids[i]
        near &= (tile_of[i + 1 :] != tile_of[i]).any(1)
        for j in (np.flatnonzero(near) + i + 1).tolist():
            if root(i) != root(j) and part.is_one_with(parts[j]):
                parent[root(j)] = root(i)
    groups: dict[int, list[int]] = {}
    for i in np.argsort(-together.scores, kind="stable").tolist():
        groups.setdefault(root(i), []).append(i)
    return list(groups.values())


def _united(
    together: Detections, parts: Sequence[_Part], group: list[int]
) -> tuple[int, _Mask | None]:
    """The detection that stands for a group, and its mask where it is made of several."""
    whole = [i for i in group if not parts[i].is_cut]
    if whole or len(group) == 1:
        return (whole or group)[0], None
    masks = [parts[i].mask for i in group]
    y1, x1, y2, x2 = masks[0].extent
    for mask in masks[1:]:
        y1, x1, y2, x2 = _union((y1, x1, y2, x2), mask.extent)
    region = np.zeros([y2 - y1, x2 - x1], bool)
    for mask in masks:
        height, width = mask.region.shape
        region[mask.top - y1 :, mask.left - x1 :][:height, :width] |= mask.region
    boxes = np.stack([mask.box_yxyx for mask in masks])
    box = np.concatenate([boxes[:, :2].min(0), boxes[:, 2:].max(0)])
    return group[0], _Mask(region, y1, x1, box)


def _assembled(together: Detections, chosen: list[tuple[int, _Mask | None]]) -> Detections:
    """The chosen detections, their masks all of `SIDE` cells where one is made of several."""
    kept = together[np.array([i for i, _ in chosen], int)]
    if all(mask is None for _, mask in chosen):
        return kept
    boxes, windows = kept.boxes_yxyx.copy(), kept.mask_windows_yxyx
    windows = boxes.copy() if windows is None else windows.copy()
    for row, (_, mask) in enumerate(chosen):
        if mask is not None:
            boxes[row], windows[row] = mask.box_yxyx, mask.extent
    if kept.box_masks is None:
        return dataclasses.replace(kept, boxes_yxyx=boxes)
    sides = (SIDE, SIDE)
    cells = np.zeros([len(chosen), *sides], np.uint8)
    for row, (_, mask) in enumerate(chosen):
        if mask is None:
            probabilities = kept[row].probabilities().astype(np.float32)
            resized = cv2.resize(probabilities, sides, interpolation=cv2.INTER_LINEAR)
        else:
            region = mask.region.astype(np.float32)
            is_larger = min(region.shape) > SIDE
            how = cv2.INTER_AREA if is_larger else cv2.INTER_LINEAR
            resized = cv2.resize(region, sides, interpolation=how)
        cells[row] = np.round(255 * resized)
    return dataclasses.replace(kept, boxes_yxyx=boxes, box_masks=cells, mask_windows_yxyx=windows)
