"""Labelled objects in the form that formats are written from."""

from __future__ import annotations

import decimal
import json
from typing import Any, NamedTuple

from maskx_tf.data.records.manifest import HUMAN
from maskx_tf.labeling.labeler import Labels
from maskx_tf.labeling.source import (
    Annotation,
    ImageEntry,
    Problem,
    Source,
    exact_bbox,
    members_of,
)

OURS = "maskx_tf"  # mask_source of the masks made here


class LabelledObject(NamedTuple):
    """An object of an image.

    Attributes:
      number: id of the annotation, of any type.
      class_name: its class.
      bbox: x, y, width, height in pixels, exactly as in the json.
      rle: its mask, COCO's run-length code; None if it has none.
      source: where the mask is from, `OURS` or `HUMAN` or what the json says; None without a mask.
      score: of a mask of ours, in [0, 1]; otherwise None.
      agreement: likewise, see `labeler.Mask`.
    """

    number: Any
    class_name: str
    bbox: tuple[decimal.Decimal, ...]
    rle: dict | None
    source: str | None
    score: float | None
    agreement: float | None


class LabelledImage(NamedTuple):
    """An image with its objects; height and width in pixels."""

    entry: ImageEntry
    height: int
    width: int
    objects: list[LabelledObject]


def mask_source(source: Source, annotation: Annotation, labels: Labels) -> str | None:
    """Where an annotation's mask is from, None for a crowd; an earlier run's word is kept."""
    if annotation.place in labels.masks:
        return OURS
    if annotation.is_crowd or not annotation.has_mask:
        return None
    said = members_of(source.text(annotation.place)).get("mask_source")
    return str(json.loads(said)) if said else HUMAN


def labelled_images(source: Source, labels: Labels) -> tuple[list[LabelledImage], list[Problem]]:
    """All images whose size is known, and what is left out of them.

    Crowds are no objects and are left out; so are boxes that are none.
    """
    images, problems = [], []
    by_image = source.by_image()
    for entry in source.images:
        if entry.size is None:
            problems.append(Problem("image_size_unknown", entry.image_id))
            continue
        objects = []
        for annotation in by_image[entry.image_id]:
            if annotation.is_crowd:
                number = source.number(annotation.place)
                problems.append(
                    Problem("crowd_left_out", entry.image_id, number, annotation.class_name)
                )
            else:
                objects.append(_object(source, annotation, labels, entry))
        images.append(LabelledImage(entry, *entry.size, objects))
    return images, problems


def _object(
    source: Source, annotation: Annotation, labels: Labels, entry: ImageEntry
) -> LabelledObject:
    assert entry.size is not None
    new = labels.masks.get(annotation.place)
    rle = new.rle if new else None
    if new is None and annotation.has_mask:
        segmentation = source.object_of(annotation, entry).segmentation
        rle = segmentation.rle(entry.size) if segmentation else None
    return LabelledObject(
        source.number(annotation.place),
        annotation.class_name,
        exact_bbox(source.text(annotation.place), annotation.bbox),
        rle,
        mask_source(source, annotation, labels) if rle else None,
        new.score if new else None,
        new.agreement if new else None,
    )
