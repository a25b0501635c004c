"""Scenes of Shapes: what lies where. An image depends on (seed, split, index) only."""

from __future__ import annotations

import dataclasses

import numpy as np

from tf_records.shapes_draw import SILHOUETTES, TEXTURES, silhouette
from tf_records.shapes_paint import paint


@dataclasses.dataclass(frozen=True)
class SceneOptions:
    """The statistics of scenes. Lengths are pixels; pairs (a, b) are uniform ranges.

    Attributes:
      image_size: side of the square images.
      places: number of places for objects in an image; each holds one object or a pair.
      pair_share: share of the objects that come as pairs, an emblem lying on a plate.
      side: length of the longer side of a box.
      aspect: shorter / longer side of a box.
      angle: rotation of a silhouette, radians.
      emblem_scale: emblem / plate box side, for each axis on its own.
      pair_distinct_textures: the two of a pair differ in texture; in shape they always do.
      pair_min_visible: least share of its silhouette that the plate of a pair shows.
      min_visible: least share of its silhouette that any object shows.
      max_overlap: largest share of a place's box that an earlier place may share with it.
      texture_period: of stripes, checks and dots.
      colour_contrast: least RGB distance (0 to 441) between the two colours of an object.
      pair_contrast: least RGB distance between the first colours of emblem and plate.
      strokes: number of distractor strokes in the background.
      background_noise: standard deviation of the background's noise, grey levels.
      image_noise: standard deviation of the noise over the whole image, grey levels.
      tries: attempts to find room for a place before it is left out.
    """

    image_size: int = 96
    places: tuple[int, int] = (2, 4)
    pair_share: float = 0.5
    side: tuple[int, int] = (28, 52)
    aspect: tuple[float, float] = (0.75, 1.0)
    angle: tuple[float, float] = (-0.2, 0.2)
    emblem_scale: tuple[float, float] = (0.85, 1.0)
    pair_distinct_textures: bool = True
    pair_min_visible: float = 0.25
    min_visible: float = 0.2
    max_overlap: float = 0.35
    texture_period: tuple[float, float] = (6.0, 9.0)
    colour_contrast: float = 150.0
    pair_contrast: float = 80.0
    strokes: tuple[int, int] = (4, 10)
    background_noise: float = 12.0
    image_noise: float = 5.0
    tries: int = 20


SHAPES = tuple(SILHOUETTES)
TEXTURE_NAMES = tuple(TEXTURES)
CLASS_NAMES = tuple(f"{adjective} {shape}" for shape in SHAPES for adjective in TEXTURE_NAMES)


def set_a_names() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Sets A and B: a checkerboard over (shape, texture), so that A has every factor value."""
    halves: tuple[list[str], list[str]] = ([], [])
    for index, name in enumerate(CLASS_NAMES):
        shape, adjective = divmod(index, len(TEXTURE_NAMES))
        halves[(shape + adjective) % 2].append(name)
    return tuple(halves[0]), tuple(halves[1])


@dataclasses.dataclass
class SceneObject:
    """An object of a scene.

    Attributes:
      class_id: 1..72, index into CLASS_NAMES plus one.
      box_yxyx: [4] int, exclusive corners, of the whole silhouette.
      silhouette: bool [h, w] over the box.
      visible: bool [image_size, image_size], what later objects leave of the silhouette.
      is_emblem: it lies on the object before it, with nearly the same box.
    """

    class_id: int
    box_yxyx: tuple[int, int, int, int]
    silhouette: np.ndarray
    visible: np.ndarray
    is_emblem: bool = False

    @property
    def shape(self) -> str:
        """Name of the silhouette."""
        return SHAPES[(self.class_id - 1) // len(TEXTURE_NAMES)]

    @property
    def texture(self) -> str:
        """Name of the texture."""
        return TEXTURE_NAMES[(self.class_id - 1) % len(TEXTURE_NAMES)]

    @property
    def visible_share(self) -> float:
        """Visible pixels / pixels of the silhouette."""
        return float(self.visible.sum() / self.silhouette.sum())


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
    if new is None:
        return None
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
) -> list[SceneObject] | None:
    """[plate, emblem], the emblem inside the plate's box; None if the plate would be hidden."""
    sides = np.array(box[2:]) - box[:2]
    scaled = np.round(sides * rng.uniform(*options.emblem_scale, 2)).astype(int)
    emblem_sides = np.maximum(scaled, 2)
    y, x = (box[:2] + rng.integers(0, sides - emblem_sides + 1)).tolist()
    emblem_box = (y, x, y + int(emblem_sides[0]), x + int(emblem_sides[1]))
    # Alternately the one and the other is fixed first, so that neither role decides the classes.
    fixed_first = rng.integers(2)
    fixed = _object((box, emblem_box)[fixed_first], rng, options)
    for _ in range(options.tries):
        drawn = _object((emblem_box, box)[fixed_first], rng, options)
        plate, emblem = (fixed, drawn) if fixed_first == 0 else (drawn, fixed)
        if plate.shape == emblem.shape:
            continue
        if options.pair_distinct_textures and plate.texture == emblem.texture:
            continue
        left = (plate.visible & ~emblem.visible).sum() / plate.visible.sum()
        if left >= options.pair_min_visible:
            emblem.is_emblem = True
            return [plate, emblem]
    return None


def _object(
    box: tuple[int, int, int, int], rng: np.random.Generator, options: SceneOptions
) -> SceneObject:
    class_id = int(rng.integers(len(CLASS_NAMES))) + 1
    y1, x1, y2, x2 = box
    shape = SHAPES[(class_id - 1) // len(TEXTURE_NAMES)]
    mask = silhouette(shape, y2 - y1, x2 - x1, rng.uniform(*options.angle))
    visible = np.zeros([options.image_size] * 2, bool)
    visible[y1:y2, x1:x2] = mask
    return SceneObject(class_id, box, mask, visible)


def _shared(box: tuple[int, ...], other: tuple[int, ...]) -> float:
    """Intersection / the smaller of two boxes."""
    height = min(box[2], other[2]) - max(box[0], other[0])
    width = min(box[3], other[3]) - max(box[1], other[1])
    if height <= 0 or width <= 0:
        return 0.0
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (box, other)]
    return height * width / min(areas)
