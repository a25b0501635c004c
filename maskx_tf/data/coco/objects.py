"""The annotations of an image of a COCO json as objects: one set of rules for all commands."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from maskx_tf.data.coco.boxes import clean_box
from maskx_tf.data.coco.instances import AnnotationItem, ImageItem
from maskx_tf.data.coco.issues import Issue
from maskx_tf.data.coco.masks import MaskError, Segmentation, read_segmentation
from maskx_tf.data.coco.values import as_number, is_text
from maskx_tf.data.records.manifest import HUMAN

_MAX_AREA = 1e30  # fits float32
_CROWD = (1, True, "1", "1.0", "true", "True")
_NO_CROWD = (None, 0, False, "", "0", "0.0", "false", "False")
IGNORED, AS_OBJECTS = "ignored", "objects"
CROWDS = (IGNORED, AS_OBJECTS)
_APART = 2.0, 0.1  # pixels, and share of a mask's side, that a mask may leave its box by
_THIN_PX = 1.0


class CocoObject(NamedTuple):
    """An annotation that is an object.

    Attributes:
      bbox: x, y, width, height in pixels, as annotated; of its mask where it has no usable one.
      box_yxyx: float64 [4], the same clipped to the image.
      segmentation: its mask; None if it has none that can be decoded.
      area: as annotated, in pixels; None if there is no number.
      is_crowd: it stands for several objects.
      mask_source: who drew the mask, as the annotation says.
      mask_weight: factor on the mask's loss, in [0, 1].
    """

    bbox: tuple[float, ...]
    box_yxyx: np.ndarray
    segmentation: Segmentation | None
    area: float | None
    is_crowd: bool
    mask_source: str
    mask_weight: float

    def mask(self, mask_size: int) -> tuple[np.ndarray | None, list[str]]:
        """The part of its mask in its box, see `Segmentation.crop`, and reasons of `issues`.

        None if it has no mask, or none that has a pixel there.
        """
        if self.segmentation is None:
            return None, []
        try:
            mask, is_cut = self.segmentation.crop(self.box_yxyx, mask_size)
        except MaskError as error:
            return None, [error.reason]
        reasons = ["mask_part_invalid"] if is_cut and not self.segmentation.is_incomplete else []
        return (mask, reasons) if mask.any() else (None, [*reasons, "mask_empty"])


def read_objects(
    item: ImageItem, size: tuple[int, int], crowds: str = IGNORED
) -> tuple[list[tuple[AnnotationItem, CocoObject]], list[Issue]]:
    """The objects of an image, and what was wrong with its annotations.

    Args:
      item: the image.
      size: (height, width) of its file.
      crowds: what iscrowd means, one of `CROWDS`.
    """
    objects: list[tuple[AnnotationItem, CocoObject]] = []
    issues: list[Issue] = []
    if item.size not in (size, (None, None)):
        issues.append(Issue("image_size_differs", item.image_id))
    seen = set()
    for annotation in item.annotations:
        item_object, reasons = _read_object(annotation.text, size, item.size)
        if item_object is not None:
            if item_object.is_crowd and crowds == AS_OBJECTS:
                item_object = item_object._replace(is_crowd=False)
            reasons += ["crowd"] if item_object.is_crowd else []
            key = (annotation.category_id, *item_object.bbox)
            reasons += ["box_duplicate"] if key in seen else []
            seen.add(key)
            objects.append((annotation, item_object))
        issues += [Issue(reason, item.image_id, annotation.number) for reason in reasons]
    return objects, issues


def fit_only_turned(objects: Sequence[CocoObject], size: tuple[int, int]) -> bool:
    """Whether boxes leave an image of a (height, width), but none the same turned by a quarter."""
    ends = [(item.bbox[1] + item.bbox[3], item.bbox[0] + item.bbox[2]) for item in objects]

    def fit(height: int, width: int) -> bool:
        return all(y <= height + _APART[0] and x <= width + _APART[0] for y, x in ends)

    return not fit(*size) and fit(*size[::-1])


def _read_object(
    text: bytes | str, size: tuple[int, int], said_size: tuple[int | None, int | None]
) -> tuple[CocoObject | None, list[str]]:
    """The object of an annotation.

    Args:
      text: of the annotation, json of an object.
      size: (height, width) of the image file.
      said_size: (height, width) in the json, None where it gives none.

    Returns:
      The object, or None if there is none, and the reasons (of `issues`) for every change.
    """
    try:
        fields = json.loads(text)
    except RecursionError:  # just as deep as the reader could go
        return None, ["annotation_malformed"]
    segmentation, mask_reasons = _segmentation(fields.get("segmentation"), size, said_size)
    box, reasons = clean_box(fields.get("bbox"), *size)
    if box is not None:
        bbox = tuple(float(as_number(value) or 0) for value in fields["bbox"])
    else:
        bounds = segmentation.bounds() if segmentation else None
        is_normalised = "box_normalised" in reasons
        if bounds is None or (is_normalised and bounds.max() <= 1):  # the mask as well
            return None, reasons
        y1, x1, y2, x2 = bounds.tolist()
        bbox = (x1, y1, x2 - x1, y2 - y1)
        box, others = clean_box(list(bbox), *size)
        if box is None:
            return None, reasons
        reasons = ["box_of_mask", *others]
    if np.min(box[2:] - box[:2]) < _THIN_PX:
        reasons.append("box_thin")
    is_crowd = fields.get("iscrowd") in _CROWD
    if not is_crowd and fields.get("iscrowd") not in _NO_CROWD:
        reasons.append("iscrowd_invalid")
    reasons += mask_reasons
    if segmentation and not is_crowd:
        reasons += _compared(segmentation, bbox, size)
    if _is_rotated(fields.get("attributes")):
        reasons.append("box_rotated")
    area = as_number(fields.get("area"))
    if area is not None and not 0 <= area <= _MAX_AREA:
        area = None
    if area is None and fields.get("area") is not None:
        reasons.append("area_invalid")
    said = fields.get("mask_source")  # as `maskx label` writes it
    source = said if isinstance(said, str) and said and is_text(said) else HUMAN
    weight = 1.0 if fields.get("mask_weight") is None else as_number(fields["mask_weight"])
    if weight is None or not 0 <= weight <= 1:
        weight = 1.0
        reasons.append("mask_weight_invalid")
    return CocoObject(bbox, box, segmentation, area, is_crowd, source, weight), reasons


def _segmentation(
    value: Any, size: tuple[int, int], said_size: tuple[int | None, int | None]
) -> tuple[Segmentation | None, list[str]]:
    said = (said_size[0] or size[0], said_size[1] or size[1])
    try:
        segmentation = read_segmentation(value, (size, said))
    except MaskError as error:
        return None, [error.reason]
    is_incomplete = segmentation is not None and segmentation.is_incomplete
    return segmentation, ["mask_part_invalid"] if is_incomplete else []


def _compared(
    segmentation: Segmentation, bbox: tuple[float, ...], size: tuple[int, int]
) -> list[str]:
    """What the bounds of a mask say against its box."""
    bounds = segmentation.bounds()
    if bounds is None:
        return []
    top, left, bottom, right = np.clip(bounds, 0, [*size, *size]).tolist()
    x, y, width, height = bbox
    slack_y, slack_x = (max(_APART[0], _APART[1] * side) for side in (bottom - top, right - left))

    def near(gap_y: float, gap_x: float, times: float = 1) -> bool:
        return abs(gap_y) <= times * slack_y and abs(gap_x) <= times * slack_x

    are_corners = near(y - top, x - left) and near(height - bottom, width - right)
    if are_corners and not near(y + height - bottom, x + width - right, times=2):
        return ["box_is_corners"]
    is_inside = (
        left >= x - slack_x
        and top >= y - slack_y
        and right <= x + width + slack_x
        and bottom <= y + height + slack_y
    )
    return [] if is_inside else ["mask_cut_by_box"]


def _is_rotated(attributes: Any) -> bool:
    """Whether CVAT says that the box, which COCO has upright, was drawn rotated."""
    rotation = as_number(attributes.get("rotation")) if isinstance(attributes, dict) else None
    return rotation is not None and rotation % 360 != 0
