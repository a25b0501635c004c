"""Reading of image files for records: checked by decoding them, original bytes where possible."""

from __future__ import annotations

import collections
import contextlib
import errno
import functools
import os
import pathlib
import re
import unicodedata
import urllib.parse
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import PIL.Image

from maskx_tf.data import image_formats
from maskx_tf.data.coco.instances import ImageItem
from maskx_tf.data.coco.issues import Issue
from maskx_tf.data.image_formats import BadImageError

_LOCAL_FILES = "local-files/?d="  # of Label Studio, before the path of a photo
_UPLOAD = re.compile(r"[0-9a-f]{8}-(.+)")  # how it names uploads


class ReadImage(NamedTuple):
    """An image file.

    Attributes:
      encoded: JPEG or PNG bytes.
      pixels: uint8 RGB [H, W, 3], what training decodes of them.
      changes: what was done to it or is odd, reasons of `issues`.
      is_on_its_side: EXIF would exchange height and width, and was not followed.
    """

    encoded: bytes
    pixels: np.ndarray
    changes: tuple[str, ...]
    is_on_its_side: bool

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
    encoded, changes = picture.encoded, picture.changes
    change = _change(picture.orientation, pixels.shape[:2], expected)
    if change == "image_rotated":
        pixels = image_formats.turned(pixels, picture.orientation)
        encoded = image_formats.png(pixels)
    is_on_its_side = change != "image_rotated" and picture.orientation in image_formats.TRANSPOSED
    return ReadImage(encoded, pixels, (*changes, change) if change else changes, is_on_its_side)


def _change(
    orientation: int, size: tuple[int, ...], expected: tuple[int | None, int | None]
) -> str:
    """What EXIF does to an image of a (height, width): "image_rotated" or that it may have to."""
    is_turned = orientation in image_formats.TRANSPOSED and expected == size[::-1] != size
    if is_turned:
        return "image_rotated"
    return "" if orientation == 1 else "image_rotation_unknown"


def read_size(
    path: pathlib.Path, expected: tuple[int | None, int | None]
) -> tuple[tuple[int, int], tuple[str, ...]]:
    """(height, width) and changes of what `read_image` gives, from the file's header if that tells.

    Raises:
      BadImageError: missing or not an image.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with PIL.Image.open(path, formats=("JPEG", "MPO", "PNG")) as image:
                width, height = image.size
    except Exception:  # of another kind, or damaged: Pillow raises a dozen types
        read = read_image(path, expected)
        return read.size, read.changes
    picture = image_formats.to_picture(path.read_bytes())
    change = _change(picture.orientation, (height, width), expected)
    size = (width, height) if change == "image_rotated" else (height, width)
    return size, (*picture.changes, change) if change else picture.changes


def locate(
    items: Sequence[ImageItem], directory: str | os.PathLike[str]
) -> tuple[list[ImageItem], list[Issue]]:
    """The images with the paths of their files, and those that another spelling has found.

    A file that is not there by its name is looked for with slashes for backslashes, with %20 and
    the like decoded, with fewer of its directories (of absolute paths and URLs), without the prefix
    that Label Studio gives to uploads, and in other cases of its letters or codes of its accents;
    what would be the file of two images is none.
    """
    root = pathlib.Path(directory)
    paths = [root / item.file_name for item in items]
    missing = [index for index, path in enumerate(paths) if not os.path.isfile(path)]
    others = {index: other_spelling(root, items[index].file_name) for index in missing}
    uses = collections.Counter(path for path in others.values())
    uses.update(set(paths) & uses.keys())
    issues = []
    for index, path in others.items():
        if path is not None and uses[path] == 1:
            paths[index] = path
            issues.append(Issue("image_name_differs", items[index].image_id))
    located = zip(items, paths, strict=True)
    return [item._replace(path=str(path)) for item, path in located], issues


def other_spelling(root: pathlib.Path, file_name: str) -> pathlib.Path | None:
    """The file that an image of this name likely is, though none is called so; None if none is."""
    name = urllib.parse.unquote(file_name.replace("\\", "/"))
    name = name.rpartition(_LOCAL_FILES)[2]
    if "://" in name:
        name = urllib.parse.urlsplit(name).path
    parts = [part for part in name.split("/") if part not in ("", ".", "..")]
    uploads = [[match[1]] for part in parts[-1:] if (match := _UPLOAD.fullmatch(part))]
    for candidate in (*(parts[start:] for start in range(len(parts))), *uploads):
        path = root.joinpath(*candidate)
        if os.path.isfile(path):
            return path
        if same := _of_another_case(path):
            return same
    return None


def _of_another_case(path: pathlib.Path) -> pathlib.Path | None:
    """The one file of the directory whose name differs in case or in codes of accents only."""
    names = _names_by_case(str(path.parent)).get(_caseless(path.name), [])
    return path.with_name(names[0]) if len(names) == 1 else None


@functools.lru_cache(maxsize=16)
def _names_by_case(directory: str) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            names.setdefault(_caseless(entry.name), []).append(entry.name)
    return names


def _caseless(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()  # é is one code or two


def printable(path: str) -> str:
    """A path for a message: in quotes and escaped where it would not stay on one line."""
    return path if path.isprintable() else repr(path)
