"""VOC's pictures of masks: which number is which object."""

from __future__ import annotations

import io
import pathlib
import warnings
from typing import Any

import numpy as np
import PIL.Image

from maskx_tf.ops import masks as mask_ops
from tf_records.folders import labels as labels_lib
from tf_records.folders.labels import LabelledImage

_VOID = 255
_SLACK_PX = 2.0  # that a mask may leave the box of its number by
_LEAST_IOU = 0.5  # of a mask's bounds with the box that it is matched to otherwise


def add(item: LabelledImage, path: pathlib.Path, place: str) -> None:
    """Gives the objects the masks of a picture of their numbers.

    A mask within the box of its number is that object's; another one goes to the box without a
    mask that it fits best, as some tools number masks by themselves.
    """
    numbers = _numbers(labels_lib.read_bytes(path) or b"")
    if numbers is None:
        item.lose("mask_file_unreadable", place)
        return
    masks = {int(number): numbers == number for number in np.unique(numbers) if 0 < number < _VOID}
    bounds = {number: _bounds(mask) for number, mask in masks.items()}
    boxes = {index: box for index, each in enumerate(item.objects) if (box := _box(each.bbox))}
    owners = {
        number - 1: number
        for number, inside in bounds.items()
        if number - 1 in boxes and _is_within(inside, boxes[number - 1])
    }
    pairs = sorted(
        (-_iou(inside, box), number, index)
        for number, inside in bounds.items()
        for index, box in boxes.items()
    )
    for negative_iou, number, index in pairs:
        is_open = index not in owners and number not in owners.values()
        if is_open and -negative_iou >= _LEAST_IOU:
            owners[index] = number
    for index, number in owners.items():
        mask = mask_ops.encode_rle(masks[number])
        item.objects[index] = item.objects[index]._replace(segmentation=mask)
    for number in masks.keys() - set(owners.values()):
        item.lose("mask_without_box", f"{place}: number {number}")


def _numbers(data: bytes) -> np.ndarray | None:
    """uint8 [height, width], the numbers in a PNG; None if it has none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with PIL.Image.open(io.BytesIO(data), formats=("PNG",)) as image:
                if image.mode in ("P", "L"):
                    return np.asarray(image, np.uint8)
                colours = np.asarray(image.convert("RGB"), np.int64) @ [1 << 16, 1 << 8, 1]
    except Exception:  # Pillow raises a dozen types on damaged files
        return None
    palette = _palette()
    order = np.argsort(palette)
    places = np.searchsorted(palette, colours, sorter=order).clip(max=_VOID)
    numbers = order[places]
    return numbers.astype(np.uint8) if (palette[numbers] == colours).all() else None


def _palette() -> np.ndarray:
    """int64 [256], VOC's colours as red << 16 | green << 8 | blue."""
    numbers = np.arange(_VOID + 1)
    colours = np.zeros([len(numbers), 3], np.int64)
    for step in range(8):
        for channel in range(3):
            colours[:, channel] |= (numbers >> (3 * step + channel) & 1) << (7 - step)
    return colours @ [1 << 16, 1 << 8, 1]


def _bounds(mask: np.ndarray) -> tuple[float, ...]:
    """x1, y1, x2, y2 of the set pixels."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return tuple(map(float, (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)))


def _box(bbox: Any) -> tuple[float, ...] | None:
    if bbox is None or not all(isinstance(value, float) for value in bbox):
        return None
    x, y, width, height = bbox
    return (x, y, x + width, y + height)


def _is_within(inside: tuple[float, ...], box: tuple[float, ...]) -> bool:
    return all(a >= b - _SLACK_PX for a, b in zip(inside[:2], box[:2], strict=True)) and all(
        a <= b + _SLACK_PX for a, b in zip(inside[2:], box[2:], strict=True)
    )


def _iou(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return width * height / (sum(areas) - width * height)
