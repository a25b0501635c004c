"""Classes and objects of Shapes, and the statistics of its scenes."""

from __future__ import annotations

import dataclasses

import numpy as np

from tf_records.shapes.draw import SILHOUETTES, TEXTURES


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
