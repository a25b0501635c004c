"""Reads a COCO-format json and checks its structure: images with their raw annotations."""

from __future__ import annotations

import hashlib
import json
import pathlib
from typing import Any, NamedTuple

from maskx_tf.data.classes import Vocabulary
from maskx_tf.errors import UserError
from tf_records.issues import Issue

_INT64 = 2**63


class ImageItem(NamedTuple):
    """One image of the json; sizes are None where it gives none. Annotations are unchecked."""

    image_id: int
    file_name: str
    height: int | None
    width: int | None
    annotations: list[dict[str, Any]]


class CocoJson(NamedTuple):
    """A COCO json: images in its order, classes, what was wrong so far, sha256 of the file."""

    items: list[ImageItem]
    vocabulary: Vocabulary
    issues: list[Issue]
    sha256: str


def read(path: str) -> CocoJson:
    """Reads the file; annotations that belong to no image are dropped and listed.

    Raises:
      UserError: the file is not a COCO json, or an annotation's category is not in it.
    """
    content, sha256 = _load(path)
    vocabulary = Vocabulary.from_categories(content["categories"], path)
    items = _images(content["images"], path)
    issues: list[Issue] = []
    by_id = {item.image_id: item for item in items}
    known = set(vocabulary.external_ids)
    ids = _AnnotationIds(content["annotations"])
    for index, annotation in enumerate(content["annotations"]):
        image_id = annotation.get("image_id") if isinstance(annotation, dict) else None
        if not _is_id(image_id):
            issues.append(Issue("annotation_malformed", None, _id_or_none(annotation)))
            continue
        _check_category(annotation, index, known, path)
        if image_id not in by_id:
            issues.append(Issue("annotation_of_unknown_image", image_id, _id_or_none(annotation)))
            continue
        number = _id_or_none(annotation)
        reason = ids.assign(annotation)
        if reason:
            issues.append(Issue(reason, image_id, number))
        if reason != "annotation_repeated":
            by_id[image_id].annotations.append(annotation)
    return CocoJson(items, vocabulary, issues, sha256)


def _load(path: str) -> tuple[dict[str, Any], str]:
    try:
        data = pathlib.Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"--annotations={path} cannot be read: {error.strerror}.") from None
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not json: {error}.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is no COCO json: it holds no object at the top.")
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            raise UserError(f"{path} is no COCO json of instances: it has no list {key!r}.")
    return content, hashlib.sha256(data).hexdigest()


def _images(entries: list[Any], path: str) -> list[ImageItem]:
    items = []
    seen = set()
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict) or not _is_id(entry.get("id")):
            raise UserError(f"{path}: images[{index}] has no integer id: {_short(entry)}.")
        image_id, file_name = entry["id"], entry.get("file_name")
        if not isinstance(file_name, str) or not file_name:
            raise UserError(f"{path}: image {image_id} has no file_name.")
        if image_id in seen:
            raise UserError(f"{path}: two images have the id {image_id}; make ids unique.")
        seen.add(image_id)
        sides = (entry.get("height"), entry.get("width"))
        height, width = (side if _is_id(side) else None for side in sides)
        items.append(ImageItem(image_id, file_name, height, width, []))
    if not items:
        raise UserError(f"{path} has no images.")
    return items


def _check_category(annotation: dict[str, Any], index: int, known: set[int], path: str) -> None:
    category = annotation.get("category_id")
    if not _is_id(category) or category not in known:
        raise UserError(
            f"{path}: annotation {annotation.get('id', f'number {index}')!r} has category_id "
            f"{category!r}, which is not in 'categories'; add the category or remove the "
            "annotation."
        )


class _AnnotationIds:
    """Makes annotation ids unique integers."""

    def __init__(self, annotations: list[Any]) -> None:
        present = (_id_or_none(annotation) for annotation in annotations)
        self._next = max((number for number in present if number is not None), default=0) + 1
        self._first: dict[int, dict[str, Any]] = {}

    def assign(self, annotation: dict[str, Any]) -> str | None:
        """Gives the annotation an id if need be; the reason (of `issues`) if something is wrong."""
        number = _id_or_none(annotation)
        if number is not None and number not in self._first:
            self._first[number] = annotation
            return None
        if number is None:
            reason = "annotation_id_missing"
        elif _same(annotation, self._first[number]):
            return "annotation_repeated"  # is dropped, and needs no id
        else:
            reason = "annotation_id_duplicate"
        annotation["id"] = self._next
        self._next += 1
        return reason


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(one.get(key) == other.get(key) for key in ("image_id", "category_id", "bbox"))


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -_INT64 <= value < _INT64


def _id_or_none(annotation: Any) -> int | None:
    number = annotation.get("id") if isinstance(annotation, dict) else None
    return number if _is_id(number) else None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
