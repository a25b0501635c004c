"""Reading of image files for records: checked by decoding them, original bytes where possible."""

from __future__ import annotations

import errno
import os
import pathlib
from typing import NamedTuple

import numpy as np

from maskx_tf.data import image_formats
from maskx_tf.data.image_formats import BadImageError


class ReadImage(NamedTuple):
    """An image file.

    Attributes:
      encoded: JPEG or PNG bytes.
      pixels: uint8 RGB [H, W, 3], what training decodes of them.
      changes: what was done to it or is odd, reasons of `issues`.
    """

    encoded: bytes
    pixels: np.ndarray
    changes: tuple[str, ...]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.pixels.shape[0], self.pixels.shape[1]


def read_image(
    path: pathlib.Path,
    expected: tuple[int | None, int | None],
    pixel_range: tuple[float, float] | None = None,
) -> ReadImage:
    """Reads an image file and decodes it as training will.

    Args:
      path: of the file.
      expected: (height, width) that the annotations were made for, None where unknown; an image is
        turned as its EXIF says only if this makes it fit.
      pixel_range: see `image_formats.to_picture`.

    Raises:
      BadImageError: missing, damaged or not an image; names the file.
    """
    # Imported here: who knows of no image to read does without TensorFlow.
    from maskx_tf.data import decoding

    name = printable(str(path))
    try:
        if not os.path.isfile(path):  # a device would be read for ever
            raise FileNotFoundError(errno.ENOENT, "there is no such file")
        data = path.read_bytes()
    except OSError as error:
        message = f"{name} cannot be read: {error.strerror}"
        raise BadImageError("image_missing", message) from None
    try:
        picture = image_formats.to_picture(data, pixel_range)
        pixels = decoding.to_array(picture.encoded)
    except BadImageError as error:
        raise BadImageError(error.reason, f"{name} cannot be used: {error}") from None
    height, width = pixels.shape[:2]
    size_tells = picture.orientation in image_formats.TRANSPOSED and height != width
    if size_tells and expected == (width, height):
        pixels = image_formats.turned(pixels, picture.orientation)
        return ReadImage(image_formats.png(pixels), pixels, (*picture.changes, "image_rotated"))
    is_known = picture.orientation == 1 or (size_tells and expected == (height, width))
    changes = () if is_known else ("image_rotation_unknown",)
    return ReadImage(picture.encoded, pixels, (*picture.changes, *changes))


def printable(path: str) -> str:
    """A path for a message: in quotes and escaped where it would not stay on one line."""
    return path if path.isprintable() else repr(path)
