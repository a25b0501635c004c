"""The json that came in, with masks. What is not about masks stays as it was, to the byte."""

from __future__ import annotations

import json

from maskx_tf.labeling.labeler import Labels, Mask
from maskx_tf.labeling.objects import mask_source
from maskx_tf.labeling.source import Source, members_of
from maskx_tf.ops import masks as mask_ops
from maskx_tf.ops import polygons


def to_text(source: Source, labels: Labels, mask_seen: set[str], polygon_iou: float | None) -> str:
    """The COCO json.

    Args:
      source: what came in.
      labels: the new masks.
      mask_seen: names of the classes that the model was trained on masks of.
      polygon_iou: see `segmentation`.

    Returns:
      The text of `source`, in which an annotation with a new mask has segmentation and area of it,
      mask_score, mask_agreement, mask_seen and mask_source, and one with a mask of its own has
      mask_source. A mask_weight was that of a mask that is replaced: it is dropped.
    """
    parts = []
    for key, text in source.members.items():
        if key == "annotations":
            rows = [
                _annotation(source, place, labels, mask_seen, polygon_iou)
                for place in range(len(source.texts))
            ]
            text = "[\n" + ",\n".join(rows) + "\n]"
        elif isinstance(text, list):
            text = "[\n" + ",\n".join(text) + "\n]"
        parts.append(f"{json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _annotation(
    source: Source, place: int, labels: Labels, mask_seen: set[str], polygon_iou: float | None
) -> str:
    text, mask = source.text(place), labels.masks.get(place)
    annotation = source.annotations.get(place)
    where_from = mask_source(source, annotation, labels) if annotation else None
    if annotation is None or where_from is None:
        return text
    members = members_of(text)
    if mask is not None:
        if annotation.has_mask:
            members.pop("mask_weight", None)
        members["segmentation"] = json.dumps(segmentation(mask, polygon_iou))
        members["area"] = str(mask_ops.rle_area(mask.rle))
        members["mask_score"] = f"{mask.score:.6f}"
        members["mask_agreement"] = f"{mask.agreement:.6f}"
        members["mask_seen"] = json.dumps(annotation.class_name in mask_seen)
    elif "mask_source" in members:
        return text
    members["mask_source"] = json.dumps(where_from)
    return "{" + ", ".join(f"{json.dumps(key)}: {value}" for key, value in members.items()) + "}"


def segmentation(mask: Mask, polygon_iou: float | None) -> dict | list:
    """A mask as COCO has it: its run-length code, or polygons of at least this IoU with it."""
    if polygon_iou is None:
        return mask.rle
    return polygons.from_rle(mask.rle, polygon_iou)
