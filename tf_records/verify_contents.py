"""What can be wrong with the contents of one record whose checksums fit."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from maskx_tf.data.coco.masks import POLYGON_CELLS
from maskx_tf.data.records import index, schema
from maskx_tf.errors import UserError, first_of

_SLACK = 1e-5  # of a box coordinate divided by the image side: float32 rounds it


class Object(NamedTuple):
    """What the manifest counts of an object; the source is "" without mask."""

    class_name: str
    mask_source: str
    is_weighted: bool  # its mask has a weight other than 1
    is_crowd: bool


@dataclasses.dataclass(frozen=True)
class Contents:
    """A record as far as it can be read.

    Attributes:
      image_id: as of `index.image_id`.
      objects: of each object.
      faults: what is wrong, in words.
    """

    image_id: str
    objects: tuple[Object, ...]
    faults: tuple[str, ...]


def examine(payload: bytes, names: Sequence[str]) -> Contents:
    """Checks a record against the schema, its own image and the vocabulary.

    Args:
      payload: the serialised tf.Example.
      names: of the classes 1..K.
    """
    image_id = index.image_id(payload)
    try:
        image, columns = schema.columns_of(payload)
    except UserError as error:
        return Contents(image_id, (), (str(error).rstrip("."),))
    size = image["image/height"], image["image/width"]
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    faults = list(_image_faults(image, image_id, names))
    for number, row in enumerate(rows):
        found = _object_faults(row, size, names)
        faults += [f"object {number} (id {row['id']}): {fault}" for fault in found]
    objects = tuple(
        Object(
            _text(row["class/text"]),
            _source(row),
            row["mask_weight"] != 1,
            bool(row["is_crowd"]),
        )
        for row in rows
    )
    return Contents(image_id, objects, tuple(faults))


def _image_faults(image: dict[str, Any], image_id: str, names: Sequence[str]) -> Iterator[str]:
    if image_id == index.NO_ID:
        yield f"the image id {_text(image['image/source_id'])!r} is not a whole number"
    if fault := schema.image_fault(image):
        yield fault
    for key in image.keys() & schema.FEDERATED_FEATURES.keys():
        if unknown := {_text(name) for name in image[key]}.difference(names):
            yield f"{key}: {first_of(sorted(unknown), 3)} are no classes of the manifest"


def _object_faults(row: dict[str, Any], size: tuple[int, int], names: Sequence[str]):
    box = [row[f"bbox/{side}"] for side in ("ymin", "xmin", "ymax", "xmax")]
    if not all(map(math.isfinite, box)):
        yield f"the box {_rounded(box)} is not finite"
    elif not (box[0] < box[2] and box[1] < box[3]):
        yield f"the box {_rounded(box)} is empty"
    elif min(box) < -_SLACK or max(box) > 1 + _SLACK:
        yield f"the box {_rounded(box)} leaves the image"
    else:
        yield from _mask_faults(row, (box[2] - box[0]) * size[0], (box[3] - box[1]) * size[1])
    label, name = row["class/label"], _text(row["class/text"])
    if not 1 <= label <= len(names):
        yield f"class {label} is none of 1..{len(names)}"
    elif names[label - 1] != name:
        yield f"class {label} is {names[label - 1]!r} in the manifest, {name!r} in the record"
    if not (math.isfinite(row["area"]) and row["area"] >= 0):
        yield f"the area is {row['area']}"
    if row["is_crowd"] not in (0, 1):
        yield f"is_crowd is {row['is_crowd']}"
    if not 0 <= row["mask_weight"] <= 1:
        yield f"mask_weight is {row['mask_weight']}, not from 0 to 1"


def _mask_faults(row: dict[str, Any], height: float, width: float) -> Iterator[str]:
    """What is wrong with the mask of a box of that many pixels."""
    if row["has_mask"] not in (0, 1) or bool(row["has_mask"]) != bool(row["mask"]):
        yield f"has_mask is {row['has_mask']} with a mask of {len(row['mask'])} bytes"
        return
    if row["has_mask"] != bool(row["mask_source"]):
        source = _text(row["mask_source"])
        yield f"has_mask is {row['has_mask']} with a mask of the source {source!r}"
    if not row["mask"]:
        return
    try:
        mask = schema.decode_mask(row["mask"])
    except UserError as error:
        yield str(error)
        return
    if not mask.any():
        yield "the mask has no pixel"
    most = [max(math.ceil(side) + 1, POLYGON_CELLS) for side in (height, width)]
    if mask.shape[0] > most[0] or mask.shape[1] > most[1]:
        yield (
            f"the mask of {mask.shape[0]} x {mask.shape[1]} pixels is larger than its box of "
            f"{height:.1f} x {width:.1f}"
        )


def _source(row: dict[str, Any]) -> str:
    return (_text(row["mask_source"]) or "unknown") if row["has_mask"] else ""


def _text(data: bytes) -> str:
    return data.decode(errors="replace")


def _rounded(box: Sequence[float]) -> str:
    return str(np.round(box, 4).tolist())
