"""Folders of COCO jsons, LVIS's too: where the json of each split is, and its images."""

from __future__ import annotations

import os
import pathlib
import re

from maskx_tf.data.coco import instances
from maskx_tf.errors import UserError
from tf_records.folders import labels as labels_lib

_KEYS = re.compile(rb'"(images|annotations|categories|info|licenses)"\s*:')
_NO_INSTANCES = re.compile("caption|keypoint|panoptic|stuff|image_info", re.IGNORECASE)
_SPLIT = re.compile("train|val|test", re.IGNORECASE)


def recognise(folder: pathlib.Path) -> str:
    """What says that a folder has COCO jsons; empty if nothing does."""
    files = _files(folder)
    return f"{files[0].relative_to(folder)} is a COCO json" if files else ""


def find(folder: pathlib.Path, images: str | None = None) -> dict[str, tuple[str, str]]:
    """Split -> (json, directory of its images).

    Raises:
      UserError: a split has two jsons, or the images of one are nowhere.
    """
    splits: dict[str, tuple[str, str]] = {}
    for path in _files(folder):
        own = path.parent.name if path.parent not in (folder, folder / "annotations") else path.stem
        match = _SPLIT.search(own)
        name = match[0].lower() if match else ""
        if name in splits:
            raise UserError(
                f"{folder} has two jsons of {name or 'all images'}, {splits[name][0]} and {path}: "
                "name one with maskx records coco --annotations=…"
            )
        splits[name] = (str(path), str(_images(path, folder, name, images)))
    return splits


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    directories = [folder, folder / "annotations"]
    directories += [directory for _, directory in labels_lib.split_directories(folder)]
    return [
        path
        for directory in directories
        for path in labels_lib.listed(directory, "*.json")
        if not _NO_INSTANCES.search(path.name) and _is_coco(path)
    ]


def _is_coco(path: pathlib.Path) -> bool:
    head = labels_lib.head(path).removeprefix(b"\xef\xbb\xbf").lstrip()
    return head.startswith(b"{") and bool(_KEYS.search(head))


def _images(path: pathlib.Path, folder: pathlib.Path, name: str, given: str | None) -> pathlib.Path:
    """Where the first image of a json is."""
    if given:
        return labels_lib.images_beside(folder, given)
    first = instances.read_images(str(path))[0].file_name
    inner = sorted(one for root in (folder, folder / "images") for one in root.glob(f"{name}*"))
    candidates = [path.parent, *inner, folder / "images", folder]
    for directory in candidates:
        if os.path.isfile(directory / first):
            return directory
    raise UserError(
        f"The images of {path} are nowhere in {folder}, such as {first}: name their directory with "
        "--images=…"
    )
