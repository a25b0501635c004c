"""Reads a COCO-format json and checks its structure: images with their annotations as json text."""

from __future__ import annotations

import pathlib
import urllib.parse
from collections.abc import Sequence
from typing import Any, NamedTuple

from maskx_tf.data.classes import Vocabulary
from maskx_tf.data.coco import kinds
from maskx_tf.data.coco.annotations import AnnotationIds, Annotations
from maskx_tf.data.coco.categories import class_attributes, read_vocabulary
from maskx_tf.data.coco.issues import Issue
from maskx_tf.data.coco.json_stream import Entry, JsonStream
from maskx_tf.data.coco.values import is_text, short, whole_number
from maskx_tf.errors import UserError

_LISTS = ("images", "annotations", "categories")
# LVIS: the classes that an image is known to have no object of, and those it may have more of.
_FEDERATED = ("neg_category_ids", "not_exhaustive_category_ids")
_IMAGE_KEYS = ("id", "file_name", "coco_url", "height", "width", *_FEDERATED)
_NOT_FILE_NAME = ("filename", "fileName", "path", "image", "name")  # what others call it


class AnnotationItem(NamedTuple):
    """An annotation: its unique id, its place in the file, its class, its json text (an object)."""

    number: int
    place: int
    category_id: int
    text: bytes


class ImageItem(NamedTuple):
    """One image of the json.

    Attributes:
      image_id: as in the json.
      file_name: under the directory of images.
      height: pixels, None where the json gives no usable one.
      width: pixels, None where the json gives no usable one.
      annotations: unchecked but for image and class.
      path: of the file, once `images.locate` has looked for it.
      neg_category_ids: classes that it has no object of; None: all that it has no annotations of.
      not_exhaustive_category_ids: classes that it may have objects of without annotations; None
        with the other.
    """

    image_id: int
    file_name: str
    height: int | None
    width: int | None
    annotations: list[AnnotationItem]
    path: str = ""
    neg_category_ids: tuple[int, ...] | None = None
    not_exhaustive_category_ids: tuple[int, ...] | None = None

    @property
    def size(self) -> tuple[int | None, int | None]:
        """(height, width) as in the json."""
        return self.height, self.width

    @property
    def is_federated(self) -> bool:
        """Whether it is said which classes the image is annotated for."""
        return (self.neg_category_ids, self.not_exhaustive_category_ids) != (None, None)


class CocoJson(NamedTuple):
    """A COCO json.

    Attributes:
      items: images in its order.
      vocabulary: classes in its order.
      issues: what was wrong so far.
      sha256: of the file.
      members: if asked for, the text of every member of the object at the top, in order; of a list
        the texts of its items, but for the annotations.
      texts: of all annotations, in order.
      class_attributes: class name -> its "frequency" and "synset", of those that have any.
    """

    items: list[ImageItem]
    vocabulary: Vocabulary
    issues: list[Issue]
    sha256: str
    members: dict[str, str | list[str]]
    texts: list[bytes]
    class_attributes: dict[str, dict[str, str]]


def read(path: str, flag: str = "--annotations", with_texts: bool = False) -> CocoJson:
    """Reads the file; annotations that belong to no image are dropped and listed.

    The file is streamed: what stays in memory is about the text of its annotations.

    Args:
      path: of the json.
      flag: names it in messages.
      with_texts: keep the text of everything, to the byte.

    Raises:
      UserError: the file is not a COCO json, or an annotation's category is not in it.
    """
    content = _load(path, flag, with_texts)
    for key in _LISTS:
        if not isinstance(content.values.get(key), (list, Annotations)):
            raise UserError(kinds.without_list(path, key, content.values))
    annotations: Annotations = content.values["annotations"]
    issues: list[Issue] = []
    vocabulary = read_vocabulary(content.values["categories"], annotations, path)
    items = _images(content.values["images"], path, issues)
    by_id = {item.image_id: item for item in items}
    known = set(vocabulary.external_ids)
    ids = AnnotationIds(annotations)
    for place in range(len(annotations)):
        number, image_id = annotations.number(place), annotations.image_id(place)
        if image_id is None:
            issues.append(Issue("annotation_malformed", None, number))
            continue
        category_id = annotations.category_id(place)
        if category_id is None or category_id not in known:
            raise UserError(kinds.unknown_category(annotations.value(place), place, path))
        if image_id not in by_id:
            issues.append(Issue("annotation_of_unknown_image", image_id, number))
            continue
        unique, reason = ids.assign(place, number)
        if reason:
            issues.append(Issue(reason, image_id, number))
        if reason != "annotation_repeated":
            item = AnnotationItem(unique, place, category_id, annotations.texts[place])
            by_id[image_id].annotations.append(item)
    return CocoJson(
        items,
        vocabulary,
        issues,
        content.sha256,
        content.members,
        annotations.texts,
        class_attributes(content.values["categories"], vocabulary),
    )


def read_images(path: str, flag: str = "--annotations") -> list[ImageItem]:
    """The images of a json alone, without annotations, which it need not have.

    Raises:
      UserError: the file holds no list of images, or two have one id.
    """
    content = _load(path, flag, lists=("images",))
    if not isinstance(content.values.get("images"), list):
        raise UserError(kinds.without_list(path, "images", content.values))
    return _images(content.values["images"], path, [])


def read_categories(path: str, flag: str = "--annotations") -> Vocabulary:
    """The classes of a json alone; UserError if it has none."""
    content = _load(path, flag, lists=("categories",))
    if not isinstance(content.values.get("categories"), list):
        raise UserError(kinds.without_list(path, "categories", content.values))
    return read_vocabulary(content.values["categories"], Annotations(), path)


class _Content:
    """The members of the object at the top: values of the lists, None for others, and texts."""

    def __init__(self, lists: Sequence[str], with_texts: bool) -> None:
        self.values: dict[str, Any] = {}
        self.members: dict[str, str | list[str]] = {}
        self.sha256 = ""
        self._lists, self._with_texts = lists, with_texts

    def add(self, entry: Entry) -> None:
        """Keeps what an entry is needed for; of a key given twice the last counts."""
        if entry.index is None:
            is_list = isinstance(entry.value, list)
            self.values[entry.key] = None
            if is_list and entry.key in self._lists:
                is_large = entry.key == "annotations"
                self.values[entry.key] = Annotations(self._with_texts) if is_large else []
            if self._with_texts:
                self.members[entry.key] = [] if is_list else entry.text
            return
        if self._with_texts and entry.key != "annotations":
            self.members[entry.key].append(entry.text)  # type: ignore[union-attr]
        values = self.values[entry.key]
        if values is None:
            return
        if entry.key == "annotations":
            values.append(entry)
        elif entry.key == "images" and isinstance(entry.value, dict):
            keys = _IMAGE_KEYS if "file_name" in entry.value else (*_IMAGE_KEYS, *_NOT_FILE_NAME)
            values.append({key: entry.value[key] for key in keys if key in entry.value})
        else:
            values.append(entry.value)


def _load(
    path: str, flag: str, with_texts: bool = False, lists: Sequence[str] = _LISTS
) -> _Content:
    content = _Content(lists, with_texts)
    try:
        with open(path, "rb") as file:
            head = file.read(kinds.HEAD_BYTES)
            if kind := kinds.no_json(head):
                raise UserError(f"{flag}={path} is not json: {kind}.")
            file.seek(0)
            stream = JsonStream(file, path, pathlib.Path(path).stat().st_size)
            is_object = stream.is_object()
            for entry in stream.entries():
                content.add(entry)
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{flag}={path} cannot be read: {reason}.") from None
    if not is_object:
        raise UserError(f"{path} is not a COCO json: {kinds.of_top_level(head)}.")
    content.sha256 = stream.sha256
    return content


def _images(entries: list[Any], path: str, issues: list[Issue]) -> list[ImageItem]:
    items: list[ImageItem] = []
    seen = set()
    for place, entry in enumerate(entries):
        image_id = whole_number(entry.get("id")) if isinstance(entry, dict) else None
        if image_id is None:
            raise UserError(_no_id(entry, place, path))
        file_name = entry.get("file_name") or _name_in_url(entry.get("coco_url"))
        if not isinstance(file_name, str) or not file_name:
            others = [key for key in _NOT_FILE_NAME if key in entry]
            hint = f"; rename its {others[0]!r} if that is it" if others else ""
            raise UserError(f"{path}: image {image_id} has no file_name{hint}.")
        if not is_text(file_name) or "\0" in file_name:
            raise UserError(
                f"{path}: the file_name {short(file_name)} of image {image_id} has characters that "
                "no file can have."
            )
        if image_id in seen:
            raise UserError(f"{path}: two images have the id {image_id}; make ids unique.")
        seen.add(image_id)
        sides = [whole_number(entry.get(key)) for key in ("height", "width")]
        height, width = (side if side and side > 0 else None for side in sides)
        said = (entry.get("height"), entry.get("width"))
        if any(a is None and b is not None for a, b in zip((height, width), said, strict=True)):
            issues.append(Issue("image_size_invalid", image_id))
        negative, not_exhaustive = (_category_ids(entry, key, path) for key in _FEDERATED)
        items.append(
            ImageItem(image_id, file_name, height, width, [], "", negative, not_exhaustive)
        )
    if not items:
        raise UserError(f"{path} has no images.")
    if any(item.is_federated for item in items):
        items = [
            item._replace(
                neg_category_ids=item.neg_category_ids or (),
                not_exhaustive_category_ids=item.not_exhaustive_category_ids or (),
            )
            for item in items
        ]
    return items


def _category_ids(entry: dict[str, Any], key: str, path: str) -> tuple[int, ...] | None:
    """LVIS's list of classes of an image; None if it has none."""
    if key not in entry:
        return None
    values = entry[key]
    numbers = [whole_number(value) for value in values] if isinstance(values, list) else [None]
    ids = tuple(number for number in numbers if number is not None)
    if len(ids) < len(numbers):
        raise UserError(
            f"{path}: {key} of image {short(entry.get('id'))} has to be a list of category ids, "
            f"and is {short(values)}."
        )
    return ids


def _no_id(entry: Any, place: int, path: str) -> str:
    value = entry.get("id") if isinstance(entry, dict) else None
    if isinstance(value, (str, int)) and not isinstance(value, bool):
        return (
            f"{path}: images[{place}] has the id {short(value)}, which is no whole number of at "
            "most 64 bits; number the images 1, 2, 3, … and change the image_id of their "
            "annotations with them."
        )
    return f"{path}: images[{place}] has no integer id: {short(entry)}."


def _name_in_url(url: Any) -> str | None:
    """LVIS has no file_name: the last two parts of the URL, such as train2017/000000000001.jpg."""
    if not isinstance(url, str):
        return None
    path = urllib.parse.unquote(urllib.parse.urlsplit(url).path)
    return "/".join([part for part in path.split("/") if part][-2:])
