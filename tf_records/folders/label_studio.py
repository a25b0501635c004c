"""Label Studio's json: rectangles, polygons, ellipses and brush masks of tasks.

A polygon or brush mask belongs to the rectangle that is its parent (parentID), or that has the same
annotation_id in its meta, as `maskx label` writes it; any other one is an object of its own. Of a
task that several people labelled, the annotation marked as ground truth counts, else the last one.
Source: labelstud.io/guide/export, /guide/task_format
"""

from __future__ import annotations

import json
import math
import os
import pathlib
import re
from collections.abc import Iterable
from typing import Any

from maskx_tf.data.coco import images as images_lib
from maskx_tf.data.coco.values import as_number, is_text, short, whole_number
from maskx_tf.errors import UserError
from tf_records.folders import brush, shapes
from tf_records.folders import labels as labels_lib
from tf_records.folders.labels import Folder, LabelledImage, LabelledObject, Loss, Split

_LIST = re.compile(rb"\[\s*[{\]]")
_LABELS = ("rectanglelabels", "polygonlabels", "brushlabels", "ellipselabels", "labels")


def recognise(folder: pathlib.Path) -> str:
    """What says that a folder is Label Studio's; empty if nothing does."""
    files = _files(folder)
    return f"{files[0].name} is a list of tasks" if files else ""


def read(folder: pathlib.Path, images: str | None = None) -> Folder:
    """Reads the folder.

    Raises:
      UserError: the file is no json, or no list of tasks.
    """
    path = labels_lib.only(_files(folder))
    try:
        tasks = json.loads((labels_lib.read_bytes(path) or b"").decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        text = " ".join(str(error).split())[:200]
        raise UserError(f"{path} cannot be read as json: {text}.") from None
    if not isinstance(tasks, list):
        raise UserError(f"{path} is no list of tasks: export JSON from Label Studio.")
    split = Split(labels_lib.images_beside(folder, images), [])
    names: dict[str, None] = {}
    unlabelled = 0
    for number, task in enumerate(tasks, start=1):
        place = f"task {short(task.get('id', number)) if isinstance(task, dict) else number}"
        annotation = _annotation(task, place, split.losses)
        file_name = _on_disk(split.images, _file_name(task))
        if annotation is None:
            unlabelled += 1
            continue
        item = LabelledImage(file_name)
        _read_regions(annotation, item, place)
        names |= dict.fromkeys(each.class_name for each in item.objects)
        if file_name:
            split.items.append(item)
        else:
            split.losses += [Loss("label_without_image", each.place) for each in item.objects]
            split.losses += item.losses
    note = (
        f"{unlabelled} of {len(tasks)} tasks have no annotation that a person submitted: left out"
    )
    return Folder(tuple(sorted(names)), {"": split}, (note,) if unlabelled else ())


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    heads = {
        path: labels_lib.head(path).removeprefix(b"\xef\xbb\xbf").lstrip()
        for path in labels_lib.listed(folder, "*.json")
    }
    return [path for path, head in heads.items() if _LIST.match(head)]


def _file_name(task: Any) -> str:
    """The image of a task: its "image", or its only text that is no other thing; empty if none."""
    data = task.get("data") if isinstance(task, dict) else None
    if not isinstance(data, dict):
        return ""
    texts = [value for value in data.values() if isinstance(value, str) and value]
    named = data.get("image")
    name = named if isinstance(named, str) else texts[0] if len(texts) == 1 else ""
    return name if "\0" not in name and is_text(name) else ""


def _on_disk(images: pathlib.Path, name: str) -> str:
    """The name of the file under `images`: Label Studio has a URL, and a prefix for uploads."""
    if not name or os.path.isfile(images / name.lstrip("/")):
        return name.lstrip("/")
    path = images_lib.other_spelling(images, name)
    return path.relative_to(images).as_posix() if path else name


def _annotation(task: Any, place: str, losses: list[Loss]) -> Any:
    """The annotation of a task that counts; None if a person submitted none."""
    values = task.get("annotations") if isinstance(task, dict) else None
    entries = values if isinstance(values, list) else []
    made = [
        entry for entry in entries if isinstance(entry, dict) and not entry.get("was_cancelled")
    ]
    if not made:
        return None
    truths = [entry for entry in made if entry.get("ground_truth") is True]
    chosen = (truths or made)[-1]
    for entry in made:
        if entry is not chosen:
            losses += [Loss("label_of_other_annotator", place) for _ in _regions(entry)]
    return chosen


def _regions(annotation: dict[str, Any]) -> list[Any]:
    """What an annotation has that may be objects; relations and answers about the image are not."""
    result = annotation.get("result")
    regions = result if isinstance(result, list) else []
    return [one for one in regions if not _is_no_region(one)]


def _is_no_region(region: Any) -> bool:
    if not isinstance(region, dict):
        return False
    is_relation = region.get("type") == "relation"
    return is_relation or region.get("type") in ("choices", "textarea", "rating", "number")


def _read_regions(annotation: dict[str, Any], item: LabelledImage, place: str) -> None:
    """Adds the objects and losses of an annotation."""
    regions = _regions(annotation)
    labelled = {
        _hashable(region.get("id"))
        for region in regions
        if isinstance(region, dict) and _class_name(region.get("value"))
    }
    places: dict[Any, int] = {}  # of a rectangle's id, and of its annotation_id -> its object
    outlines: list[tuple[dict[str, Any], LabelledObject]] = []
    for number, region in enumerate(regions, start=1):
        where = f"{place}: region {number}"
        value = region.get("value") if isinstance(region, dict) else None
        if not isinstance(value, dict):
            item.lose("label_malformed", where)
            continue
        name = _class_name(value)
        if not name:
            # `Rectangle` and `Labels` write one region twice, once without its class.
            is_double = not value.keys() & set(_LABELS) and region.get("id") is not None
            if not is_double or _hashable(region["id"]) not in labelled:
                item.lose("label_without_class", where)
            continue
        if whole_number(region.get("image_rotation") or 0) != 0:
            item.lose("label_in_rotated_view", where)
            continue
        size = _size(region)
        item.size = item.size or size
        each = _object(name, value, size, where)
        if each is None:
            item.lose("label_shape_unsupported", where)
        elif each.segmentation is None:
            for key in _keys(region, "id"):
                places.setdefault(key, len(item.objects))
            item.objects.append(each)
        else:
            outlines.append((region, each))
    _add_outlines(item, outlines, places)


def _add_outlines(
    item: LabelledImage,
    outlines: list[tuple[dict[str, Any], LabelledObject]],
    places: dict[Any, int],
) -> None:
    """Adds polygons and masks: to their rectangles, or as objects of their own."""
    parts: dict[int, list[Any]] = {}
    for region, each in outlines:
        owner = next((places[key] for key in _keys(region, "parentID") if key in places), None)
        if owner is None or item.objects[owner].class_name != each.class_name:
            item.objects.append(each)
            continue
        is_list = isinstance(each.segmentation, list)
        parts.setdefault(owner, []).extend(each.segmentation if is_list else [each.segmentation])
    for owner, segmentations in parts.items():
        mask = shapes.united(segmentations, item.size)
        item.objects[owner] = item.objects[owner]._replace(segmentation=mask)


def _hashable(value: Any) -> Any:
    return value if isinstance(value, (str, int)) else None


def _keys(region: dict[str, Any], name: str) -> Iterable[tuple[str, Any]]:
    """What a region can be told by: an id, and the annotation_id of its meta."""
    if (number := _hashable(region.get(name))) is not None:
        yield "id", number
    meta = region.get("meta")
    if isinstance(meta, dict) and (number := _hashable(meta.get("annotation_id"))) is not None:
        yield "annotation", number


def _class_name(value: Any) -> str:
    """The one label of a region; empty if it has none or several."""
    lists = [value.get(key) for key in _LABELS] if isinstance(value, dict) else []
    names = [name for each in lists if isinstance(each, list) for name in each]
    if len(names) == 1 and isinstance(names[0], str) and is_text(names[0]):
        return names[0].strip()
    return ""


def _size(region: dict[str, Any]) -> tuple[int, int] | None:
    width, height = (whole_number(region.get(f"original_{side}")) for side in ("width", "height"))
    if not width or not height or width < 0 or not 0 < width * height <= shapes.MAX_PIXELS:
        return None
    return width, height


def _object(
    name: str, value: dict[str, Any], size: tuple[int, int] | None, place: str
) -> LabelledObject | None:
    """The object of a region; None if its shape is none that is read, or its size unknown."""
    if size is None:
        return None
    if "rle" in value:
        return LabelledObject(name, None, brush.segmentation(value["rle"], size), place)
    if "points" in value:
        points = value["points"] if isinstance(value["points"], list) else [None]
        polygon = [
            _scaled(number, size[axis])
            for point in points
            for axis, number in enumerate(point[:2] if isinstance(point, list) else [None])
        ]
        return LabelledObject(name, _around(polygon), [polygon], place)
    x, y = _scaled(value.get("x"), size[0]), _scaled(value.get("y"), size[1])
    degrees = as_number(value.get("rotation")) or 0.0
    if "radiusX" in value:
        rx, ry = _scaled(value["radiusX"], size[0]), _scaled(value.get("radiusY"), size[1])
        return LabelledObject(name, *_ellipse(x, y, rx, ry, degrees), place)
    if not {"x", "y", "width", "height"} <= value.keys():
        return None
    bbox = [x, y, _scaled(value.get("width"), size[0]), _scaled(value.get("height"), size[1])]
    if not math.isfinite(degrees) or degrees % 360 == 0 or not shapes.are_finite(bbox):
        return LabelledObject(name, bbox, None, place)
    corners = [(0.0, 0.0), (bbox[2], 0.0), (bbox[2], bbox[3]), (0.0, bbox[3])]
    upright = shapes.box_around(shapes.turned(corners, degrees, x, y))
    return LabelledObject(name, upright, None, place, is_rotated=True)


def _scaled(value: Any, side: int) -> Any:
    """Percent of a side in pixels; what is no number stays, for COCO's rules to find."""
    number = as_number(value)
    return value if number is None else shapes.pixels(number / 100, side)


def _around(polygon: list[Any]) -> list[float] | None:
    if len(polygon) < 2 or len(polygon) % 2 or not shapes.are_finite(polygon):
        return None
    return shapes.bounds(polygon)


def _ellipse(x: Any, y: Any, rx: Any, ry: Any, degrees: float) -> tuple[Any, Any]:
    """Box and polygon."""
    if not shapes.are_finite([x, y, rx, ry, degrees]):
        return None, shapes.NO_MASK
    polygon = shapes.ellipse(x, y, rx, ry, degrees)
    return _around(polygon), [polygon]
