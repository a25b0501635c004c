"""Random COCO data sets as tools and people write them, and what must become of each annotation.

What is expected follows from how an annotation was made, not from any reading of it.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from pycocotools import mask as mask_lib

SIZES = ((40, 60), (50, 70), (44, 90))  # (height, width) of the photos, none square


@dataclasses.dataclass
class Expected:
    """What becomes of an annotation.

    Attributes:
      box_xywh: of its object; None: it is dropped.
      has_mask: the object has one.
      is_crowd: it stands for several.
      reasons: what is listed of it.
    """

    box_xywh: list[float] | None
    has_mask: bool = True
    is_crowd: bool = False
    reasons: frozenset[str] = frozenset()


def _polygon(box: list[float]) -> list[list[float]]:
    x, y, w, h = box
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def _rle(box: list[float], size: tuple[int, int], compressed: bool) -> dict[str, Any]:
    x, y, w, h = map(int, box)
    mask = np.zeros(size, np.uint8, order="F")
    mask[y : y + h, x : x + w] = 1
    if compressed:
        code = mask_lib.encode(mask)
        return {"size": list(size), "counts": code["counts"].decode()}
    flat = mask.ravel(order="F").astype(int)
    ends = np.flatnonzero(np.diff(flat, prepend=0, append=1 - flat[-1]))
    return {"size": list(size), "counts": np.diff(ends, prepend=0).tolist()}


def _field(key: str, write: Callable[[Any], Any]) -> Callable[..., Expected]:
    """A habit of writing a field in a way that can be read without guessing."""

    def habit(item, box, size, rng):
        item[key] = write(item[key])
        return Expected(box)

    return habit


def _unusable_box(bbox: Any, reason: str) -> Callable[..., Expected]:
    """The mask gives the box, where there is one."""

    def habit(item, box, size, rng):
        item["bbox"] = copy.deepcopy(bbox)
        if rng.random() < 0.5:
            return Expected(box, reasons=frozenset({"box_of_mask"}))
        item["segmentation"] = rng.choice(([], None, [[]]))
        return Expected(None, reasons=frozenset({reason}))

    return habit


def _mask(write: Callable[..., Any], *reasons: str, has_mask: bool = True):
    def habit(item, box, size, rng):
        item["segmentation"] = write(box, size)
        return Expected(box, has_mask, reasons=frozenset(reasons))

    return habit


def _set(key: str, values: tuple[Any, ...], *reasons: str, kept: bool = True, crowd: bool = False):
    def habit(item, box, size, rng):
        item[key] = rng.choice(values)
        return Expected(box if kept else None, is_crowd=crowd, reasons=frozenset(reasons))

    return habit


def _normalised(item, box, size, rng):
    scale = (size[1], size[0]) * 2
    item["bbox"] = [value / side for value, side in zip(box, scale, strict=True)]
    if rng.random() < 0.5:
        item["segmentation"] = _polygon(item["bbox"])
        return Expected(None, reasons=frozenset({"box_normalised"}))
    return Expected(box, reasons=frozenset({"box_of_mask"}))


def _corners(item, box, size, rng):
    x, y, w, h = box
    item["bbox"] = [x, y, x + w, y + h]
    clipped = [x, y, min(x + w, size[1] - x), min(y + h, size[0] - y)]
    is_clipped = 2 * x + w > size[1] or 2 * y + h > size[0]
    reasons = {"box_is_corners", *(["box_clipped"] if is_clipped else [])}
    return Expected(clipped, reasons=frozenset(reasons))


def _beyond(item, box, size, rng):
    x, y, _, _ = box
    item["bbox"] = [x, y, size[1], size[0]]
    item["segmentation"] = []
    reasons = frozenset({"box_clipped"})
    return Expected([x, y, size[1] - x, size[0] - y], False, reasons=reasons)


def _boxes_alone(item, box, size, rng):
    item["segmentation"] = rng.choice(([], None, [[]], "", {}))
    return Expected(box, has_mask=False)


HABITS: dict[str, Callable[..., Expected]] = {
    "box alone": _boxes_alone,
    "box as text": _field("bbox", lambda box: [str(value) for value in box]),
    "box as floats": _field("bbox", lambda box: [float(value) for value in box]),
    "image id as text": _field("image_id", str),
    "image id as float": _field("image_id", float),
    "image id as float text": _field("image_id", lambda number: f"{number}.0"),
    "category as text": _field("category_id", str),
    "id as text": _field("id", str),
    "area as text": _field("area", str),
    "no box": _unusable_box(None, "box_missing"),
    "empty box": _unusable_box([], "box_missing"),
    "three numbers": _unusable_box([1, 2, 3], "box_not_numeric"),
    "words": _unusable_box(["a", 2, 3, 4], "box_not_numeric"),
    "box of true": _unusable_box([True, 2, 3, 4], "box_not_numeric"),
    "NaN": _unusable_box([math.nan, 2, 3, 4], "box_not_finite"),
    "no area": _unusable_box([5, 5, 0, 9], "box_empty"),
    "negative": _unusable_box([5, 5, 9, -9], "box_empty"),
    "beside the photo": _unusable_box([500, 5, 9, 9], "box_outside_image"),
    "normalised": _normalised,
    "corners": _corners,
    "beyond the photo": _beyond,
    "crowd": _set("iscrowd", (1, "1", True, "true", 1.0), "crowd", crowd=True),
    "no crowd": _set("iscrowd", (0, "0", False, None, "false", "")),
    "odd crowd": _set("iscrowd", ("maybe", 2, [1]), "iscrowd_invalid"),
    "odd area": _set("area", ("many", -1, math.nan, []), "area_invalid"),
    "rotated": _set("attributes", ({"rotation": 30}, {"rotation": "12.5"}), "box_rotated"),
    "upright": _set("attributes", ({"rotation": 0}, {"rotation": 360.0}, None, 5)),
    "unknown image": _set("image_id", (99, "77", -1), "annotation_of_unknown_image", kept=False),
    "odd image": _set("image_id", (None, True, "a", 1.5, []), "annotation_malformed", kept=False),
    "flat": _mask(lambda box, size: _polygon(box)[0]),
    "points": _mask(lambda box, size: [np.reshape(_polygon(box)[0], (-1, 2)).tolist()]),
    "points as text": _mask(lambda box, size: [[str(value) for value in _polygon(box)[0]]]),
    "json as text": _mask(lambda box, size: str(_polygon(box))),
    "runs": _mask(lambda box, size: _rle(box, size, False)),
    "compressed": _mask(lambda box, size: _rle(box, size, True)),
    "bytes as text": _mask(
        lambda box, size: (code := _rle(box, size, True))
        | {"counts": str(code["counts"].encode())}
    ),
    "list of runs": _mask(lambda box, size: [_rle(box, size, True)]),
    "with a line": _mask(lambda box, size: [*_polygon(box), [1, 2, 3, 4]], "mask_part_invalid"),
    "null": _mask(lambda box, size: [None], "mask_blank", has_mask=False),
    "a number": _mask(lambda box, size: 5, "mask_invalid", has_mask=False),
    "a line": _mask(lambda box, size: [[1, 2, 3, 4]], "mask_no_polygon", has_mask=False),
    "size exchanged": _mask(
        lambda box, size: _rle(box, size, True) | {"size": list(size[::-1])},
        "mask_size_swapped",
        has_mask=False,
    ),
    "other size": _mask(
        lambda box, size: _rle(box, size, True) | {"size": [size[0] + 1, size[1]]},
        "mask_size_differs",
        has_mask=False,
    ),
    "runs cut off": _mask(
        lambda box, size: {"size": list(size), "counts": _rle(box, size, False)["counts"][:-1]},
        "mask_counts_invalid",
        has_mask=False,
    ),
    "elsewhere": _mask(
        lambda box, size: _polygon([size[1] - 3, 0, 3, 3]),
        "mask_cut_by_box",
        "mask_empty",
        has_mask=False,
    ),
}  # fmt: skip


@dataclasses.dataclass
class DataSet:
    """A json, and what becomes of its annotations by their ids."""

    content: dict[str, Any]
    expected: dict[int, Expected]

    def objects(self) -> list[Expected]:
        """Those that are trained on."""
        return [e for e in self.expected.values() if e.box_xywh is not None and not e.is_crowd]

    def reasons(self) -> Counter[str]:
        """How often each reason is listed."""
        return Counter(reason for e in self.expected.values() for reason in e.reasons)


def data_set(rng: random.Random) -> DataSet:
    """Up to 30 annotations, of which a share (or all) have one or several habits."""
    names = rng.sample(list(HABITS), rng.choice((1, 1, 2, 5)))
    share = rng.choice((0.2, 0.5, 0.9, 1))
    count = rng.randint(1, 30)
    return _data_set([rng.choice(names) if rng.random() < share else "" for _ in range(count)], rng)


def data_set_of(habit: str) -> DataSet:
    """Five annotations, of which the first two have a habit."""
    return _data_set([habit, habit, "", "", ""], random.Random(0))


def _data_set(habits: list[str], rng: random.Random) -> DataSet:
    annotations, expected = [], {}
    for number, habit in enumerate(habits, start=1):
        image = rng.randrange(len(SIZES))
        # Whole numbers, so that all polygons and runs are exact; no two boxes are equal.
        box = [10 + number, *(rng.randrange(8, 20) for _ in range(3))]
        item = {
            "id": number, "image_id": image + 1, "category_id": rng.randint(1, 3), "bbox": box,
            "segmentation": _polygon(box), "area": box[2] * box[3], "iscrowd": 0,
        }  # fmt: skip
        make = HABITS[habit] if habit else lambda item, box, size, rng: Expected(box)
        expected[number] = make(item, list(box), SIZES[image], rng)
        annotations.append(item)
    images = [
        {"id": number, "file_name": f"{number}.jpg", "height": height, "width": width}
        for number, (height, width) in enumerate(SIZES, start=1)
    ]
    categories = [{"id": number, "name": name} for number, name in enumerate("abc", start=1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    return DataSet(content, expected)
