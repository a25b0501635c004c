"""YOLO's folders, Roboflow's too: data.yaml, and a text file of boxes and polygons for an image.

A line is a class number and, as shares of width and height, a box (centre x, centre y, width,
height; perhaps a confidence) or a polygon (x, y, x, y, x, y, ...). Both may be in one file. An
image without a file, or with an empty one, has no objects.
Source: docs.ultralytics.com/datasets/detect and /segment.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator
from typing import Any

import yaml

from maskx_tf.data.coco.values import as_number, short, whole_number
from maskx_tf.errors import UserError
from tf_records.folders import labels as labels_lib
from tf_records.folders import shapes
from tf_records.folders.labels import Folder, LabelledImage, LabelledObject, Loss, Split

_YAMLS = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_NAME_LISTS = ("classes.txt", "obj.names", "labels/classes.txt")  # of LabelImg and Darknet
_LISTS = ("classes.txt", "train.txt", "val.txt", "valid.txt", "test.txt")  # no labels
_KEYS = ("train", "val", "valid", "test")
_BOX, _BOX_AND_SCORE = 4, 5  # numbers after the class
_FEWEST_POINTS = 6
_FARTHEST = 2.0  # image sides; labels beyond are in pixels
_CORNERS = 8


def recognise(folder: pathlib.Path) -> str:
    """What says that a folder is YOLO's; empty if nothing does."""
    if path := _yaml_of(folder):
        return f"{path.name} names classes and images"
    for name in _NAME_LISTS:
        if (folder / name).is_file() and any((folder / "images").glob("*")):
            return f"{name} and images/ beside labels/*.txt"
    return ""


def read(folder: pathlib.Path, images: str | None = None) -> Folder:
    """Reads the folder.

    Raises:
      UserError: there are no names of classes, no images, or no label file for any of them.
    """
    if images:
        raise UserError("--images= does not go with YOLO folders: data.yaml says where images are.")
    path = _yaml_of(folder)
    content = _load(path) if path else {}
    names = _names(content["names"], path) if path else _listed_names(folder)
    is_pose = "kpt_shape" in content
    splits: dict[str, Split] = {}
    notes = []
    used: dict[str, set[pathlib.Path]] = {}
    for name, entry in _entries(folder, path, content):
        files = [file for place in entry for file in _images(place, folder)]
        if not files:
            notes.append(f"{name}: there are no images at {', '.join(map(str, entry))}: left out")
            continue
        label_files = {file: _label_file(file) for file in files}
        if not any(label_files.values()):
            notes.append(f"{name}: none of {len(files)} images has a label file: left out")
            continue
        root = entry[0] if len(entry) == 1 and os.path.isdir(entry[0]) else _common(files)
        items = [
            _image(file, root, label_files[file], names, folder, is_pose)
            for file in dict.fromkeys(files)
        ]
        used[name] = {path for path in label_files.values() if path}
        splits[name] = Split(root, items)
    if not splits:
        raise UserError(f"{folder} has no images with labels: {'; '.join(notes) or 'none at all'}.")
    seen = set().union(*used.values())
    for name, split in splits.items():
        split.losses += _without_image(used[name], seen, folder)
    return Folder(tuple(names.values()), splits, (*notes, *_overlap(splits), *_oriented(splits)))


def _yaml_of(folder: pathlib.Path) -> pathlib.Path | None:
    """The file that describes the folder: one of the usual names, or the only one with names."""
    for name in _YAMLS:
        if (folder / name).is_file():
            return folder / name
    others = [*labels_lib.listed(folder, "*.yaml"), *labels_lib.listed(folder, "*.yml")]
    fitting = [path for path in others if b"names" in (labels_lib.read_bytes(path) or b"")]
    return fitting[0] if len(fitting) == 1 else None


def _load(path: pathlib.Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load((labels_lib.read_bytes(path) or b"").decode("utf-8-sig"))
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError, TypeError) as error:
        text = " ".join(str(error).split())[:200]
        raise UserError(f"{path} cannot be read as YAML: {text}.") from None
    if not isinstance(content, dict) or "names" not in content:
        raise UserError(f"{path} has no names: list those of the classes 0, 1, ... in order.")
    return content


def _names(value: Any, path: pathlib.Path | None) -> dict[int, str]:
    """Class number -> name."""
    entries = dict(enumerate(value)) if isinstance(value, list) else value
    if not isinstance(entries, dict) or not entries:
        raise UserError(f"{path}: names must be a list of the classes' names.")
    names: dict[int, str] = {}
    for key, name in entries.items():
        number = whole_number(key) if isinstance(key, (int, str)) else None
        if number is None or isinstance(name, (list, dict, set)) or not str(name).strip():
            raise UserError(f"{path}: names must give each class a number and a name.")
        names[number] = str(name).strip()  # a class named 1 or yes is no text in YAML
    names = dict(sorted(names.items()))
    _check_unique(names, path)
    return names


def _check_unique(names: dict[int, str], path: pathlib.Path | None) -> None:
    seen: dict[str, int] = {}
    for number, name in names.items():
        if name in seen:
            raise UserError(
                f"{path}: the classes {seen[name]} and {number} are both named {short(name)}; give "
                "them different names."
            )
        seen[name] = number


def _listed_names(folder: pathlib.Path) -> dict[int, str]:
    path = next(folder / name for name in _NAME_LISTS if (folder / name).is_file())
    text = (labels_lib.read_bytes(path) or b"").decode("utf-8-sig", "replace")
    return _names([line.strip() for line in text.splitlines() if line.strip()], path)


def _entries(
    folder: pathlib.Path, path: pathlib.Path | None, content: dict[str, Any]
) -> Iterator[tuple[str, list[pathlib.Path]]]:
    """The splits and the directories or lists of their images."""
    if path is None:
        inner = list(labels_lib.split_directories(folder / "images"))
        yield from ((name, [directory]) for name, directory in inner)
        if not inner:
            yield "", [folder / "images"]
        return
    root = content.get("path")
    roots = [folder / root, folder] if isinstance(root, str) and "\0" not in root else [folder]
    given = [key for key in _KEYS if content.get(key)]
    if not given:
        raise UserError(f"{path} names no images: it needs train: and val:.")
    for key in given:
        value = content[key]
        values = value if isinstance(value, list) else [value]
        if not all(isinstance(one, str) and one and "\0" not in one for one in values):
            raise UserError(f"{path}: {key}: must be a directory, a list of images, or several.")
        yield labels_lib.SPLITS[key], [_place(one, roots) for one in values]


def _place(value: str, roots: list[pathlib.Path]) -> pathlib.Path:
    """Where a path of data.yaml is: Roboflow writes ../train/images for what is beside it."""
    parts = [part for part in pathlib.PurePosixPath(value).parts if part not in ("..", ".")]
    ends = [str(pathlib.PurePosixPath(*parts[start:])) for start in range(len(parts))]
    for candidate in (value, *ends):
        for root in roots:
            if os.path.exists(root / candidate):
                return root / candidate
    return roots[0] / value


def _images(place: pathlib.Path, folder: pathlib.Path) -> list[pathlib.Path]:
    """The image files of a directory, or of a text file that lists them."""
    if os.path.isdir(place):
        return labels_lib.images_in(place)
    text = (labels_lib.read_bytes(place) or b"").decode("utf-8-sig", "replace")
    lines = [line.strip() for line in text.splitlines()]
    return sorted(
        _place(line, [place.parent, folder]) for line in lines if line and "\0" not in line
    )


def _common(files: list[pathlib.Path]) -> pathlib.Path:
    return pathlib.Path(os.path.commonpath([os.path.abspath(file.parent) for file in files]))


def _label_file(image: pathlib.Path) -> pathlib.Path | None:
    """labels/….txt for images/….jpg, or the text file beside it."""
    parts = list(image.parts)
    places = [len(parts) - 1 - i for i, part in enumerate(reversed(parts)) if part == "images"]
    candidates = [image.with_suffix(".txt")]
    if places:
        parts[places[0]] = "labels"
        candidates.insert(0, pathlib.Path(*parts).with_suffix(".txt"))
    return next((path for path in candidates if os.path.isfile(path)), None)


def _image(
    file: pathlib.Path,
    root: pathlib.Path,
    label_file: pathlib.Path | None,
    names: dict[int, str],
    folder: pathlib.Path,
    is_pose: bool,
) -> LabelledImage:
    name = os.path.relpath(os.path.abspath(file), os.path.abspath(root))
    item = LabelledImage(name, labels_lib.upright_size(file))
    if label_file is None:
        return item
    width, height = item.size or (1, 1)  # an unreadable image is dropped with its objects
    for place, line in _lines(label_file, folder):
        numbers = [as_number(word) for word in line.split()]
        values = [number for number in numbers if number is not None]
        class_id = whole_number(values[0]) if values else None
        if len(values) < len(numbers) or class_id is None:
            item.lose("label_malformed", place)
            continue
        if class_id not in names:
            item.lose("label_class_unknown", place)
            continue
        values = values[1 : 1 + _BOX] if is_pose else values[1:]
        if any(abs(value) > _FARTHEST for value in values):  # infinity too
            item.lose("label_not_normalised", place)
        elif len(values) in (_BOX, _BOX_AND_SCORE):
            x, y, w, h = values[:_BOX]
            bbox = [
                shapes.pixels(x - w / 2, width), shapes.pixels(y - h / 2, height),
                shapes.pixels(w, width), shapes.pixels(h, height),
            ]  # fmt: skip
            item.objects.append(LabelledObject(names[class_id], bbox, None, place))
        elif len(values) >= _FEWEST_POINTS and len(values) % 2 == 0:
            sides = (width, height)
            points = [shapes.pixels(v, sides[i % 2]) for i, v in enumerate(values)]
            bbox = shapes.bounds(points)
            item.objects.append(LabelledObject(names[class_id], bbox, [points], place))
        else:
            item.lose("label_malformed", place)
    return item


def _lines(path: pathlib.Path, folder: pathlib.Path) -> Iterator[tuple[str, str]]:
    """The lines of a label file that are not blank, each with its place."""
    name = os.path.relpath(path, folder)
    text = (labels_lib.read_bytes(path) or b"").decode("utf-8-sig", "replace")
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield f"{name}:{number}", line


def _without_image(
    used: set[pathlib.Path], seen: set[pathlib.Path], folder: pathlib.Path
) -> list[Loss]:
    """The labels beside a split's own that are of no image; `seen` are those of any split."""
    beside = {
        path for directory in {path.parent for path in used} for path in directory.glob("*.txt")
    }
    orphans = sorted(path for path in beside - seen if path.name not in _LISTS)
    seen.update(orphans)
    return [
        Loss("label_without_image", place) for path in orphans for place, _ in _lines(path, folder)
    ]


def _overlap(splits: dict[str, Split]) -> Iterator[str]:
    """A note if a split has images of the first one."""
    files = {
        name: {os.path.realpath(split.images / item.file_name) for item in split.items}
        for name, split in splits.items()
    }
    first, *others = files
    for name in others:
        if shared := files[first] & files[name]:
            yield f"{first} and {name} share {len(shared)} images: results on {name} mislead"


def _oriented(splits: dict[str, Split]) -> Iterator[str]:
    """A note if every polygon has four corners, as rotated boxes have."""
    polygons = [
        each.segmentation[0]
        for split in splits.values()
        for item in split.items
        for each in item.objects
        if each.segmentation
    ]
    if polygons and all(len(polygon) == _CORNERS for polygon in polygons):
        yield (
            f"each of the {len(polygons)} polygons has four corners: if they are rotated boxes "
            "(OBB), they are no masks; export boxes"
        )
