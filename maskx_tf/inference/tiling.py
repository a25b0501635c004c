"""Where the tiles of a large image are, and the options --tile and --overlap."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from absl import flags

from maskx_tf.errors import UserError

MAX_PIXELS = 200_000_000  # of files that are looked at tile by tile

Tile = tuple[int, int, int, int]  # y1, x1, y2, x2 in pixels of the image, exclusive corners


class Tiling(NamedTuple):
    """How images are cut into tiles.

    Attributes:
      tile: their side in pixels; smaller only where the image is.
      overlap: share of a side that neighbours have in common at least.
    """

    tile: int = 1024
    overlap: float = 0.25


def define_flags() -> None:
    """Defines --tile and --overlap."""
    flags.DEFINE_integer(
        "tile",
        0,
        "Side in pixels of overlapping tiles that large images are looked at in; 0: the whole "
        "image at once.",
        lower_bound=0,
    )
    flags.DEFINE_float("overlap", 0.25, "Share of a side that neighbouring tiles have in common.")


def from_flags(values: flags.FlagValues) -> Tiling | None:
    """The tiling that the parsed flags ask for; UserError where there is no such."""
    return tiling_of(values.tile, values.overlap)


def tiling_of(tile: int, overlap: float) -> Tiling | None:
    """None where a tile has no pixel: images are looked at as a whole; UserError if impossible."""
    check(tile or 1, overlap)
    return Tiling(tile, overlap) if tile else None


def check(tile: int, overlap: float) -> None:
    """A UserError where there are no such `tiles`."""
    if tile < 1:
        raise UserError(f"--tile={tile} must be at least 1 pixel.")
    if not 0 <= overlap < 1:
        raise UserError(f"--overlap={overlap} must lie in [0, 1).")


def starts(length: int, tile: int, overlap: float) -> list[int]:
    """Where tiles of a side begin: evenly, the last ends with the image."""
    if length <= tile:
        return [0]
    count = 1 + int(np.ceil((length - tile) / max(tile * (1 - overlap), 1)))
    return np.round(np.linspace(0, length - tile, count)).astype(int).tolist()


def tiles(height: int, width: int, tile: int, overlap: float) -> list[Tile]:
    """Tiles of an image of height x width pixels, row by row; the rest is as of `Tiling`.

    Raises:
      UserError: there are no such tiles.
    """
    check(tile, overlap)
    return [
        (y, x, min(y + tile, height), min(x + tile, width))
        for y in starts(height, tile, overlap)
        for x in starts(width, tile, overlap)
    ]
