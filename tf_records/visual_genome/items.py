"""From the arrays of all objects to the work items of a split, and from an item to its record."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple, overload

import numpy as np
import PIL.Image

from maskx_tf.data.coco.instances import AnnotationItem, ImageItem
from maskx_tf.data.coco.issues import Issue
from tf_records import coco_objects
from tf_records.shards import Encoded
from tf_records.visual_genome.classes import Classes
from tf_records.visual_genome.images import Image
from tf_records.visual_genome.objects import STATES, Objects, state

_GREY = {"L", "1", "I;16"}


class Item(NamedTuple):
    """An image with its N objects: ids int64 [N], classes int32 [N], boxes_xywh float64 [N, 4]."""

    image: Image
    ids: np.ndarray
    classes: np.ndarray
    boxes_xywh: np.ndarray


class Settings(NamedTuple):
    """How items become records; `coco` has the class ids as category ids."""

    coco: coco_objects.Settings
    drop_duplicates: bool


class Table(NamedTuple):
    """The objects with their classes, by image; N rows, `first` int64 [images + 1] bounds them.

    `ids` int64 [N], `classes` int32 [N], `boxes_xywh` float64 [N, 4]; `issues`: what was dropped or
    repaired, in the file's order.
    """

    first: np.ndarray
    ids: np.ndarray
    classes: np.ndarray
    boxes_xywh: np.ndarray
    issues: list[Issue]


def make_table(objects: Objects, classes: Classes, num_images: int) -> Table:
    """Objects of the classes, with ids made unique, in the order of images and file."""
    states = objects.states.copy()
    class_ids = _class_ids(objects, classes)
    states[(states == 0) & (class_ids == 0)] = state("synset_rare")
    ids, repairs = _unique_ids(objects, states)
    dropped = [(row, STATES[states[row]]) for row in np.flatnonzero(states).tolist()]
    issues = [_issue(objects, row, reason) for row, reason in dropped + repairs]
    rows = np.flatnonzero(states == 0)
    rows = rows[np.argsort(objects.images[rows], kind="stable")]
    first = np.searchsorted(objects.images[rows], np.arange(num_images + 1))
    boxes = objects.boxes_xywh[rows]
    return Table(first, ids[rows], class_ids[rows], boxes, issues)


def _class_ids(objects: Objects, classes: Classes) -> np.ndarray:
    """int32 [N], 0 where the object has no class."""
    ids = {synset: number for number, synset in enumerate(classes.synsets, start=1) if synset}
    table = [ids.get(synset, 0) for synset in objects.synset_names] + [0]  # the last: no synset
    return np.array(table, np.int32)[objects.synsets]


def _unique_ids(objects: Objects, states: np.ndarray) -> tuple[np.ndarray, list[tuple[int, str]]]:
    """int64 [N] ids, (row, reason) of the new ones; marks repeated objects in `states`."""
    ids = objects.ids.copy()
    kept = np.flatnonzero(states == 0)
    following = int(ids.max(initial=0)) + 1
    _, first, group = np.unique(ids[kept], return_index=True, return_inverse=True)
    suspects = np.flatnonzero((first[group] != np.arange(len(kept))) | (ids[kept] < 0))
    seen: dict[int, set[tuple]] = {}
    repairs = []
    for index in suspects.tolist():
        row, one = int(kept[index]), int(kept[first[group[index]]])
        reason = "annotation_id_missing" if ids[row] < 0 else "annotation_id_duplicate"
        if reason == "annotation_id_duplicate":
            known = seen.setdefault(one, {_key(objects, one)})
            if _key(objects, row) in known:
                states[row] = state("annotation_repeated")
                continue
            known.add(_key(objects, row))
        repairs.append((row, reason))
    for row, _ in repairs:
        ids[row] = following
        following += 1
    return ids, repairs


def _key(objects: Objects, row: int) -> tuple:
    box = objects.boxes_xywh[row].tolist()
    return (int(objects.images[row]), int(objects.synsets[row]), *box)


def _issue(objects: Objects, row: int, reason: str) -> Issue:
    number = int(objects.ids[row])
    image_id = objects.image_ids[objects.images[row]]
    return Issue(reason, image_id, None if number < 0 else number)


class Items(Sequence[Item]):
    """The items of some images; each is made when it is asked for.

    Args:
      table: objects by image.
      images: all images.
      chosen: indices of those the sequence has.
    """

    def __init__(self, table: Table, images: Sequence[Image], chosen: Sequence[int]) -> None:
        self._table, self._images, self._chosen = table, images, chosen

    def __len__(self) -> int:
        return len(self._chosen)

    @overload
    def __getitem__(self, index: int) -> Item: ...

    @overload
    def __getitem__(self, index: slice) -> Items: ...

    def __getitem__(self, index: int | slice) -> Item | Items:
        if isinstance(index, slice):
            return Items(self._table, self._images, self._chosen[index])
        number = self._chosen[index]
        table = self._table
        rows = slice(table.first[number], table.first[number + 1])
        # Copies: a slice would drag the whole array along to the worker processes.
        columns = (table.ids[rows], table.classes[rows], table.boxes_xywh[rows])
        return Item(self._images[number], *(column.copy() for column in columns))

    def __iter__(self) -> Iterator[Item]:
        return (self[index] for index in range(len(self)))


def encode_item(item: Item, settings: Settings) -> Encoded:
    """The record of an item, as `coco_objects.encode_image` makes it, and its issues."""
    annotations, issues = _annotations(item, settings.drop_duplicates)
    image = item.image
    made = coco_objects.encode_image(
        ImageItem(image.image_id, image.file_name, image.height, image.width, annotations),
        settings.coco,
    )
    if made.example is not None and _is_grey(settings.coco.images, image.file_name):
        issues.append(Issue("image_grey", image.image_id))
    return dataclasses.replace(made, issues=(*made.issues, *issues))


def _annotations(item: Item, drop_duplicates: bool) -> tuple[list[AnnotationItem], list[Issue]]:
    """The objects as the annotations of an `instances.ImageItem`."""
    annotations: list[AnnotationItem] = []
    issues, seen = [], set()
    columns = (item.ids.tolist(), item.classes.tolist(), item.boxes_xywh.tolist())
    for number, class_id, box in zip(*columns, strict=True):
        if drop_duplicates and (class_id, *box) in seen:
            issues.append(Issue("box_duplicate_dropped", item.image.image_id, number))
            continue
        seen.add((class_id, *box))
        text = f'{{"bbox": {box}}}'.encode()
        annotations.append(AnnotationItem(number, len(annotations), class_id, text))
    return annotations, issues


def _is_grey(directory: str, file_name: str) -> bool:
    with PIL.Image.open(pathlib.Path(directory) / file_name) as image:
        return image.mode in _GREY
