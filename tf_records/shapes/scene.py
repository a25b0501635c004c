"""Scenes of Shapes: what lies where. An image depends on (seed, split, index) only."""

from __future__ import annotations

import dataclasses

import numpy as np

from tf_records.shapes.draw import silhouette
from tf_records.shapes.objects import CLASS_NAMES, SHAPES, TEXTURE_NAMES, SceneObject, SceneOptions
from tf_records.shapes.paint import paint


def make_scene(
    seed: int, split: int, index: int, options: SceneOptions
) -> tuple[np.ndarray, list[SceneObject]]:
    """Image uint8 RGB [image_size, image_size, 3] and its objects from bottom to top."""
    rng = np.random.default_rng([seed, split, index])
    objects: list[SceneObject] = []
    for _ in range(rng.integers(options.places[0], options.places[1] + 1)):
        for _ in range(options.tries):
            candidate = _with_place(objects, rng, options)
            if candidate is not None:
                objects = candidate
                break
    return paint(objects, rng, options), objects


def _with_place(
    objects: list[SceneObject], rng: np.random.Generator, options: SceneOptions
) -> list[SceneObject] | None:
    """The objects with one more place on top; None if it does not fit."""
    share = options.pair_share
    is_pair = rng.random() < share / (2 - share)  # of places, so that `share` is that of objects
    longer = rng.integers(options.side[0], options.side[1] + 1)
    shorter = max(2, round(longer * rng.uniform(*options.aspect)))
    height, width = (longer, shorter) if rng.random() < 0.5 else (shorter, longer)
    y = int(rng.integers(0, options.image_size - height + 1))
    x = int(rng.integers(0, options.image_size - width + 1))
    box = (y, x, y + int(height), x + int(width))
    if any(_shared(box, other.box_yxyx) > options.max_overlap for other in objects):
        return None
    new = _pair(box, rng, options) if is_pair else [_object(box, rng, options)]
    everything = [dataclasses.replace(item) for item in objects]
    for item in new:
        for lower in everything:
            lower.visible = lower.visible & ~item.visible
        everything.append(item)
    if any(item.visible_share < options.min_visible for item in everything):
        return None
    return everything


def _pair(
    box: tuple[int, int, int, int], rng: np.random.Generator, options: SceneOptions
) -> list[SceneObject]:
    """[lower, upper]: one shape twice in nearly the same box, the upper torn along a line."""
    sides = np.array(box[2:]) - box[:2]
    upper_sides = np.round(sides * rng.uniform(*options.upper_scale, 2)).astype(int)
    y, x = (box[:2] + rng.integers(0, sides - upper_sides + 1)).tolist()
    upper_box = (y, x, y + int(upper_sides[0]), x + int(upper_sides[1]))
    lower = _object(box, rng, options)
    shape = SHAPES.index(lower.shape)
    others = [index for index, name in enumerate(TEXTURE_NAMES) if name != lower.texture]
    class_id = shape * len(TEXTURE_NAMES) + int(rng.choice(others)) + 1
    upper = _object(upper_box, rng, options, class_id)
    upper.is_upper = True
    _tear(upper, rng, options)
    return [lower, upper]


def _tear(item: SceneObject, rng: np.random.Generator, options: SceneOptions) -> None:
    """Takes away what lies on one side of a random line, so that a share is kept."""
    y, x = np.nonzero(item.kept)
    angle = rng.uniform(0, 2 * np.pi)
    along = y * np.sin(angle) + x * np.cos(angle)  # [pixels]
    gone = along > np.quantile(along, rng.uniform(*options.torn_share))
    item.kept[y[gone], x[gone]] = False
    y1, x1, y2, x2 = item.box_yxyx
    item.visible[y1:y2, x1:x2] &= item.kept


def _object(
    box: tuple[int, int, int, int],
    rng: np.random.Generator,
    options: SceneOptions,
    class_id: int | None = None,
) -> SceneObject:
    """An object of the class, or of a random one."""
    if class_id is None:
        class_id = int(rng.integers(len(CLASS_NAMES))) + 1
    y1, x1, y2, x2 = box
    shape = SHAPES[(class_id - 1) // len(TEXTURE_NAMES)]
    mask = silhouette(shape, y2 - y1, x2 - x1, rng.uniform(*options.angle))
    visible = np.zeros([options.image_size] * 2, bool)
    visible[y1:y2, x1:x2] = mask
    return SceneObject(class_id, box, mask, mask.copy(), visible)


def _shared(box: tuple[int, ...], other: tuple[int, ...]) -> float:
    """Intersection / the smaller of two boxes."""
    height = min(box[2], other[2]) - max(box[0], other[0])
    width = min(box[3], other[3]) - max(box[1], other[1])
    if height <= 0 or width <= 0:
        return 0.0
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (box, other)]
    return height * width / min(areas)
