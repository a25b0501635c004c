"""What can be wrong with an annotation or image, what is done about it, and how it is reported."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

DROPPED, REPAIRED, MASK_DROPPED = "dropped", "repaired", "mask dropped"
KEPT = "kept"  # as it is: to be known


STORED_AS_PNG = "image_reencoded"  # of no interest where nothing is stored


class Reason(NamedTuple):
    """What is done, what is wrong in words, and what to do if it is so of much of a data set."""

    effect: str
    meaning: str
    remedy: str = ""


_BOX = "give each annotation a bbox [x, y, width, height] in pixels, or a segmentation"
_CORNERS = (
    "are boxes written as x1, y1, x2, y2, shifted, or of photos of another size? bbox is [x, y, "
    "width, height] in pixels of the file"
)
_RLE = "write masks with pycocotools: mask.encode, counts decoded to text, size [height, width]"
_FILES = "--images is the directory that the json's file names start from"
_PHOTOS = "replace these files, or remove their images from the json"
_TURNED = "rotate the photos before boxes are drawn: mogrify -auto-orient photos/*.jpg"

REASONS = {
    "annotation_malformed": Reason(
        DROPPED,
        "the annotation is not an object with the image_id of an image",
        "image_id is the id of an entry of 'images', a whole number",
    ),
    "annotation_id_duplicate": Reason(REPAIRED, "its id was in use: it got a new one"),
    "annotation_id_missing": Reason(REPAIRED, "it had no integer id: it got one"),
    "annotation_repeated": Reason(DROPPED, "same id, image, class and box as an earlier one"),
    "annotation_of_dropped_image": Reason(DROPPED, "its image was dropped"),
    "annotation_of_unknown_image": Reason(
        DROPPED,
        "no such image in the json",
        "image_id is the id of an entry of 'images'; do these begin with another number?",
    ),
    "area_invalid": Reason(REPAIRED, "the area is not a finite number: computed from mask or box"),
    "box_clipped": Reason(REPAIRED, "the box was clipped to the image", _CORNERS),
    "box_duplicate": Reason(KEPT, "same class and box as an earlier object of the image"),
    "box_duplicate_dropped": Reason(
        DROPPED, "same class and box as an earlier object of the image"
    ),
    "box_empty": Reason(DROPPED, "the box has no area", _BOX),
    "box_is_corners": Reason(
        KEPT, "its width and height are the right and lower end of its mask", _CORNERS
    ),
    "box_missing": Reason(DROPPED, "there is neither a bbox nor a mask to take it from", _BOX),
    "box_normalised": Reason(
        DROPPED,
        "all of its numbers lie between 0 and 1",
        "multiply x and width with the photo's width, y and height with its height",
    ),
    "box_not_finite": Reason(DROPPED, "the box has a NaN or infinity", _BOX),
    "box_not_numeric": Reason(DROPPED, "the box is not four numbers", _BOX),
    "box_of_mask": Reason(REPAIRED, "there is no usable bbox: that of the mask is used"),
    "box_outside_image": Reason(DROPPED, "nothing of the box lies in the image", _CORNERS),
    "box_rotated": Reason(
        KEPT, "the tool drew it rotated: the upright box is used, which does not fit the object"
    ),
    "box_thin": Reason(KEPT, "the box is less than a pixel high or wide"),
    "coco_id_invalid": Reason(REPAIRED, "the coco_id is not a whole number: treated as missing"),
    "crowd": Reason(
        KEPT,
        "iscrowd is 1: it stands for several objects, and nothing is trained on it",
        "CVAT writes iscrowd for single objects that were drawn with the brush: read them as "
        "objects with --crowds=objects",
    ),
    "flickr_id_invalid": Reason(
        REPAIRED, "the flickr_id is not a whole number: treated as missing"
    ),
    "image_boxes_rotated": Reason(
        KEPT, "its boxes leave the stored photo, and fit the one that its EXIF rotates", _TURNED
    ),
    "image_corrupt": Reason(DROPPED, "the image cannot be decoded", _PHOTOS),
    "image_entry_malformed": Reason(
        DROPPED, "its entry in image_data.json has no image id or no url"
    ),
    "image_entry_repeated": Reason(DROPPED, "an earlier entry of image_data.json has its id"),
    "image_first_frame": Reason(KEPT, "the file has several frames or pages: the first is used"),
    "image_grey": Reason(KEPT, "the image has no colours: stored as it is, read as RGB"),
    "image_missing": Reason(DROPPED, "there is no image file", _FILES),
    "image_name_differs": Reason(
        REPAIRED, "there is no file of this name: the one of the likely spelling is used"
    ),
    "image_range_changed": Reason(
        REPAIRED, "more than 8 bits a channel: its range, or --pixel_range, became 0 to 255"
    ),
    "image_reencoded": Reason(REPAIRED, "neither JPEG nor PNG: stored as PNG"),
    "image_repeated": Reason(KEPT, "the same photo as an earlier image"),
    "image_rotated": Reason(
        REPAIRED, "rotated as its EXIF says: the json's size is the rotated one"
    ),
    "image_rotation_unknown": Reason(
        KEPT, "its EXIF rotates it, and it was not rotated: the boxes may be", _TURNED
    ),
    "image_size_differs": Reason(
        REPAIRED,
        "the json gives another size: the file's is used, and boxes as they are",
        "were the photos resized after boxes were drawn? Take the original ones, or scale bbox "
        "and segmentation with them",
    ),
    "image_size_invalid": Reason(
        REPAIRED, "the json's size is not a whole number: the file's is used"
    ),
    "image_too_large": Reason(DROPPED, "the image has more than 179 million pixels", _PHOTOS),
    "iscrowd_invalid": Reason(REPAIRED, "iscrowd is neither 0 nor 1: taken for 0"),
    "label_class_unknown": Reason(
        DROPPED,
        "its class number is none of the names",
        "name every class in data.yaml; numbers start at 0",
    ),
    "label_file_unreadable": Reason(
        DROPPED,
        "the label file cannot be read: its image is left out with it",
        "write the file again; the list in annotations.json says what is wrong with it",
    ),
    "label_in_rotated_view": Reason(
        DROPPED, "it was drawn while the tool showed the photo rotated", _TURNED
    ),
    "label_malformed": Reason(
        DROPPED,
        "the line or shape is neither a box nor a polygon",
        "a line is a class number and 4 numbers, or 3 points or more",
    ),
    "label_not_normalised": Reason(
        DROPPED,
        "its numbers are in pixels, and not shares of the photo's sides",
        "divide x and width by the photo's width, y and height by its height",
    ),
    "label_of_other_annotator": Reason(
        DROPPED, "someone else's annotation of the same photo counts"
    ),
    "label_shape_unsupported": Reason(
        DROPPED, "its shape is no box, polygon, ellipse or mask, or of a photo of unknown size"
    ),
    "label_without_class": Reason(DROPPED, "it has no class, or several"),
    "label_without_image": Reason(
        DROPPED, "there is no image for it", "are the images in the directory of their split?"
    ),
    "mask_blank": Reason(KEPT, "its segmentation holds nothing but null or empty text: no mask"),
    "mask_counts_invalid": Reason(
        MASK_DROPPED, "the counts of the RLE are damaged, or do not fill its size", _RLE
    ),
    "mask_cut_by_box": Reason(KEPT, "its mask leaves the box, and was cut by it", _CORNERS),
    "mask_empty": Reason(
        MASK_DROPPED,
        "the mask has no pixel in its box",
        "masks are in pixels of the file, and cover more than a line",
    ),
    "mask_file_unreadable": Reason(
        MASK_DROPPED, "the picture of masks cannot be read, or its colours are not VOC's"
    ),
    "mask_invalid": Reason(MASK_DROPPED, "the segmentation is neither polygons nor an RLE", _RLE),
    "mask_is_box": Reason(KEPT, "GrabCut could not segment it: the mask is the whole box"),
    "mask_no_polygon": Reason(
        MASK_DROPPED,
        "no polygon has three points within reach of the image",
        "a polygon is a list [x, y, x, y, ...] in pixels",
    ),
    "mask_part_invalid": Reason(REPAIRED, "some polygons cannot be decoded: the others are used"),
    "mask_size_differs": Reason(
        MASK_DROPPED,
        "the size of the RLE, [height, width], is not that of the image",
        _RLE,
    ),
    "mask_size_swapped": Reason(
        MASK_DROPPED, "the size of the RLE is [width, height] of the image", _RLE
    ),
    "mask_too_large": Reason(MASK_DROPPED, "the polygons are too large for their box"),
    "mask_without_box": Reason(MASK_DROPPED, "it fits the box of no object of its photo"),
    "mask_weight_invalid": Reason(REPAIRED, "mask_weight is no number from 0 to 1: taken for 1"),
    "objects_entry_malformed": Reason(
        DROPPED, "an entry of objects.json has no image id or no objects"
    ),
    "objects_entry_missing": Reason(
        KEPT, "objects.json has no entry for the image: it has no objects"
    ),
    "objects_entry_repeated": Reason(
        REPAIRED, "a second entry for the image: its objects were added"
    ),
    "synset_ambiguous": Reason(DROPPED, "the object has two synsets or more"),
    "synset_malformed": Reason(DROPPED, "a synset is not spelled like bag.n.01"),
    "synset_missing": Reason(DROPPED, "the object has no synset"),
    "synset_rare": Reason(DROPPED, "its synset is not among the classes"),
}
# Those that are of a whole image.
OF_IMAGES = {reason for reason in REASONS if reason.startswith(("image_", "objects_entry_"))}


# What single objects have by chance: not worth a line unless some of every hundred have it.
_BY_CHANCE, _OFTEN = ("box_is_corners", "box_thin"), 0.01


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
        reason: {"effect": REASONS[reason].effect, "count": len(ids[reason]), "ids": ids[reason]}
        for reason in sorted(ids)
    }


def example(entry: Mapping[str, Any]) -> str:
    """The first annotation or image that an entry of the table is about."""
    names = zip(("annotation", "image"), entry["ids"][0], strict=True)
    return ", ".join(f"{name} {i}" for name, i in names if i is not None) or "without any id"


def why_no_object(table: Mapping[str, Mapping[str, Any]]) -> str:
    """What most annotations were lost for and its remedy, as the end of a sentence."""
    lost = [r for r in table if REASONS[r].effect == DROPPED or r == "crowd"]
    if not lost:
        return ""
    reason = max(lost, key=lambda r: table[r]["count"])
    how_often = f"{table[reason]['count']} {reason}"
    return f": {cause(reason, table[reason], how_often)}"


def cause(reason: str, entry: Mapping[str, Any], how_often: str) -> str:
    """What is wrong, how often in words that are given, an example, and the remedy if any."""
    meaning, remedy = REASONS[reason].meaning, REASONS[reason].remedy
    sentence = f"{meaning} ({how_often}, such as {example(entry)})"
    return f"{sentence}. Remedy: {remedy}" if remedy else sentence


def summary(table: Mapping[str, Mapping[str, Any]], num_objects: int = 0) -> str:
    """The table in a few lines for the console; empty if nothing was wrong.

    Args:
      table: as of `tabulate`.
      num_objects: in all; what single ones have by chance is left out.
    """
    return "\n".join(
        f"  {entry['count']:>7} {entry['effect']}: {REASONS[reason].meaning} "
        f"({reason}: {example(entry)})"
        for reason, entry in table.items()
        if reason not in _BY_CHANCE or entry["count"] > _OFTEN * num_objects
    )
