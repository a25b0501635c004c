"""One image of a COCO json to its record: boxes checked and clipped, masks cropped."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from maskx_tf.data.coco.images import read_image
from maskx_tf.data.coco.instances import AnnotationItem, ImageItem
from maskx_tf.data.coco.issues import Issue
from maskx_tf.data.coco.objects import IGNORED, CocoObject, fit_only_turned, read_objects
from maskx_tf.data.image_formats import BadImageError
from maskx_tf.data.records.schema import ImageRecord, ObjectRecord
from maskx_tf.errors import UserError
from tf_records import grabcut_masks
from tf_records.shards import Encoded
from tf_records.writer import encode


class Settings(NamedTuple):
    """How images become records.

    Attributes:
      images: directory of the image files.
      classes: category id of the json -> (class id 1..K, name).
      mask_size: largest side of a mask, 0: full resolution.
      skip_bad_images: drop images that are missing or corrupt, instead of an error.
      masks: whose they are, one of `grabcut_masks.CHOICES`.
      pixel_range: see `image_formats.to_picture`.
      crowds: what iscrowd means, one of `objects.CROWDS`.
    """

    images: str
    classes: Mapping[int, tuple[int, str]]
    mask_size: int
    skip_bad_images: bool
    masks: str = grabcut_masks.ANNOTATED
    pixel_range: tuple[float, float] | None = None
    crowds: str = IGNORED


def encode_image(item: ImageItem, settings: Settings) -> Encoded:
    """The record of an image, with the issues of its annotations; UserError if the file is bad."""
    path = pathlib.Path(item.path or pathlib.Path(settings.images, item.file_name))
    try:
        image = read_image(path, item.size, settings.pixel_range)
    except BadImageError as error:
        if not settings.skip_bad_images:
            raise UserError(
                f"Image {item.image_id}: {error}. Repair it, or add --skip_bad_images to drop and "
                "list such images."
            ) from None
        return Encoded(None, issues=_dropped(item, error.reason))
    issues = [Issue(change, item.image_id) for change in image.changes]
    annotated, found = read_objects(item, image.size, settings.crowds)
    objects = []
    if image.is_on_its_side and fit_only_turned([one for _, one in annotated], image.size):
        issues.append(Issue("image_boxes_rotated", item.image_id))
    for annotation, item_object in annotated:
        record_object, reasons = _record_object(annotation, item_object, settings)
        found += [Issue(reason, item.image_id, annotation.number) for reason in reasons]
        objects.append(record_object)
    federated = (item.neg_category_ids, item.not_exhaustive_category_ids)
    record = ImageRecord(
        item.image_id,
        item.file_name,
        image.encoded,
        *image.size,
        objects,
        *(_names(category_ids, settings) for category_ids in federated),
    )
    record, others = grabcut_masks.with_grabcut(
        record, image.pixels, settings.masks, settings.mask_size
    )
    return encode(record, issues + found + others)


def _names(category_ids: Sequence[int] | None, settings: Settings) -> tuple[str, ...] | None:
    """The class names of ids; those of no category are left out."""
    if category_ids is None:
        return None
    return tuple(settings.classes[i][1] for i in category_ids if i in settings.classes)


def _dropped(item: ImageItem, reason: str) -> tuple[Issue, ...]:
    lost = [
        Issue("annotation_of_dropped_image", item.image_id, annotation.number)
        for annotation in item.annotations
    ]
    return (Issue(reason, item.image_id), *lost)


def _record_object(
    annotation: AnnotationItem, item: CocoObject, settings: Settings
) -> tuple[ObjectRecord, list[str]]:
    """The object with its mask cropped, and the reasons (of `issues`) for every change."""
    mask, reasons = item.mask(settings.mask_size)
    area = item.area
    if area is None:
        height, width = (item.box_yxyx[2:] - item.box_yxyx[:2]).tolist()
        area = (1.0 if mask is None else float(mask.mean())) * height * width
    class_id, class_name = settings.classes[annotation.category_id]
    record_object = ObjectRecord(
        item.box_yxyx,
        class_id,
        class_name,
        area,
        item.is_crowd,
        annotation.number,
        mask,
        item.mask_source,
        item.mask_weight,
    )
    return record_object, reasons
