"""Image files as commands take them: found by name, directory or pattern, numbered as COCO does."""

from __future__ import annotations

import glob
import json
import pathlib
from collections.abc import Sequence

from maskx_tf.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")


def find_images(patterns: Sequence[str]) -> list[pathlib.Path]:
    """The image files of files, directories and glob patterns, each once, in order.

    Raises:
      UserError: something matches no image.
    """
    found: dict[pathlib.Path, None] = {}
    for pattern in patterns:
        path = pathlib.Path(pattern)
        if path.is_dir():
            matches = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
        elif path.is_file():
            matches = [path]
        else:
            matches = [pathlib.Path(match) for match in sorted(glob.glob(pattern, recursive=True))]
            matches = [match for match in matches if match.is_file()]
        if not matches:
            raise UserError(f"--images: {pattern!r} matches no image file.")
        found.update(dict.fromkeys(matches))
    if not found:
        raise UserError("--images is needed: image files, directories or glob patterns.")
    return list(found)


def image_ids(paths: Sequence[pathlib.Path], annotations: str) -> list[int]:
    """The image ids of a COCO json by file name; without one, 1, 2, 3, … in order."""
    if not annotations:
        return list(range(1, len(paths) + 1))
    try:
        images = json.loads(pathlib.Path(annotations).read_text())["images"]
        ids = {pathlib.Path(image["file_name"]).name: image["id"] for image in images}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"--annotations={annotations} is not a COCO json: {error!r}.") from None
    missing = [path.name for path in paths if path.name not in ids]
    if missing:
        raise UserError(
            f"--annotations={annotations} does not have {len(missing)} of {len(paths)} images, "
            f"such as {missing[0]}; leave them out or drop the flag."
        )
    return [ids[path.name] for path in paths]


def overlay_paths(paths: Sequence[pathlib.Path], directory: pathlib.Path) -> list[pathlib.Path]:
    """A path of its own in `directory` for each image: JPEG for JPEG, PNG for all else."""
    inputs = {path.resolve() for path in paths}
    targets: dict[pathlib.Path, None] = {}
    for path in paths:
        suffix = ".jpg" if path.suffix.lower() in (".jpg", ".jpeg") else ".png"
        target, number = directory / f"{path.stem}{suffix}", 1
        while target in targets:
            number += 1
            target = directory / f"{path.stem}-{number}{suffix}"
        if target.resolve() in inputs:
            raise UserError(f"{target} is one of --images; choose another directory for pictures.")
        targets[target] = None
    return list(targets)
