"""Labelled objects in the form that formats are written from."""

from __future__ import annotations

import decimal
import json
import pathlib
from typing import Any, NamedTuple

from PIL import Image

from maskx_tf.data.coco.masks import decode_rle
from maskx_tf.data.records.manifest import HUMAN
from maskx_tf.labeling.labeler import Labels, Problem
from maskx_tf.labeling.source import Annotation, ImageEntry, Source, exact_bbox, members_of
from maskx_tf.ops import masks as mask_ops

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
    """

    number: Any
    class_name: str
    bbox: tuple[decimal.Decimal, ...]
    rle: dict | None
    source: str | None
    score: float | None


class LabelledImage(NamedTuple):
    """An image with its objects; height and width in pixels."""

    entry: ImageEntry
    height: int
    width: int
    objects: list[LabelledObject]


def mask_source(source: Source, annotation: Annotation, labels: Labels) -> str | None:
    """Where an annotation's mask is from, None for a crowd; an earlier run's word is kept."""
    if annotation.index in labels.masks:
        return OURS
    if annotation.is_crowd or not annotation.has_mask:
        return None
    said = members_of(source.text(annotation)).get("mask_source")
    return str(json.loads(said)) if said else HUMAN


def labelled_images(
    source: Source, labels: Labels, images: pathlib.Path
) -> tuple[list[LabelledImage], list[Problem]]:
    """All images whose size is known, and all that is left out of them or of the json.

    Crowds are no objects and are left out; so are boxes that are none.
    """
    found, problems = [], []
    listed = {problem.annotation for problem in labels.problems}
    by_image = source.by_image()
    for entry in source.images:
        size = labels.sizes.get(entry.image_id) or _size(entry, images)
        if size is None:
            problems.append(Problem("image_size_unknown", entry.image_id))
            continue
        objects = []
        for annotation in by_image[entry.image_id]:
            if annotation.is_crowd:
                problems.append(Problem("crowd_left_out", entry.image_id, annotation.index))
                continue
            if not _is_box(annotation.bbox):
                if annotation.index not in listed:  # it has a mask, so nobody looked at the box
                    reason = "box_missing" if annotation.bbox is None else "box_not_numeric"
                    problems.append(Problem(reason, entry.image_id, annotation.index))
                continue
            made, undecodable = _object(source, annotation, labels, size)
            objects.append(made)
            if undecodable:
                problems.append(Problem("mask_undecodable", entry.image_id, annotation.index))
        found.append(LabelledImage(entry, *size, objects))
    return found, problems


def _object(
    source: Source, annotation: Annotation, labels: Labels, size: tuple[int, int]
) -> tuple[LabelledObject, bool]:
    """The object of an annotation, and whether it has a mask that cannot be decoded."""
    made = labels.masks.get(annotation.index)
    rle = made.rle if made else None
    undecodable = False
    if made is None and annotation.has_mask:
        rle = _decode(source, annotation, size)
        undecodable = rle is None
    where_from = mask_source(source, annotation, labels) if rle else None
    return LabelledObject(
        annotation.number,
        str(annotation.class_name),
        exact_bbox(source.text(annotation)),
        rle,
        where_from,
        made.score if made else None,
    ), undecodable


def _decode(source: Source, annotation: Annotation, size: tuple[int, int]) -> dict | None:
    """The mask in the json as a run-length code; None if it is none of an image of this size."""
    try:
        segmentation = json.loads(members_of(source.text(annotation))["segmentation"])
        if isinstance(segmentation, dict):
            return mask_ops.encode_rle(decode_rle(segmentation, size))
        return mask_ops.segmentation_to_rle(segmentation, *size)
    except Exception:  # pycocotools raises whatever a malformed polygon leads to
        return None


def _size(entry: ImageEntry, images: pathlib.Path) -> tuple[int, int] | None:
    if entry.height and entry.width:
        return entry.height, entry.width
    try:
        with Image.open(images / entry.file_name) as image:
            return image.height, image.width
    except (OSError, Image.DecompressionBombError):
        return None


def _is_box(bbox: Any) -> bool:
    return (
        isinstance(bbox, list)
        and len(bbox) == 4
        and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in bbox)
        and all(abs(v) < 1e9 for v in bbox)
    )
