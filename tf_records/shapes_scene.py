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
      pair_share: share of the objects that come as pairs: two of one shape and different texture
        in nearly the same box, the upper one torn off along a line.
      side: length of the longer side of a box.
      aspect: shorter / longer side of a box.
      angle: rotation of a silhouette, radians.
      upper_scale: side of the upper / the lower box of a pair, for each axis on its own.
      torn_share: share of its silhouette that the upper of a pair keeps.
      min_visible: least share of its silhouette that any object shows.
      max_overlap: largest share of a place's box that an earlier place may share with it.
      texture_period: of stripes, checks and dots.
      colour_contrast: least RGB distance (0 to 441) between the two colours of an object.
      pair_contrast: least RGB distance between the first colours of a pair.
      strokes: number of distractor strokes in the background.
      background_noise: standard deviation of the background's noise, grey levels.
      image_noise: standard deviation of the noise over the whole image, grey levels.
      tries: attempts to find room for a place before it is left out.
    """

    image_size: int = 96
    places: tuple[int, int] = (2, 4)
    pair_share: float = 0.7
    side: tuple[int, int] = (28, 52)
    aspect: tuple[float, float] = (0.75, 1.0)
    angle: tuple[float, float] = (-0.2, 0.2)
    upper_scale: tuple[float, float] = (0.9, 1.0)
    torn_share: tuple[float, float] = (0.4, 0.6)
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
    """Sets A and B, half of the classes each.

    Every shape is in A with half of the textures and every texture with half of the shapes. Which
    textures they are moves on from shape to shape, so that every two textures meet in A under some
    shape; on a checkerboard half of them never would, and T could not learn to tell them apart.
    """
    halves: tuple[list[str], list[str]] = ([], [])
    for index, name in enumerate(CLASS_NAMES):
        shape, adjective = divmod(index, len(TEXTURE_NAMES))
        halves[(adjective - shape) % len(TEXTURE_NAMES) not in (0, 1, 3)].append(name)
    return tuple(halves[0]), tuple(halves[1])


@dataclasses.dataclass
class SceneObject:
    """An object of a scene.

    Attributes:
      class_id: 1..72, index into CLASS_NAMES plus one.
      box_yxyx: [4] int, exclusive corners, of the whole silhouette.
      silhouette: bool [h, w] over the box, whole.
      kept: bool [h, w], the silhouette without what is torn off.
      visible: bool [image_size, image_size], what later objects leave of what is kept.
      is_upper: it lies on the object before it, with nearly the same box.
    """

    class_id: int
    box_yxyx: tuple[int, int, int, int]
    silhouette: np.ndarray
    kept: np.ndarray
    visible: np.ndarray
    is_upper: bool = False

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
