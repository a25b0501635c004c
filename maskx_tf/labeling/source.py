"""The COCO json to be labelled. Its text is kept, so that only what is meant to changes."""

from __future__ import annotations

import dataclasses
import decimal
import json
import pathlib
from typing import Any, NamedTuple

from maskx_tf.data.coco.annotations import is_id, side_px
from maskx_tf.data.coco.json_stream import Entry, JsonStream
from maskx_tf.errors import UserError

_LISTS = ("images", "annotations", "categories")
_SCAN = json.JSONDecoder().raw_decode


class ImageEntry(NamedTuple):
    """An image of the json; height and width in pixels, None where there is no usable number."""

    image_id: int
    file_name: str
    height: int | None
    width: int | None


class Annotation(NamedTuple):
    """An annotation.

    Attributes:
      index: its place in the list.
      number: its id, of any type.
      image_id: of one of the images; None if it names none.
      class_name: of its category; None if it names none.
      bbox: as `json` gives it.
      has_mask: its segmentation is there and not empty, nor are all parts of it.
      is_crowd: it stands for several objects.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index
    number: Any
    image_id: int | None
    class_name: str | None
    bbox: Any
    has_mask: bool
    is_crowd: bool


@dataclasses.dataclass(frozen=True)
class Source:
    """A COCO json.

    Attributes:
      sha256: of the file, hex.
      members: texts of the members of the object at the top, in order; of a list, its items' texts.
      images: in order.
      annotations: in order, those that name no image or category as well.
      names: of the categories, in order.
    """

    sha256: str
    members: dict[str, str | list[str]]
    images: list[ImageEntry]
    annotations: list[Annotation]
    names: list[str]

    def by_image(self) -> dict[int, list[Annotation]]:
        """The annotations that name an image and a category, by image id in the images' order."""
        found: dict[int, list[Annotation]] = {image.image_id: [] for image in self.images}
        for annotation in self.annotations:
            if annotation.image_id is not None and annotation.class_name is not None:
                found[annotation.image_id].append(annotation)
        return found

    def text(self, annotation: Annotation) -> str:
        """An annotation as it stands in the file."""
        return self.members["annotations"][annotation.index]


def read(path: str, flag: str = "annotations") -> Source:
    """Reads a COCO json; UserError if it is none, with the flag that named it."""
    members: dict[str, Any] = {}
    values: dict[str, list[Any]] = {}
    try:
        with open(path, "rb") as file:
            stream = JsonStream(file, path, pathlib.Path(path).stat().st_size)
            for entry in stream.entries():
                _collect(members, values, entry)
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"--{flag}={path} cannot be read: {reason}.") from None
    for key in _LISTS:
        if not isinstance(members.get(key), list):
            raise UserError(f"{path} is not a COCO json of instances: it has no list {key!r}.")
    images = [_image(value, index, path) for index, value in enumerate(values["images"])]
    known = {image.image_id for image in images}
    if len(known) < len(images):
        raise UserError(f"{path}: two images have the same id; make ids unique.")
    names = _names(values["categories"], path)
    annotations = [
        fields._replace(
            image_id=fields.image_id if fields.image_id in known else None,
            class_name=names.get(fields.class_name),  # until here the category's id
        )
        for fields in values["annotations"]
    ]
    return Source(stream.sha256, members, images, annotations, list(names.values()))


def members_of(text: str) -> dict[str, str]:
    """The members of a json object and their texts as they stand there."""
    members, position = {}, text.index("{") + 1
    while (position := _skip(text, position)) < len(text) and text[position] == '"':
        key, position = _SCAN(text, position)
        position = _skip(text, _skip(text, position) + 1)  # the colon
        _, end = _SCAN(text, position)
        members[key] = text[position:end]
        position = _skip(text, end) + 1  # the comma, or the end
    return members


def exact_bbox(text: str) -> tuple[decimal.Decimal, ...]:
    """The bbox of an annotation's text, as it is written there: x, y, width, height."""
    values = json.loads(
        members_of(text)["bbox"], parse_float=decimal.Decimal, parse_int=decimal.Decimal
    )
    return tuple(values)


def _skip(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\n\r":
        position += 1
    return position


def _collect(members: dict[str, Any], values: dict[str, list[Any]], entry: Entry) -> None:
    """Keeps the texts of an entry and the values needed; the last of equal keys counts."""
    if entry.index is None:
        is_list = isinstance(entry.value, list)
        members[entry.key] = [] if is_list else entry.text
        values[entry.key] = []
        return
    members[entry.key].append(entry.text)
    if entry.key == "annotations":
        values[entry.key].append(_annotation(entry.value, entry.index))
    elif entry.key in _LISTS:
        values[entry.key].append(entry.value)


def _annotation(value: Any, index: int) -> Annotation:
    fields = value if isinstance(value, dict) else {}
    image_id, category = fields.get("image_id"), fields.get("category_id")
    return Annotation(
        index,
        fields.get("id"),
        image_id if is_id(image_id) else None,
        category if is_id(category) else None,  # type: ignore[arg-type]
        fields.get("bbox"),
        _is_mask(fields.get("segmentation")),
        fields.get("iscrowd") in (1, True),
    )


def _is_mask(segmentation: Any) -> bool:
    """Whether there is something in a segmentation; some tools write [[]] for none."""
    if isinstance(segmentation, list):
        return any(part != [] for part in segmentation)
    return bool(segmentation)


def _image(value: Any, index: int, path: str) -> ImageEntry:
    fields = value if isinstance(value, dict) else {}
    image_id, name = fields.get("id"), fields.get("file_name")
    if not is_id(image_id) or not isinstance(name, str) or not name or "\0" in name:
        raise UserError(f"{path}: images[{index}] needs an integer id and a file_name.")
    return ImageEntry(image_id, name, side_px(fields.get("height")), side_px(fields.get("width")))


def _names(values: list[Any], path: str) -> dict[Any, str]:
    names = {}
    for value in values:
        fields = value if isinstance(value, dict) else {}
        if not is_id(fields.get("id")) or not isinstance(fields.get("name"), str):
            raise UserError(f"{path}: each category needs an integer id and a name.")
        names[fields["id"]] = fields["name"].strip()
    return names
