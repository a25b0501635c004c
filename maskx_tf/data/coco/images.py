"""Reading of image files for records: checked, original bytes kept where they can be."""

from __future__ import annotations

import errno
import io
import os
import pathlib
from typing import NamedTuple

import PIL.Image
import PIL.ImageOps

_KEPT_FORMATS = {"JPEG", "MPO", "PNG"}  # MPO: a JPEG followed by further pictures
_KEPT_MODES = {"L", "RGB", "1", "I;16"}
_EXIF_ORIENTATION = 0x0112
_EXIF_TURNED = {2, 3, 4, 5, 6, 7, 8}
_EXIF_TRANSPOSED = {5, 6, 7, 8}  # orientations that exchange height and width


class BadImageError(Exception):
    """An image file that cannot be used; `reason` is a key of `issues.REASONS`."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class EncodedImage(NamedTuple):
    """JPEG or PNG bytes, size in pixels, and what was done or is odd (a reason of `issues`)."""

    encoded: bytes
    height: int
    width: int
    change: str | None


def read_image(path: pathlib.Path, expected: tuple[int | None, int | None]) -> EncodedImage:
    """Reads and checks an image file.

    Args:
      path: of the file.
      expected: (height, width) that the annotations were made for, None where unknown; an image is
        turned as its EXIF says only if this makes it fit.

    Raises:
      BadImageError: missing, truncated or not an image.
    """
    name = printable(str(path))
    try:
        if not os.path.isfile(path):  # a device would be read for ever
            raise FileNotFoundError(errno.ENOENT, "there is no such file")
        data = path.read_bytes()
    except OSError as error:
        message = f"{name} cannot be read: {error.strerror}"
        raise BadImageError("image_missing", message) from None
    try:
        return _decode(data, expected)
    except Exception as error:  # Pillow raises a dozen types on damaged files
        message = f"{name} cannot be decoded: {' '.join(str(error).split())}"
        raise BadImageError("image_corrupt", message) from None


def printable(path: str) -> str:
    """A path for a message: in quotes and escaped where it would not stay on one line."""
    return path if path.isprintable() else repr(path)


def _decode(data: bytes, expected: tuple[int | None, int | None]) -> EncodedImage:
    with PIL.Image.open(io.BytesIO(data)) as image:
        width, height = image.size
        orientation = image.getexif().get(_EXIF_ORIENTATION)
        size_tells = orientation in _EXIF_TRANSPOSED and height != width
        if size_tells and expected == (width, height):
            upright = PIL.ImageOps.exif_transpose(image).convert("RGB")
            return EncodedImage(_png(upright), width, height, "image_rotated")
        is_known = orientation not in _EXIF_TURNED or (size_tells and expected == (height, width))
        if image.format in _KEPT_FORMATS and image.mode in _KEPT_MODES:
            # Reads all of the entropy-coded data, so finds truncation, at an eighth of the size.
            image.draft(image.mode, (-(-width // 8), -(-height // 8)))
            image.load()
            change = None if is_known else "image_rotation_unknown"
            return EncodedImage(data, height, width, change)
        return EncodedImage(_png(image.convert("RGB")), height, width, "image_reencoded")


def _png(image: PIL.Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
