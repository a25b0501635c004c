"""Pascal VOC's folders: an XML file of boxes for an image, perhaps masks in SegmentationObject.

The pictures in SegmentationObject have the number of the object at each of its pixels, 0 elsewhere
and 255 where it is not known. VOC's own boxes count pixels from 1, both ends included; those of
the tools that write its format are corners from 0.
Source: host.robots.ox.ac.uk/pascal/VOC/voc2012/htmldoc/devkit_doc.html
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

from maskx_tf.data.coco.values import as_number, is_text
from tf_records.folders import labels as labels_lib
from tf_records.folders import shapes, voc_masks
from tf_records.folders.labels import Folder, LabelledImage, LabelledObject, Loss, Split
from tf_records.folders.xml_file import BadXmlError, parse, text

_ROOT = re.compile(rb"<annotation[\s>]")
_OWN = re.compile(r"VOC ?20\d\d", re.IGNORECASE)
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def recognise(folder: pathlib.Path) -> str:
    """What says that a folder is in VOC's format; empty if nothing does."""
    for _, _, files in _parts(folder):
        if _ROOT.search(labels_lib.head(files[0])):
            return f"{files[0].relative_to(folder)} is an annotation of VOC"
    return ""


def read(folder: pathlib.Path, images: str | None = None) -> Folder:
    """Reads the folder.

    Raises:
      UserError: `images` is not a directory.
    """
    splits: dict[str, Split] = {}
    notes: list[str] = []
    trees: dict[pathlib.Path, ElementTree.Element | None] = {}
    for name, base, files in _parts(folder):
        directory = _images_of(base, files, images)
        splits[name] = Split(directory, [])
        for path in files:
            try:
                trees[path] = parse(labels_lib.read_bytes(path) or b"")
            except BadXmlError as error:
                trees[path] = None
                splits[name].losses.append(
                    Loss("label_file_unreadable", f"{path.relative_to(folder)}: {error}")
                )
    first_pixel, why = _first_pixel([tree for tree in trees.values() if tree is not None])
    notes.append(f"boxes are counted from pixel {first_pixel}: {why}")
    for name, base, files in _parts(folder):
        split = splits[name]
        by_stem = {path.stem: path for path in labels_lib.images_in(split.images)}
        masks = {
            path.stem: path for path in labels_lib.listed(base / "SegmentationObject", "*.png")
        }
        for path in files:
            tree = trees[path]
            if tree is not None:
                place = str(path.relative_to(folder))
                item = _image(tree, path.stem, place, split.images, by_stem, first_pixel)
                if masks.get(path.stem):
                    voc_masks.add(item, masks[path.stem], str(masks[path.stem].relative_to(folder)))
                split.items.append(item)
        labelled = {path.stem for path in files}
        if without := [stem for stem in by_stem if stem not in labelled]:
            notes.append(
                f"{name or folder}: {len(without)} images have no XML file here and are left out, "
                f"such as {by_stem[sorted(without)[0]].name}"
            )
    names = {
        each.class_name
        for split in splits.values()
        for item in split.items
        for each in item.objects
    }
    return Folder(tuple(sorted(names)), splits, tuple(notes))


def _parts(folder: pathlib.Path) -> Iterator[tuple[str, pathlib.Path, list[pathlib.Path]]]:
    """(split, base directory, XML files): by ImageSets, or directories train, valid, test."""
    bases = [folder, *sorted(folder.glob("VOC20*")), *sorted(folder.glob("VOCdevkit/VOC20*"))]
    for base in bases:
        if files := labels_lib.listed(base / "Annotations", "*.xml"):
            yield from _listed_splits(base, files)
            return
    inner = [
        (name, directory, files)
        for name, directory in labels_lib.split_directories(folder)
        if (files := labels_lib.listed(directory, "*.xml"))
    ]
    yield from inner
    if not inner and (files := labels_lib.listed(folder, "*.xml")):
        yield "", folder, files


def _listed_splits(
    base: pathlib.Path, files: list[pathlib.Path]
) -> Iterator[tuple[str, pathlib.Path, list[pathlib.Path]]]:
    for kind in ("Main", "Segmentation"):
        stems: dict[str, set[str]] = {}
        for path in labels_lib.listed(base / "ImageSets" / kind, "*.txt"):
            if path.stem in labels_lib.SPLITS:
                lines = (
                    (labels_lib.read_bytes(path) or b"").decode("utf-8-sig", "replace").split("\n")
                )
                stems[labels_lib.SPLITS[path.stem]] = {
                    line.split()[0] for line in lines if line.split()
                }
        chosen = [
            (name, base, [file for file in files if file.stem in those])
            for name, those in stems.items()
        ]
        if any(part for _, _, part in chosen):
            yield from ((name, where, part) for name, where, part in chosen if part)
            return
    yield "", base, files


def _images_of(base: pathlib.Path, files: list[pathlib.Path], given: str | None) -> pathlib.Path:
    if not given and (base / "JPEGImages").is_dir():
        return base / "JPEGImages"
    if not given and files[0].parent == base:
        return base
    return labels_lib.images_beside(base, given)


def _first_pixel(trees: list[ElementTree.Element]) -> tuple[int, str]:
    """0 or 1, and why."""
    lowest = min(
        (
            number
            for tree in trees
            for box in tree.iterfind("object/bndbox")
            for tag in ("xmin", "ymin")
            if (number := as_number(text(box, tag))) is not None
        ),
        default=0.0,
    )
    databases = {text(tree.find("source"), "database") for tree in trees}
    if not databases or not all(_OWN.search(name) for name in databases):
        return 0, "VOC's own files, which count from 1, name a VOC database as source"
    if lowest < 1:
        return 0, "a box begins before pixel 1"
    return 1, "the files name a VOC database as source"


def _image(
    tree: ElementTree.Element,
    stem: str,
    place: str,
    images: pathlib.Path,
    by_stem: dict[str, pathlib.Path],
    first_pixel: int,
) -> LabelledImage:
    file_name = text(tree, "filename")
    if stem in by_stem:
        file_name = by_stem[stem].relative_to(images).as_posix()
    elif not file_name or "\0" in file_name or not is_text(file_name):
        file_name = f"{stem}.jpg"
    size = tree.find("size")
    sides = (text(size, "width"), text(size, "height"))
    item = LabelledImage(file_name, sides if as_number(sides[0]) and as_number(sides[1]) else None)
    for number, element in enumerate(tree.iterfind("object"), start=1):
        where = f"{place}: object {number}"
        name = text(element, "name")
        if not name:
            item.lose("label_without_class", where)
            continue
        item.objects.append(
            LabelledObject(name, _bbox(element, first_pixel), _polygon(element), where)
        )
    return item


def _bbox(element: ElementTree.Element, first_pixel: int) -> Any:
    box = element.find("bndbox")
    corners = [text(box, tag) for tag in _CORNERS]
    numbers = [number for corner in corners if (number := as_number(corner)) is not None]
    if box is None or not any(corners):
        return None
    if len(numbers) < len(_CORNERS):
        return corners  # which are no numbers: COCO's rules say so
    x1, y1, x2, y2 = numbers
    return shapes.box_of_corners(x1 - first_pixel, y1 - first_pixel, x2, y2)


def _polygon(element: ElementTree.Element) -> Any:
    """The polygon that Roboflow (x1, y1, x2, ...) or LabelMe (pt) adds to an object."""
    polygon = element.find("polygon")
    if polygon is None:
        return None
    points = polygon.findall("pt")
    if points:
        values = [text(point, tag) for point in points for tag in ("x", "y")]
    else:
        tags = [f"{axis}{number}" for number in range(1, len(polygon) + 1) for axis in "xy"]
        known = {child.tag: (child.text or "").strip() for child in polygon}
        values = [known[tag] for tag in tags if tag in known]
    return [values] if values else None
