"""What a file is that is given as a COCO json and is none, with the remedy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from maskx_tf.data.coco.annotations import Annotations
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
    ({"objects", "size"}, "it is a file of Supervisely: export COCO json"),
    ({"items", "categories"}, "it is a file of Datumaro: export COCO json"),
    ({"features", "type"}, "it is GeoJSON, in coordinates of the earth"),
)
# Fields of annotations that are no objects.
_OTHER_TASKS = (
    ("segments_info", "it holds panoptic annotations, of which panopticapi's "
     "panoptic2detection_coco_format makes instances"),
    ("caption", "it holds captions; take the instances file of the same images"),
)  # fmt: skip


def no_json(head: bytes) -> str:
    """Why a file that begins so is no json; empty if it may be."""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not text:
        return "it is empty"
    return next((reason for start, reason in _HEADS if text.startswith(start)), "")


def of_top_level(head: bytes) -> str:
    """What json that begins so is, of which the top level is no object."""
    if not head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
        return "its top level is not an object"
    if b'"category_id"' in head:
        return (
            "its top level is not an object but a list of annotations or results; take the json "
            "with the images and categories that they belong to"
        )
    return (
        "its top level is not an object but a list, as of Label Studio's, CreateML's and other "
        "tools' own formats; export COCO json"
    )


def without_list(path: str, key: str, members: Mapping[str, Any]) -> str:
    """The message about a json of these members at the top, which has no list `key`."""
    reason = next((text for names, text in _FORMATS if names <= members.keys()), "")
    annotations = members.get("annotations")
    if key in members:
        reason = f"its {key!r} is of another type"
        reason += ', not like [{"id": 1, "name": "person"}]' if key == "categories" else ""
    elif key == "annotations" and "images" in members:
        reason = "it has images alone, as COCO's image_info files"
    elif isinstance(annotations, Annotations) and len(annotations):
        reason = _other_task(annotations.value(0)) or reason
    return (
        f"{path} is not a COCO json of instances: it has no list {key!r}"
        f"{f'; {reason}' if reason else ''}."
    )


def unknown_category(annotation: Mapping[str, Any], place: int, path: str) -> str:
    """The message about an annotation of no category of the json."""
    if what := _other_task(annotation):
        return f"{path} is not a COCO json of instances: {what}."
    number = short(annotation.get("id", f"number {place}"))
    if "category_id" not in annotation:
        return f"{path}: annotation {number} has no category_id; give it that of its class."
    return (
        f"{path}: annotation {number} has category_id {short(annotation['category_id'])}, which is "
        "not in 'categories'; add the category or remove the annotation."
    )


def _other_task(annotation: Any) -> str:
    """What annotations are that are no instances; empty if they are."""
    if not isinstance(annotation, dict) or "category_id" in annotation:
        return ""
    return next((what for field, what in _OTHER_TASKS if field in annotation), "")
