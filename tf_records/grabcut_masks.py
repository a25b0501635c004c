"""Masks that GrabCut finds in the boxes of a record, in place of annotated ones or beside them."""

from __future__ import annotations

import dataclasses

import numpy as np

from maskx_tf.data.coco.issues import Issue
from maskx_tf.data.coco.masks import crop_size, sample
from maskx_tf.data.records.schema import GRABCUT, ImageRecord, ObjectRecord
from maskx_tf.ops import grabcut

# What --masks means: those of the annotations; GrabCut's for all objects; GrabCut's for objects
# that have none.
ANNOTATED, ALL, MISSING = "annotated", "grabcut", "grabcut_missing"
CHOICES = (ANNOTATED, ALL, MISSING)


def with_grabcut(
    record: ImageRecord, pixels: np.ndarray, masks: str, mask_size: int
) -> tuple[ImageRecord, list[Issue]]:
    """The record with masks by GrabCut; crowd regions, of several objects each, keep theirs.

    Args:
      record: of an image.
      pixels: uint8 RGB [H, W, 3] of the image.
      masks: one of `CHOICES`.
      mask_size: largest side of a mask in pixels, 0: no limit.

    Returns:
      The record, and an issue for each mask that is but its box, because GrabCut could tell
      nothing.
    """
    chosen = [
        not item.is_crowd and (masks == ALL or (masks == MISSING and item.mask is None))
        for item in record.objects
    ]
    if not any(chosen):
        return record, []
    image = pixels[..., ::-1]  # in OpenCV's order
    objects, issues = [], []
    for item, wanted in zip(record.objects, chosen, strict=True):
        if wanted:
            item = _segmented(item, image, mask_size)
            if item.mask is not None and item.mask.all():
                issues.append(Issue("mask_is_box", record.image_id, item.annotation_id))
        objects.append(item)
    return dataclasses.replace(record, objects=objects), issues


def _segmented(item: ObjectRecord, image: np.ndarray, mask_size: int) -> ObjectRecord:
    region, top, left = grabcut.segment(image, item.box_yxyx.tolist())
    box = item.box_yxyx - [top, left, top, left]
    mask = sample(region, box, crop_size(item.box_yxyx, mask_size))
    mask = mask if mask.any() else np.ones_like(mask)
    return dataclasses.replace(item, mask=mask, mask_source=GRABCUT, mask_weight=1.0)
