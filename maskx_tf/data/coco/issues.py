"""What can be wrong with an annotation or image, what is done about it, and how it is reported."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

DROPPED, REPAIRED, MASK_DROPPED = "dropped", "repaired", "mask dropped"
KEPT = "kept"  # as it is: to be known

# reason -> (effect, explanation)
REASONS = {
    "annotation_malformed": (DROPPED, "the annotation is not an object with an integer image_id"),
    "annotation_id_duplicate": (REPAIRED, "its id was in use: it got a new one"),
    "annotation_id_missing": (REPAIRED, "it had no integer id: it got one"),
    "annotation_repeated": (DROPPED, "same id, image, class and box as an earlier one"),
    "annotation_of_dropped_image": (DROPPED, "its image was dropped"),
    "annotation_of_unknown_image": (DROPPED, "no such image in the json"),
    "area_invalid": (REPAIRED, "the area is not a finite number: computed from mask or box"),
    "box_clipped": (REPAIRED, "the box was clipped to the image"),
    "box_duplicate": (KEPT, "same class and box as an earlier object of the image"),
    "box_duplicate_dropped": (DROPPED, "same class and box as an earlier object of the image"),
    "box_empty": (DROPPED, "the box has no area"),
    "box_missing": (DROPPED, "there is no bbox"),
    "box_not_finite": (DROPPED, "the box has a NaN or infinity"),
    "box_not_numeric": (DROPPED, "the box is not four numbers"),
    "box_outside_image": (DROPPED, "nothing of the box lies in the image"),
    "coco_id_invalid": (REPAIRED, "the coco_id is not a whole number: treated as missing"),
    "flickr_id_invalid": (REPAIRED, "the flickr_id is not a whole number: treated as missing"),
    "image_corrupt": (DROPPED, "the image cannot be decoded"),
    "image_first_frame": (KEPT, "the file has several frames or pages: the first is used"),
    "image_entry_malformed": (DROPPED, "its entry in image_data.json has no image id or no url"),
    "image_entry_repeated": (DROPPED, "an earlier entry of image_data.json has its id"),
    "image_grey": (KEPT, "the image has no colours: stored as it is, read as RGB"),
    "image_missing": (DROPPED, "there is no image file"),
    "image_range_changed": (
        REPAIRED,
        "more than 8 bits a channel: its range, or --pixel_range, became 0 to 255",
    ),
    "image_reencoded": (REPAIRED, "neither JPEG nor PNG: stored as PNG"),
    "image_rotated": (REPAIRED, "rotated as its EXIF says: the json's size is the rotated one"),
    "image_size_differs": (REPAIRED, "the json gives another size: the file's is used"),
    "image_too_large": (DROPPED, "the image has more than 179 million pixels"),
    "image_size_invalid": (REPAIRED, "the json's size is not a whole number: the file's is used"),
    "image_rotation_unknown": (
        KEPT,
        "its EXIF rotates it, and its size does not tell if the boxes are rotated: stored as it is",
    ),
    "mask_empty": (MASK_DROPPED, "the mask has no pixel in its box"),
    "mask_invalid": (MASK_DROPPED, "the segmentation cannot be decoded"),
    "mask_is_box": (KEPT, "GrabCut could not segment it: the mask is the whole box"),
    "mask_part_invalid": (REPAIRED, "some polygons cannot be decoded: the others are used"),
    "objects_entry_malformed": (DROPPED, "an entry of objects.json has no image id or no objects"),
    "objects_entry_missing": (KEPT, "objects.json has no entry for the image: it has no objects"),
    "objects_entry_repeated": (REPAIRED, "a second entry for the image: its objects were added"),
    "synset_ambiguous": (DROPPED, "the object has two synsets or more"),
    "synset_malformed": (DROPPED, "a synset is not spelled like bag.n.01"),
    "synset_missing": (DROPPED, "the object has no synset"),
    "synset_rare": (DROPPED, "its synset is not among the classes"),
}


class Issue(NamedTuple):
    """One finding; ids are None where there are none, or where the whole image is concerned."""

    reason: str
    image_id: int | None
    annotation_id: int | None = None


def tabulate(issues: Iterable[Issue]) -> dict[str, dict[str, Any]]:
    """Table reason -> {effect, count, ids: [[annotation id, image id], ...]}, by reason."""
    ids: dict[str, list[list[int | None]]] = {}
    for issue in issues:
        ids.setdefault(issue.reason, []).append([issue.annotation_id, issue.image_id])
    return {
        reason: {"effect": REASONS[reason][0], "count": len(ids[reason]), "ids": ids[reason]}
        for reason in sorted(ids)
    }


def summary(table: Mapping[str, Mapping[str, Any]]) -> str:
    """The table in a few lines for the console; empty if nothing was wrong."""
    lines = []
    for reason, entry in table.items():
        names = zip(("annotation", "image"), entry["ids"][0], strict=True)
        known = [f"{name} {number}" for name, number in names if number is not None]
        example = ", ".join(known) or "without any id"
        meaning = REASONS[reason][1]
        lines.append(f"  {entry['count']:>7} {entry['effect']}: {meaning} ({reason}: {example})")
    return "\n".join(lines)
