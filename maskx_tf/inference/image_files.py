"""Image files as commands take them: found by name, directory or pattern, numbered as COCO does.

And their pixels without TensorFlow, to draw on.
"""

from __future__ import annotations

import io
import itertools
import os
import pathlib
from collections import Counter
from collections.abc import Sequence

import numpy as np
from PIL import Image

from maskx_tf.data.coco import instances
from maskx_tf.data.image_formats import BadImageError, to_picture, turned, upright_file
from maskx_tf.errors import ImageError, UserError
from maskx_tf.system.literal_paths import matches

_JPEG = (".jpg", ".jpeg", ".jpe", ".jfif")
SUFFIXES = (
    *_JPEG, ".png", ".avif", ".bmp", ".gif", ".jp2", ".ppm", ".tif", ".tiff", ".webp"
)  # fmt: skip


def find_images(patterns: Sequence[str]) -> list[pathlib.Path]:
    """The image files of files, directories and glob patterns, each once, in order.

    Raises:
      UserError: something matches no image.
    """
    found: dict[pathlib.Path, None] = {}
    for pattern in patterns:
        path = pathlib.Path(pattern)
        if path.is_dir():
            images = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
        else:
            images = [match for match in matches(pattern) if match.is_file()]
        if not images:
            raise UserError(f"--images: {pattern!r} matches no image file.")
        found.update(dict.fromkeys(images))
    if not found:
        raise UserError("--images is needed: image files, directories or glob patterns.")
    return list(found)


def left_out(patterns: Sequence[str]) -> str:
    """A line on what directories among `patterns` hold beside images; empty if nothing.

    Hidden files are not counted.
    """
    kinds: Counter[str] = Counter()
    folders: list[pathlib.Path] = []
    for directory in filter(os.path.isdir, patterns):
        for path in pathlib.Path(directory).iterdir():
            if path.name.startswith("."):
                continue
            if path.is_dir():
                folders.append(path)
            elif path.suffix.lower() not in SUFFIXES:
                kinds[path.suffix.lower() or "without an ending"] += 1
    told = [f"{count} {kind}" for kind, count in kinds.most_common(8)]
    if folders:
        told.append(f"{len(folders)} folders (name '{folders[0].parent}/**/*.jpg' for theirs)")
    if not told:
        return ""
    return f"left out, as no images by their names: {', '.join(told)}"


def image_ids(paths: Sequence[pathlib.Path], annotations: str) -> list[int]:
    """The image ids of a COCO json by file name; without one, 1, 2, 3, … in order.

    A path belongs to the longest file_name of the json that it ends with; where it ends with none,
    to the one that has the most of its last parts, at least the base name.

    Raises:
      UserError: it is not a COCO json; a path belongs to no image of it, or to several; or two
        paths to the same.
    """
    if not annotations:
        return list(range(1, len(paths) + 1))
    by_name: dict[str, list[tuple[tuple[str, ...], int]]] = {}
    for item in instances.read_images(annotations):
        parts = pathlib.PurePath(item.file_name.replace("\\", "/")).parts or (item.file_name,)
        by_name.setdefault(parts[-1], []).append((parts, item.image_id))
    missing = [path.name for path in paths if path.name not in by_name]
    if missing:
        raise UserError(
            f"--annotations={annotations} does not have {len(missing)} of {len(paths)} images, "
            f"such as {missing[0]}; leave them out or drop the flag."
        )
    found: dict[int, pathlib.Path] = {}
    for path in paths:
        image_id = _image_id(path, by_name[path.name], annotations)
        if image_id in found:
            raise UserError(
                f"{found[image_id]} and {path} are both image {image_id} of "
                f"--annotations={annotations}; leave one out or drop the flag."
            )
        found[image_id] = path
    return list(found)


def _image_id(
    path: pathlib.Path, named: Sequence[tuple[tuple[str, ...], int]], annotations: str
) -> int:
    """The id of a path among (parts of file_name, id) of its base name."""
    own = pathlib.Path(os.path.abspath(path)).parts
    rated = []
    for parts, image_id in named:
        pairs = zip(reversed(own), reversed(parts), strict=False)
        common = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        rated.append(((common == len(parts), common), image_id))
    best = max(rate for rate, _ in rated)
    ids = {image_id for rate, image_id in rated if rate == best}
    if len(ids) > 1:
        raise UserError(
            f"{path} may be {len(ids)} images of --annotations={annotations}, ids "
            f"{', '.join(sorted(map(str, ids))[:5])}: name it with the directories of its "
            "file_name."
        )
    return ids.pop()


def overlay_paths(paths: Sequence[pathlib.Path], directory: pathlib.Path) -> list[pathlib.Path]:
    """A path of its own in `directory` for each image: JPEG for JPEG, PNG for all else."""
    inputs = {path.resolve() for path in paths}
    targets: dict[pathlib.Path, None] = {}
    for path in paths:
        suffix = ".jpg" if path.suffix.lower() in _JPEG else ".png"
        target, number = directory / f"{path.stem}{suffix}", 1
        while target in targets:
            number += 1
            target = directory / f"{path.stem}-{number}{suffix}"
        if target.resolve() in inputs:
            raise UserError(f"{target} is one of --images; choose another directory for pictures.")
        targets[target] = None
    return list(targets)


def read_upright(
    image: bytes | str | os.PathLike[str], image_size: tuple[int, int], name: str = ""
) -> np.ndarray:
    """The picture that detections refer to, uint8 RGB [height, width, 3].

    Args:
      image: path of an image file, or its bytes.
      image_size: (height, width) as of the detections: it tells whether the model honours an
        orientation in the file's EXIF data.
      name: of the image, for messages; its path if it has one.

    Raises:
      ImageError: it cannot be read, or is not of that size either way.
    """
    name = name or ("image" if isinstance(image, bytes) else os.fspath(image))
    try:
        data = image if isinstance(image, bytes) else pathlib.Path(image).read_bytes()
        picture = to_picture(upright_file(data))
        with Image.open(io.BytesIO(picture.encoded)) as stored:
            pixels = np.asarray(stored.convert("RGB"))
    except (OSError, ValueError, BadImageError, Image.DecompressionBombError) as error:
        raise ImageError(f"{name} cannot be drawn on: {error}") from None
    upright = turned(pixels, picture.orientation)
    for candidate in (upright, pixels):
        if candidate.shape[:2] == image_size:
            return candidate
    raise ImageError(
        f"{name} cannot be drawn on: it has {upright.shape[1]} × {upright.shape[0]} pixels here, "
        f"and {image_size[1]} × {image_size[0]} for the model."
    )
