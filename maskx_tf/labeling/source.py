"""The COCO json to be labelled. Its text is kept, so that only what is meant to changes."""

from __future__ import annotations

import dataclasses
import decimal
import json
import pathlib
from typing import Any, NamedTuple

from maskx_tf.data.coco import instances, issues
from maskx_tf.data.coco.images import locate, read_size
from maskx_tf.data.coco.instances import ImageItem
from maskx_tf.data.coco.issues import Issue
from maskx_tf.data.coco.objects import IGNORED, CocoObject, read_objects
from maskx_tf.data.image_formats import BadImageError

_SCAN = json.JSONDecoder().raw_decode
_MASK_SIZE = 112  # pixels, of what is looked at for whether a mask has any in its box
# What can be wrong besides `issues.REASONS`.
_PROBLEMS = {
    "class_unknown": "the model does not know the class",
    "crowd_left_out": "the format has no crowds: it is left out",
    "file_name_not_in_xml": "XML has no way to write a character of its file name: it is left out",
    "image_size_unknown": "neither json nor file has its size: it is left out with its objects",
}


class ImageEntry(NamedTuple):
    """An image of the json.

    Attributes:
      image_id: its id.
      file_name: as in the json.
      path: of its file.
      size: (height, width) of its file; of the json where there is no file; None where unknown.
      said_size: (height, width) in the json, None where it gives no usable number.
    """

    image_id: int
    file_name: str
    path: pathlib.Path
    size: tuple[int, int] | None
    said_size: tuple[int | None, int | None]


class Annotation(NamedTuple):
    """An annotation that is an object.

    Attributes:
      place: in the list.
      image_id: of its image.
      class_name: of its category.
      box_yxyx: 4 numbers, pixels of the file, clipped to it.
      bbox: x, y, width, height in pixels, as annotated or of the mask.
      has_mask: it has a mask that can be decoded, with a pixel in its box.
      is_crowd: it stands for several objects.
    """

    place: int
    image_id: int
    class_name: str
    box_yxyx: tuple[float, ...]
    bbox: tuple[float, ...]
    has_mask: bool
    is_crowd: bool


class Problem(NamedTuple):
    """Something wrong with an annotation, or with a whole image.

    `number` is the annotation's id, `reason` a key of `meaning`.
    """

    reason: str
    image_id: int | None
    number: Any = None
    class_name: str | None = None

    @property
    def meaning(self) -> str:
        """The reason in words."""
        known = issues.REASONS.get(self.reason)
        return known.meaning if known else _PROBLEMS[self.reason]


@dataclasses.dataclass(frozen=True)
class Source:
    """A COCO json.

    Attributes:
      sha256: of the file, hex.
      members: texts of the members of the object at the top, in order; of a list, its items'
        texts, but for the annotations.
      texts: of the annotations, in order.
      images: in order.
      annotations: those that are objects, by place.
      names: of the categories, in order.
      problems: what is wrong with the json.
    """

    sha256: str
    members: dict[str, str | list[str]]
    texts: list[bytes]
    images: list[ImageEntry]
    annotations: dict[int, Annotation]
    names: tuple[str, ...]
    problems: list[Problem]

    def by_image(self) -> dict[int, list[Annotation]]:
        """The annotations by image id, in the images' order."""
        found: dict[int, list[Annotation]] = {image.image_id: [] for image in self.images}
        for annotation in self.annotations.values():
            found[annotation.image_id].append(annotation)
        return found

    def text(self, place: int) -> str:
        """An annotation as it stands in the file."""
        return self.texts[place].decode("utf-8", "surrogatepass")

    def number(self, place: int) -> Any:
        """The id of an annotation, of any type, as it stands in the file."""
        return json.loads(self.texts[place]).get("id")

    def object_of(self, annotation: Annotation, entry: ImageEntry) -> CocoObject:
        """An annotation with its mask."""
        assert entry.size is not None
        item = instances.AnnotationItem(0, annotation.place, 0, self.texts[annotation.place])
        image = ImageItem(entry.image_id, entry.file_name, *entry.said_size, [item])
        ((_, item_object),), _ = read_objects(image, entry.size)
        return item_object


def read(path: str, images: pathlib.Path, crowds: str = IGNORED) -> Source:
    """Reads a COCO json, and the sizes of its images.

    Args:
      path: of the json.
      images: directory that its file names start from.
      crowds: what iscrowd means, one of `objects.CROWDS`.

    Raises:
      UserError: it is no COCO json.
    """
    content = instances.read(path, with_texts=True)
    vocabulary = content.vocabulary
    names = dict(zip(vocabulary.external_ids, vocabulary.names, strict=True))
    items, renamed = locate(content.items, images)
    problems = [Problem(i.reason, i.image_id, i.annotation_id) for i in content.issues + renamed]
    entries, annotations = [], {}
    for item in items:
        entry, changes = _entry(item)
        entries.append(entry)
        problems += [
            Problem(change, item.image_id) for change in changes if change != issues.STORED_AS_PNG
        ]
        if entry.size is None:
            continue
        objects, found = read_objects(item, entry.size, crowds)
        classes = {a.number: names[a.category_id] for a in item.annotations}
        for annotation, item_object in objects:
            mask, reasons = item_object.mask(_MASK_SIZE)
            found += [Issue(reason, item.image_id, annotation.number) for reason in reasons]
            annotations[annotation.place] = Annotation(
                annotation.place,
                item.image_id,
                names[annotation.category_id],
                tuple(item_object.box_yxyx.tolist()),
                item_object.bbox,
                mask is not None,
                item_object.is_crowd,
            )
        problems += [_problem(issue, classes) for issue in found]
    return Source(
        content.sha256,
        content.members,
        content.texts,
        entries,
        dict(sorted(annotations.items())),
        vocabulary.names,
        problems,
    )


def _problem(issue: Issue, classes: dict[int, str]) -> Problem:
    number = issue.annotation_id
    class_name = None if number is None else classes.get(number)
    return Problem(issue.reason, issue.image_id, number, class_name)


def _entry(item: ImageItem) -> tuple[ImageEntry, tuple[str, ...]]:
    """The image, and what is odd of its file."""
    path = pathlib.Path(item.path)
    size: tuple[int, int] | None = None
    changes: tuple[str, ...] = ()
    try:
        size, changes = read_size(path, item.size)
    except BadImageError:  # the labeller lists it if it has something to do there
        if item.height and item.width:
            size = (item.height, item.width)
    return ImageEntry(item.image_id, item.file_name, path, size, item.size), changes


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


def exact_bbox(text: str, bbox: tuple[float, ...]) -> tuple[decimal.Decimal, ...]:
    """The bbox of an annotation's text as it is written there, if it is `bbox`; else that one."""
    written = json.loads(
        members_of(text).get("bbox", "null"),
        parse_float=decimal.Decimal,
        parse_int=decimal.Decimal,
    )
    is_exact = isinstance(written, list) and all(isinstance(v, decimal.Decimal) for v in written)
    if is_exact and tuple(map(float, written)) == bbox:
        return tuple(written)
    return tuple(decimal.Decimal(repr(value)) for value in bbox)


def _skip(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\n\r":
        position += 1
    return position
