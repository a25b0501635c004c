"""What a file is that is given as a COCO json and is none, with the remedy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from maskx_tf.data.coco.values import short

HEAD_BYTES = 4096

# How files that are no json begin.
_HEADS = (
    (b"\x1f\x8b", "it is compressed with gzip: gunzip it"),
    (b"PK\3\4", "it is a zip archive: unpack it"),
    (b"version https://git-lfs", "it is a Git LFS pointer: fetch the file with git lfs pull"),
    (b"<", "it is XML or HTML: export COCO json, or fetch the file again"),
    (b"{'", "it was printed by Python: write it with json.dump"),
    (b"[{'", "it was printed by Python: write it with json.dump"),
    (
        b'"{',
        "it is the text of a json as json, encoded twice: json.load it and write what that gives",
    ),
)
# Members that other formats have at the top.
_FORMATS = (
    ({"shapes", "imagePath"}, "it is a LabelMe file of one image: labelme2coco makes COCO json"),
    ({"image", "annotations"}, "it is a file of one image, as of SA-1B, without classes"),
    ({"_via_img_metadata"}, "it is a project of VIA: export its annotations as COCO json"),
    ({"textDetails"}, "it is a file of Supervisely: export COCO json"),
    ({"images", "categories"}, "it has images without annotations, as COCO's image_info files"),
)
# Fields of annotations that are no objects.
_OTHER_TASKS = (
    ("segments_info", "panoptic annotations: panopticapi's panoptic2detection_coco_format makes "
     "instances of them"),
    ("caption", "captions: take the instances file of the same images"),
)  # fmt: skip


def no_json(head: bytes) -> str:
    """Why a file that begins so is no json; empty if it may be."""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not text:
        return "it is empty"
    return next((reason for start, reason in _HEADS if text.startswith(start)), "")


def without_list(path: str, key: str, members: Mapping[str, Any]) -> str:
    """The message about a json of these members at the top, which has no list `key`."""
    present = {name for name, value in members.items() if value is not None} | set(members)
    reason = next((text for names, text in _FORMATS if names <= present), "")
    return (
        f"{path} is not a COCO json of instances: it has no list {key!r}"
        f"{f'; {reason}' if reason else ''}."
    )


def unknown_category(annotation: Mapping[str, Any], place: int, path: str) -> str:
    """The message about an annotation of no category of the json."""
    for field, what in _OTHER_TASKS:
        if field in annotation and "category_id" not in annotation:
            return f"{path} holds no instances but {what}."
    number = annotation.get("id", f"number {place}")
    return (
        f"{path}: annotation {short(number)} has category_id "
        f"{short(annotation.get('category_id'))}, which is not in 'categories'; add the category "
        "or remove the annotation."
    )
