"""CVAT for images 1.1: one XML file of boxes, polygons, ellipses and masks.

Shapes of one group and label are one object, if there is at most one box among them.
Source: docs.cvat.ai/docs/dataset_management/formats/format-cvat
"""

from __future__ import annotations

import collections
import math
import pathlib
import re
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np

from maskx_tf.data.coco.values import as_number, whole_number
from maskx_tf.errors import UserError
from maskx_tf.ops import masks as mask_ops
from tf_records.folders import labels as labels_lib
from tf_records.folders import shapes
from tf_records.folders.labels import Folder, LabelledImage, LabelledObject, Loss, Split
from tf_records.folders.xml_file import BadXmlError, parse, text

_ROOT = re.compile(rb"<annotations[\s>]")


class _Shape(NamedTuple):
    """A shape of the file.

    Attributes:
      place: for messages.
      bbox: [x, y, width, height]; of a polygon or mask that around it, None if it is unreadable.
      polygon: [x, y, x, y, ...]; None if it is none.
      mask: {0, 1} [h, w], its left and its top; None if it is none, empty if it is unreadable.
      is_box: it was drawn as a box.
      is_rotated: the box was drawn rotated.
    """

    place: str
    bbox: list[Any] | None = None
    polygon: list[Any] | None = None
    mask: tuple[np.ndarray, int, int] | None = None
    is_box: bool = False
    is_rotated: bool = False


def recognise(folder: pathlib.Path) -> str:
    """What says that a folder is CVAT's; empty if nothing does."""
    files = _files(folder)
    return f"{files[0].name} holds annotations of CVAT" if files else ""


def read(folder: pathlib.Path, images: str | None = None) -> Folder:
    """Reads the folder; images that CVAT calls a subset's are a split.

    Raises:
      UserError: the file is not XML, or holds videos.
    """
    path = labels_lib.only(_files(folder))
    try:
        tree = parse(labels_lib.read_bytes(path) or b"")
    except BadXmlError as error:
        raise UserError(f"{path} cannot be read as XML: {error}.") from None
    if tree.find("track") is not None:
        raise UserError(f'{path} is "CVAT for video": export "CVAT for images 1.1".')
    directory = labels_lib.images_beside(folder, images)
    splits: dict[str, Split] = {}
    labels = [text(label, "name") for label in tree.iterfind("meta//labels/label")]
    names = dict.fromkeys(name for name in labels if name)
    for number, element in enumerate(tree.iterfind("image")):
        file_name = element.get("name", "")
        place = f"image {element.get('id', number)}"
        name = labels_lib.SPLITS.get(element.get("subset", "").lower(), "")
        split = splits.setdefault(name, Split(directory, []))
        item = LabelledImage(file_name, (element.get("width"), element.get("height")))
        _read_image(element, item, place, directory)
        names |= dict.fromkeys(each.class_name for each in item.objects)
        if file_name and "\0" not in file_name:
            split.items.append(item)
        else:
            split.losses += [Loss("label_without_image", each.place) for each in item.objects]
            split.losses += item.losses
    return Folder(tuple(names), splits)


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    return [p for p in labels_lib.listed(folder, "*.xml") if _ROOT.search(labels_lib.head(p))]


def _read_image(
    element: ElementTree.Element, item: LabelledImage, place: str, images: pathlib.Path
) -> None:
    """Adds the objects and losses of an `<image>`."""
    groups: dict[tuple[str, Any], list[_Shape]] = collections.defaultdict(list)
    for number, child in enumerate(element, start=1):
        where = f"{place}: shape {number} ({child.tag})"
        label = child.get("label", "").strip()
        if child.tag not in _READERS:
            item.lose("label_shape_unsupported", where)
        elif not label:
            item.lose("label_without_class", where)
        else:
            group = whole_number(child.get("group_id")) or f"alone {number}"
            groups[label, group].append(_READERS[child.tag](child, where))
    size: tuple[int, int] | None = None
    if any(shape.mask is not None for members in groups.values() for shape in members):
        size = _size(item, images)
    for (label, _), members in groups.items():
        is_one = sum(shape.is_box for shape in members) <= 1
        for each in [members] if is_one else [[shape] for shape in members]:
            item.objects.append(_object(label, each, size))


def _size(item: LabelledImage, images: pathlib.Path) -> tuple[int, int] | None:
    """(width, height): as the file says, or else of the image."""
    assert item.size
    width, height = map(whole_number, item.size)
    if width and height and 0 < width * height <= shapes.MAX_PIXELS and width > 0:
        return width, height
    if not item.file_name or "\0" in item.file_name:
        return None
    return labels_lib.upright_size(images / item.file_name)


def _object(label: str, members: list[_Shape], size: tuple[int, int] | None) -> LabelledObject:
    """One object of the shapes of a group."""
    box = next((shape for shape in members if shape.is_box), None)
    outlined = [shape for shape in members if not shape.is_box]
    corners = [shape.bbox for shape in outlined if shape.bbox]
    if box or len(outlined) == 1:
        bbox = (box or outlined[0]).bbox
    else:
        ends = [point for x, y, w, h in corners for point in ((x, y), (x + w, y + h))]
        bbox = shapes.box_around(ends) if ends else None
    segmentation = shapes.united([_code(shape, size) for shape in outlined], size)
    return LabelledObject(
        label, bbox, segmentation or None, members[0].place, bool(box and box.is_rotated)
    )


def _code(shape: _Shape, size: tuple[int, int] | None) -> Any:
    """The run-length code of a mask in the image, or what is none."""
    if shape.mask is None:
        return shape.polygon
    region, left, top = shape.mask
    if size is None or not region.size:
        return shapes.NO_MASK
    width, height = size
    inside = region[max(-top, 0) : max(height - top, 0), max(-left, 0) : max(width - left, 0)]
    if not inside.size:
        return shapes.NO_MASK
    return mask_ops.encode_region(inside, max(top, 0), max(left, 0), height, width)


def _numbers(element: ElementTree.Element, *names: str) -> list[float] | None:
    """Attributes as numbers; None if one is none."""
    numbers = [as_number(element.get(name)) for name in names]
    finite = [number for number in numbers if number is not None and math.isfinite(number)]
    return finite if len(finite) == len(numbers) else None


def _box(element: ElementTree.Element, place: str) -> _Shape:
    names = ("xtl", "ytl", "xbr", "ybr")
    corners = _numbers(element, *names)
    if corners is None:  # COCO's rules say what is wrong
        return _Shape(place, bbox=[element.get(name) for name in names], is_box=True)
    x1, y1, x2, y2 = corners
    degrees = as_number(element.get("rotation")) or 0.0
    if not math.isfinite(degrees) or degrees % 360 == 0:
        return _Shape(place, bbox=shapes.box_of_corners(x1, y1, x2, y2), is_box=True)
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    points = [(x1 - x, y1 - y), (x2 - x, y1 - y), (x2 - x, y2 - y), (x1 - x, y2 - y)]
    bbox = shapes.box_around(shapes.turned(points, degrees, x, y))
    return _Shape(place, bbox=bbox, is_box=True, is_rotated=True)


def _polygon(element: ElementTree.Element, place: str) -> _Shape:
    words = [word for pair in element.get("points", "").split(";") for word in pair.split(",")]
    numbers = [number for word in words if (number := as_number(word)) is not None]
    if len(numbers) < len(words) or len(words) % 2 or not all(map(math.isfinite, numbers)):
        return _Shape(place, polygon=list(words))
    bbox = shapes.bounds(numbers)
    return _Shape(place, bbox=bbox, polygon=numbers)


def _ellipse(element: ElementTree.Element, place: str) -> _Shape:
    values = _numbers(element, "cx", "cy", "rx", "ry")
    degrees = as_number(element.get("rotation")) or 0.0
    if values is None or not math.isfinite(degrees):
        return _Shape(place, polygon=["no ellipse"])
    x, y, rx, ry = values
    polygon = shapes.ellipse(x, y, rx, ry, degrees)
    return _Shape(place, bbox=shapes.bounds(polygon), polygon=polygon)


def _mask(element: ElementTree.Element, place: str) -> _Shape:
    """Runs of zeros and ones in turn, row by row, in a rectangle of whole pixels."""
    sides = [whole_number(element.get(name)) for name in ("left", "top", "width", "height")]
    numbers = [number for number in sides if number is not None]
    none = (np.zeros([0, 0], np.uint8), 0, 0)
    if len(numbers) < len(sides):
        return _Shape(place, mask=none)
    left, top, width, height = numbers
    bbox: list[Any] = [left, top, width, height]
    counts = [whole_number(word) for word in element.get("rle", "").split(",")]
    runs = [run for run in counts if run is not None and 0 <= run <= shapes.MAX_PIXELS]
    fits = min(width, height) > 0 and width * height <= shapes.MAX_PIXELS
    if not fits or len(runs) < len(counts) or sum(runs) != width * height:
        return _Shape(place, bbox=bbox, mask=none)
    values = np.arange(len(runs), dtype=np.uint8) & 1
    return _Shape(place, bbox, mask=(np.repeat(values, runs).reshape(height, width), left, top))


_READERS = {"box": _box, "polygon": _polygon, "ellipse": _ellipse, "mask": _mask}
