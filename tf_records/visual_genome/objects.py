"""Reads objects.json of Visual Genome into arrays: 49 bytes an object, whatever the file's size."""

from __future__ import annotations

import array
import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from maskx_tf.data.coco.issues import Issue
from maskx_tf.data.coco.values import as_number
from tf_records.visual_genome.images import Image, image_id_of, whole_number
from tf_records.visual_genome.stream import JsonList

KEPT = ""
STATES = (
    KEPT,
    "annotation_malformed",
    "annotation_of_unknown_image",
    "annotation_repeated",
    "synset_missing",
    "synset_ambiguous",
    "synset_malformed",
    "synset_rare",
    "box_missing",
    "box_not_numeric",
    "box_not_finite",
)
_STATE = {state: number for number, state in enumerate(STATES)}
SYNSET = re.compile(r"[^\s#]\S*\.[a-z]\.\d+")
_NO_BOX = [0.0, 0.0, 0.0, 0.0]


class Objects(NamedTuple):
    """All objects of the file, in its order; N rows.

    Attributes:
      image_ids: the ids of image_data.json in its order, then unknown ones (None: no id at all).
      images: int32 [N], index into `image_ids`.
      ids: int64 [N], object id, -1 where there is none.
      synsets: int32 [N], index into `synset_names`, -1 unless the object has exactly one.
      boxes_xywh: float64 [N, 4], as annotated.
      states: int8 [N], index into `STATES`: kept, or the reason (of `issues`) why not.
      synset_names: every synset of the file.
      synset_counts: how often each is named, also by objects that name several.
      issues: what was wrong with entries.
      sha256: of the file.
    """

    image_ids: list[int | None]
    images: np.ndarray
    ids: np.ndarray
    synsets: np.ndarray
    boxes_xywh: np.ndarray
    states: np.ndarray
    synset_names: list[str]
    synset_counts: list[int]
    issues: list[Issue]
    sha256: str

    @property
    def counts(self) -> dict[str, int]:
        """Synset -> how often it is named."""
        return dict(zip(self.synset_names, self.synset_counts, strict=True))


def state(reason: str) -> int:
    """The index of a reason in `STATES`."""
    return _STATE[reason]


def read(path: str, images: Sequence[Image]) -> Objects:
    """Reads the file; versions 1.0 (`id`), 1.2 (`object_id`) and 1.4 (`merged_object_ids`).

    Raises:
      UserError: it is not a json list.
    """
    entries = JsonList(path, "objects")
    table = _Table(images)
    for entry in entries:
        table.add_entry(entry)
    return table.finish(entries.sha256)


class _Table:
    """Grows the columns object by object."""

    def __init__(self, images: Sequence[Image]) -> None:
        self._image_ids: list[int | None] = [image.image_id for image in images]
        self._index: dict[int | None, int] = {}
        for index, image_id in enumerate(self._image_ids):
            self._index[image_id] = index
        self._num_known = len(images)
        self._entries = bytearray(len(images))  # 1: the image had an entry
        self._images, self._synsets = array.array("i"), array.array("i")
        self._ids, self._boxes = array.array("q"), array.array("d")
        self._states = array.array("b")
        self._synset_index: dict[str, int] = {}
        self._counts: list[int] = []
        self._issues: list[Issue] = []

    def add_entry(self, entry: Any) -> None:
        image_id = image_id_of(entry)
        objects = entry.get("objects") if isinstance(entry, dict) else None
        if image_id is None or not isinstance(objects, list):
            self._issues.append(Issue("objects_entry_malformed", image_id))
        index = self._index.setdefault(image_id, len(self._image_ids))
        if index == len(self._image_ids):
            self._image_ids.append(image_id)
        elif index < self._num_known:
            if self._entries[index]:
                self._issues.append(Issue("objects_entry_repeated", image_id))
            self._entries[index] = 1
        for item in objects if isinstance(objects, list) else ():
            self._add(index, item)

    def _add(self, image: int, item: Any) -> None:
        synset, box, number = -1, _NO_BOX, None
        if isinstance(item, dict):
            synset, reason = self._synset(item.get("synsets"))
            box, box_reason = _box(item)
            if image >= self._num_known:
                reason = "annotation_of_unknown_image"
            reason = reason or box_reason
            number = whole_number(item.get("object_id", item.get("id")))
        else:
            reason = "annotation_malformed"
        self._images.append(image)
        self._ids.append(-1 if number is None else number)
        self._synsets.append(synset)
        self._boxes.extend(box)
        self._states.append(_STATE[reason])

    def _synset(self, value: Any) -> tuple[int, str]:
        """Counts the synsets; the index of a single one, or -1 and the reason."""
        if value is None or value == "":
            value = []
        names = value if isinstance(value, list) else [value]
        indices = [self._index_of(name) for name in names]
        if -1 in indices:
            return -1, "synset_malformed"
        for index in indices:
            self._counts[index] += 1
        if len(indices) == 1:
            return indices[0], KEPT
        return -1, "synset_ambiguous" if indices else "synset_missing"

    def _index_of(self, name: Any) -> int:
        """The index of a synset, -1 if it is not spelled like one."""
        if isinstance(name, dict):
            name = name.get("synset_name")
        if not isinstance(name, str):
            return -1
        index = self._synset_index.get(name)
        if index is None:
            if not name.isprintable() or not SYNSET.fullmatch(name):
                return -1
            index = self._synset_index[name] = len(self._counts)
            self._counts.append(0)
        return index

    def finish(self, sha256: str) -> Objects:
        absent = [index for index, present in enumerate(self._entries) if not present]
        self._issues += [Issue("objects_entry_missing", self._image_ids[i]) for i in absent]
        return Objects(
            self._image_ids,
            np.frombuffer(self._images, np.int32),
            np.frombuffer(self._ids, np.int64),
            np.frombuffer(self._synsets, np.int32),
            np.frombuffer(self._boxes, np.float64).reshape(-1, 4),
            np.frombuffer(self._states, np.int8),
            list(self._synset_index),
            self._counts,
            self._issues,
            sha256,
        )


def _box(item: dict[str, Any]) -> tuple[list[Any], str]:
    """(x, y, width, height) if these are finite numbers, else the reason why not."""
    width, height = item.get("w", item.get("width")), item.get("h", item.get("height"))
    values = [item.get("x"), item.get("y"), width, height]
    box = [number for value in values if (number := as_number(value)) is not None]
    if len(box) < 4:
        return _NO_BOX, "box_missing" if values == [None] * 4 else "box_not_numeric"
    return (box, KEPT) if all(map(math.isfinite, box)) else (_NO_BOX, "box_not_finite")
