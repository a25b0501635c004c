"""One image of a COCO json to its record: boxes checked and clipped, masks cropped."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from maskx_tf.data.coco.boxes import as_number, clean_box
from maskx_tf.data.coco.images import read_image
from maskx_tf.data.coco.instances import ImageItem, is_text
from maskx_tf.data.coco.issues import Issue
from maskx_tf.data.coco.masks import MaskError, crop_mask
from maskx_tf.data.image_formats import BadImageError
from maskx_tf.data.records.manifest import HUMAN
from maskx_tf.data.records.schema import ImageRecord, ObjectRecord
from maskx_tf.errors import UserError
from tf_records import grabcut_masks
from tf_records.shards import Encoded
from tf_records.writer import encode

_MAX_AREA = 1e30  # fits float32


class Settings(NamedTuple):
    """How images become records.

    Attributes:
      images: directory of the image files.
      classes: category id of the json -> (class id 1..K, name).
      mask_size: largest side of a mask, 0: full resolution.
      skip_bad_images: drop images that are missing or corrupt, instead of an error.
      masks: whose they are, one of `grabcut_masks.CHOICES`.
      pixel_range: see `image_formats.to_picture`.
    """

    images: str
    classes: Mapping[int, tuple[int, str]]
    mask_size: int
    skip_bad_images: bool
    masks: str = grabcut_masks.ANNOTATED
    pixel_range: tuple[float, float] | None = None


def encode_image(item: ImageItem, settings: Settings) -> Encoded:
    """The record of an image, with the issues of its annotations; UserError if the file is bad."""
    try:
        expected = (item.height, item.width)
        path = pathlib.Path(settings.images) / item.file_name
        image = read_image(path, expected, settings.pixel_range)
    except BadImageError as error:
        if not settings.skip_bad_images:
            raise UserError(
                f"Image {item.image_id}: {error}. Repair it, or add --skip_bad_images to drop and "
                "list such images."
            ) from None
        return Encoded(None, issues=_dropped(item, error.reason))
    issues = [Issue(change, item.image_id) for change in image.changes]
    if (item.height, item.width) not in (image.size, (None, None)):
        issues.append(Issue("image_size_differs", item.image_id))
    objects = []
    for annotation_id, text in item.annotations:
        made, reasons = _decode_object(annotation_id, text, item, image.size, settings)
        issues += [Issue(reason, item.image_id, annotation_id) for reason in reasons]
        if made is not None:
            objects.append(made)
    record = ImageRecord(item.image_id, item.file_name, image.encoded, *image.size, objects)
    record, found = grabcut_masks.with_grabcut(
        record, image.pixels, settings.masks, settings.mask_size
    )
    return encode(record, issues + found)


def _dropped(item: ImageItem, reason: str) -> tuple[Issue, ...]:
    lost = [
        Issue("annotation_of_dropped_image", item.image_id, annotation_id)
        for annotation_id, _ in item.annotations
    ]
    return (Issue(reason, item.image_id), *lost)


def _decode_object(
    annotation_id: int, text: bytes, item: ImageItem, size: tuple[int, int], settings: Settings
) -> tuple[ObjectRecord | None, list[str]]:
    try:
        annotation = json.loads(text) | {"id": annotation_id}
    except RecursionError:  # just as deep as the reader could go
        return None, ["annotation_malformed"]
    return make_object(annotation, item, size, settings)


def make_object(
    annotation: Mapping[str, Any], item: ImageItem, size: tuple[int, int], settings: Settings
) -> tuple[ObjectRecord | None, list[str]]:
    """The object of an annotation, or None, and the reasons (of `issues`) for every change."""
    box, reasons = clean_box(annotation.get("bbox"), *size)
    if box is None:
        return None, reasons
    annotated_size = (item.height or size[0], item.width or size[1])
    segmentation = annotation.get("segmentation")
    mask = None
    if segmentation:
        try:
            mask, incomplete = crop_mask(segmentation, box, annotated_size, settings.mask_size)
            reasons += ["mask_part_invalid"] if incomplete else []
            if not mask.any():
                mask = None
                reasons.append("mask_empty")
        except MaskError:
            reasons.append("mask_invalid")
    area = as_number(annotation.get("area"))
    if area is None or not 0 <= area <= _MAX_AREA:
        reasons += ["area_invalid"] if annotation.get("area") is not None else []
        share = 1.0 if mask is None else float(mask.mean())
        area = share * float((box[2] - box[0]) * (box[3] - box[1]))
    class_id, class_name = settings.classes[annotation["category_id"]]
    is_crowd = annotation.get("iscrowd") in (1, True)
    said = annotation.get("mask_source")  # as maskx_tf.label writes it
    source = said if isinstance(said, str) and said and is_text(said) else HUMAN
    made = ObjectRecord(box, class_id, class_name, area, is_crowd, annotation["id"], mask, source)
    return made, reasons
