"""Reads image_data.json of Visual Genome: ids, files, sizes, and the ids in COCO and on Flickr."""

from __future__ import annotations

import urllib.parse
from typing import Any, NamedTuple

from maskx_tf.data.coco.issues import Issue
from maskx_tf.errors import UserError
from tf_records.visual_genome.stream import JsonList

_FOLDERS = ("VG_100K", "VG_100K_2")
_INVALID = {
    "coco_id": "coco_id_invalid",
    "flickr_id": "flickr_id_invalid",
    "height": "image_size_invalid",
    "width": "image_size_invalid",
}
_LARGEST = 1 << 53  # ids that any json reader keeps exactly


class Image(NamedTuple):
    """An image; sizes in pixels, None where the file gives none, as are coco_id and flickr_id.

    `file_name` is what its URL ends with: VG_100K/1.jpg, VG_100K_2/1.jpg or 1.jpg.
    """

    image_id: int
    file_name: str
    height: int | None
    width: int | None
    coco_id: int | None
    flickr_id: int | None


class Images(NamedTuple):
    """The images in the file's order, what was wrong with entries, and the file's sha256."""

    images: list[Image]
    issues: list[Issue]
    sha256: str


def read(path: str) -> Images:
    """Reads the file; versions 1.0 (`id`) and later (`image_id`).

    Raises:
      UserError: it is not a json list, or holds no images.
    """
    entries = JsonList(path, "image_data")
    images: dict[int, Image] = {}
    issues: list[Issue] = []
    for entry in entries:
        image, reasons = _image(entry)
        if image is None:
            issues.append(Issue("image_entry_malformed", image_id_of(entry)))
            continue
        if image.image_id in images:
            issues.append(Issue("image_entry_repeated", image.image_id))
            continue
        images[image.image_id] = image
        issues += [Issue(reason, image.image_id) for reason in reasons]
    if not images:
        raise UserError(f"{path} has no images.")
    return Images(list(images.values()), issues, entries.sha256)


def _image(entry: Any) -> tuple[Image | None, list[str]]:
    image_id = image_id_of(entry)
    name = None if image_id is None else _file_name(entry)
    if image_id is None or name is None:
        return None, []
    reasons = []
    numbers = {}
    for key in ("coco_id", "flickr_id", "height", "width"):
        numbers[key] = whole_number(entry.get(key))
        if key in ("height", "width") and numbers[key] == 0:
            numbers[key] = None
        if entry.get(key) is not None and numbers[key] is None:
            reasons.append(_INVALID[key])
    return Image(image_id, name, **numbers), list(dict.fromkeys(reasons))


def image_id_of(entry: Any) -> int | None:
    """The image id of an entry of image_data.json or objects.json; None if it has none."""
    if not isinstance(entry, dict):
        return None
    return whole_number(entry.get("image_id", entry.get("id")))


def _file_name(entry: dict[str, Any]) -> str | None:
    url = entry.get("url")
    if not isinstance(url, str):
        return None
    try:
        path = urllib.parse.urlsplit(url).path
    except ValueError:
        return None
    *folders, name = path.split("/")
    if not name.isprintable() or not 0 < len(name.encode()) < 200 or name in (".", ".."):
        return None
    return "/".join([*(folder for folder in folders[-1:] if folder in _FOLDERS), name])


def whole_number(value: Any) -> int | None:
    """A number from 0 that is whole, also as 5.0 or "5"; None if the value is none."""
    if isinstance(value, str):
        value = int(value) if value.isascii() and value.isdigit() and len(value) < 17 else None
    elif isinstance(value, float):
        value = int(value) if value.is_integer() else None
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if 0 <= value < _LARGEST else None
