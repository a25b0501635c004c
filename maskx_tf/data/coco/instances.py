"""Reads a COCO-format json and checks its structure: images with their annotations as json text."""

from __future__ import annotations

import pathlib
from typing import Any, NamedTuple

from maskx_tf.data.classes import Vocabulary
from maskx_tf.data.coco.annotations import AnnotationIds, Annotations, is_id, side_px
from maskx_tf.data.coco.issues import Issue
from maskx_tf.data.coco.json_stream import Entry, JsonStream
from maskx_tf.errors import UserError

_LISTS = ("images", "annotations", "categories")


class ImageItem(NamedTuple):
    """One image of the json.

    Attributes:
      image_id: as in the json.
      file_name: under the directory of images.
      height: pixels, None where the json gives no usable one.
      width: pixels, None where the json gives no usable one.
      annotations: (unique id, json text of the annotation, unchecked but for its image and class).
    """

    image_id: int
    file_name: str
    height: int | None
    width: int | None
    annotations: list[tuple[int, bytes]]


class CocoJson(NamedTuple):
    """A COCO json: images in its order, classes, what was wrong so far, sha256 of the file."""

    items: list[ImageItem]
    vocabulary: Vocabulary
    issues: list[Issue]
    sha256: str


def read(path: str) -> CocoJson:
    """Reads the file; annotations that belong to no image are dropped and listed.

    The file is streamed: what stays in memory is about the text of its annotations.

    Raises:
      UserError: the file is not a COCO json, or an annotation's category is not in it.
    """
    images, annotations, categories, sha256 = _load(path)
    vocabulary = _vocabulary(categories, path)
    issues: list[Issue] = []
    items = _images(images, path, issues)
    by_id = {item.image_id: item for item in items}
    known = set(vocabulary.external_ids)
    ids = AnnotationIds(annotations)
    for index in range(len(annotations)):
        number, image_id = annotations.number(index), annotations.image_id(index)
        if image_id is None:
            issues.append(Issue("annotation_malformed", None, number))
            continue
        if annotations.category_id(index) not in known:
            raise _unknown_category(annotations.value(index), index, path)
        if image_id not in by_id:
            issues.append(Issue("annotation_of_unknown_image", image_id, number))
            continue
        unique, reason = ids.assign(index, number)
        if reason:
            issues.append(Issue(reason, image_id, number))
        if reason != "annotation_repeated":
            by_id[image_id].annotations.append((unique, annotations.texts[index]))
    return CocoJson(items, vocabulary, issues, sha256)


def _load(path: str) -> tuple[list[Any], Annotations, list[Any], str]:
    found: dict[str, Any] = {}
    try:
        with open(path, "rb") as file:
            stream = JsonStream(file, path, pathlib.Path(path).stat().st_size)
            is_object = stream.is_object()
            for entry in stream.entries():
                _collect(found, entry)
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"--annotations={path} cannot be read: {reason}.") from None
    if not is_object:
        raise UserError(f"{path} is not a COCO json: its top level is not an object.")
    for key in _LISTS:
        if found.get(key) is None:
            raise UserError(f"{path} is not a COCO json of instances: it has no list {key!r}.")
    return found["images"], found["annotations"], found["categories"], stream.sha256


def _collect(found: dict[str, Any], entry: Entry) -> None:
    """Keeps what an entry of the lists is needed for; of a key given twice the last counts."""
    if entry.key not in _LISTS:
        return
    if entry.index is None:
        made: Any = Annotations() if entry.key == "annotations" else []
        found[entry.key] = made if isinstance(entry.value, list) else None
    elif entry.key == "annotations":
        found["annotations"].append(entry)
    elif entry.key == "images" and isinstance(entry.value, dict) and is_id(entry.value.get("id")):
        kept = ("id", "file_name", "height", "width")
        found["images"].append({key: entry.value.get(key) for key in kept})
    else:
        found[entry.key].append(entry.value)


def _vocabulary(categories: list[Any], path: str) -> Vocabulary:
    try:
        vocabulary = Vocabulary.from_categories(categories, path)
    except RecursionError:
        raise UserError(f"{path}: a category is nested too deep to be one.") from None
    for number, name in zip(vocabulary.external_ids, vocabulary.names, strict=True):
        if not is_id(number) or not is_text(name):
            raise UserError(
                f"{path}: category {short({'id': number, 'name': name})} needs an id of at most 64 "
                "bits and a name of valid characters."
            )
    return vocabulary


def _images(entries: list[Any], path: str, issues: list[Issue]) -> list[ImageItem]:
    items = []
    seen = set()
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict) or not is_id(entry.get("id")):
            raise UserError(f"{path}: images[{index}] has no integer id: {short(entry)}.")
        image_id, file_name = entry["id"], entry.get("file_name")
        if not isinstance(file_name, str) or not file_name:
            raise UserError(f"{path}: image {image_id} has no file_name.")
        if not is_text(file_name) or "\0" in file_name:
            raise UserError(
                f"{path}: the file_name {short(file_name)} of image {image_id} has characters that "
                "no file can have."
            )
        if image_id in seen:
            raise UserError(f"{path}: two images have the id {image_id}; make ids unique.")
        seen.add(image_id)
        sides = [entry.get("height"), entry.get("width")]
        height, width = map(side_px, sides)
        if [height, width] != sides:
            issues.append(Issue("image_size_invalid", image_id))
        items.append(ImageItem(image_id, file_name, height, width, []))
    if not items:
        raise UserError(f"{path} has no images.")
    return items


def _unknown_category(annotation: dict[str, Any], index: int, path: str) -> UserError:
    return UserError(
        f"{path}: annotation {short(annotation.get('id', f'number {index}'))} has category_id "
        f"{short(annotation.get('category_id'))}, which is not in 'categories'; add the category "
        "or remove the annotation."
    )


def is_text(value: str) -> bool:
    """Whether UTF-8 can hold it: half a surrogate pair, which json allows, cannot be."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def short(value: Any) -> str:
    """A value of the json for a message: one line, not too long."""
    try:
        text = repr(value)
    except RecursionError:
        text = f"a {type(value).__name__} of too many levels"
    return text if len(text) <= 60 else text[:57] + "..."
