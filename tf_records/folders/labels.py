"""What every reader makes of a folder: splits of images with objects, and the COCO json of each."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import PIL.Image

from maskx_tf.data.coco.issues import Issue
from maskx_tf.data.image_formats import TRANSPOSED
from maskx_tf.errors import UserError

SUFFIXES = {
    ".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".png", ".pnm", ".ppm", ".tif", ".tiff",
    ".webp",
}  # fmt: skip
SPLITS = {"train": "train", "training": "train", "valid": "val", "val": "val", "validation": "val"}
SPLITS["test"] = SPLITS["testing"] = "test"
_ORIENTATION = 0x0112


class LabelledObject(NamedTuple):
    """An object of a label file; the rules of COCO jsons apply to it later.

    Attributes:
      class_name: its class.
      bbox: [x, y, width, height] in pixels; None if only the mask is labelled.
      segmentation: polygons or a run-length code as in COCO's jsons; None if it has no mask.
      place: the file and the line or shape in it, for messages.
      is_rotated: the tool drew the box rotated; `bbox` is the upright one around it.
    """

    class_name: str
    bbox: Any
    segmentation: Any
    place: str
    is_rotated: bool = False


class Loss(NamedTuple):
    """What a label file has that is no object: the reason, a key of `issues.REASONS`, and where."""

    reason: str
    place: str


@dataclasses.dataclass
class LabelledImage:
    """An image and what its labels say.

    Attributes:
      file_name: under the split's directory of images.
      size: (width, height) that the labels were made for; None if they do not tell.
      objects: in the order of the labels.
      losses: of these labels.
    """

    file_name: str
    size: tuple[Any, Any] | None = None
    objects: list[LabelledObject] = dataclasses.field(default_factory=list)
    losses: list[Loss] = dataclasses.field(default_factory=list)

    def lose(self, reason: str, place: str) -> None:
        """Lists a loss."""
        self.losses.append(Loss(reason, place))


@dataclasses.dataclass
class Split:
    """A part of a folder.

    Attributes:
      images: the directory that file names start from.
      items: its images.
      losses: of no image in particular.
    """

    images: pathlib.Path
    items: list[LabelledImage]
    losses: list[Loss] = dataclasses.field(default_factory=list)


class Folder(NamedTuple):
    """A folder as it was read.

    Attributes:
      names: of the classes, in order.
      splits: by name ("train", "val", "test"); "" if the folder is not split.
      notes: what was left out or had to be chosen, a line each.
    """

    names: tuple[str, ...]
    splits: dict[str, Split]
    notes: tuple[str, ...] = ()


def to_coco(split: Split, names: Sequence[str]) -> tuple[dict[str, Any], list[Issue]]:
    """A split as a COCO json, images by file name, and its losses as issues.

    Images are numbered by their names if these are numbers, as YOLO does it in its results, else
    1, 2, 3, …

    Its member "losses" has the place of each loss under the id that the issue names; annotations
    have theirs as "place".
    """
    items = sorted(split.items, key=lambda item: item.file_name)
    image_ids = _numbers_in_names(items) or range(1, len(items) + 1)
    numbers = {name: number for number, name in enumerate(names, start=1)}
    annotations: list[dict[str, Any]] = []
    images = []
    for image_id, item in zip(image_ids, items, strict=True):
        image: dict[str, Any] = {"id": image_id, "file_name": item.file_name}
        if item.size is not None:
            image["width"], image["height"] = item.size
        images.append(image)
        for each in item.objects:
            annotation = {
                "id": len(annotations) + 1,
                "image_id": image_id,
                "category_id": numbers[each.class_name],
                "bbox": each.bbox,
                "segmentation": [] if each.segmentation is None else each.segmentation,
                "place": each.place,
            }
            if each.is_rotated:
                annotation["attributes"] = {"rotation": 1}
            annotations.append(annotation)
    lost: list[tuple[int | None, Loss]] = [
        (image_id, loss)
        for image_id, item in zip(image_ids, items, strict=True)
        for loss in item.losses
    ]
    lost += [(None, loss) for loss in split.losses]
    issues, losses = [], []
    for number, (of_image, loss) in enumerate(lost, start=len(annotations) + 1):
        issues.append(Issue(loss.reason, of_image, number))
        losses.append({"id": number, "image_id": of_image, **loss._asdict()})
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for name, number in numbers.items()],
        "losses": losses,
    }
    return content, issues


def _numbers_in_names(items: Sequence[LabelledImage]) -> list[int]:
    """The numbers that the images are named by; none if a name is no number, or two are equal."""
    stems = [pathlib.PurePosixPath(item.file_name).stem for item in items]
    numbers = [int(stem) for stem in stems if stem.isascii() and stem.isdigit() and len(stem) < 19]
    return numbers if len(set(numbers)) == len(items) else []


def images_in(directory: pathlib.Path) -> list[pathlib.Path]:
    """The image files of a directory and those under it, sorted; by their names' ends."""
    paths = (
        pathlib.Path(root, name)
        for root, _, names in os.walk(directory)
        for name in names
        if not name.startswith(".")
    )
    return sorted(path for path in paths if path.suffix.lower() in SUFFIXES)


def upright_size(path: pathlib.Path) -> tuple[int, int] | None:
    """(width, height) of an image as a person sees it; None if the file cannot be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with PIL.Image.open(path) as image:
                width, height = image.size
                is_on_its_side = image.getexif().get(_ORIENTATION) in TRANSPOSED
    except Exception:  # Pillow raises a dozen types; who writes records says what is wrong
        return None
    return (height, width) if is_on_its_side else (width, height)


def read_bytes(path: pathlib.Path) -> bytes | None:
    """The content of a file; None if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError:
        return None


def head(path: pathlib.Path, length: int = 4096) -> bytes:
    """How a file begins, without zero bytes, as those of UTF-16; empty if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(length).replace(b"\0", b"")
    except OSError:
        return b""


def listed(directory: pathlib.Path, pattern: str) -> list[pathlib.Path]:
    """The files of a directory that fit a pattern, sorted."""
    return sorted(path for path in directory.glob(pattern) if path.is_file())


def only(files: Sequence[pathlib.Path]) -> pathlib.Path:
    """The one file of labels; UserError if there are several."""
    if len(files) > 1:
        listed = ", ".join(path.name for path in files)
        raise UserError(f"{files[0].parent} holds {listed}: keep the one to read in it.")
    return files[0]


def split_directories(folder: pathlib.Path) -> Iterator[tuple[str, pathlib.Path]]:
    """The directories of a folder that are named as splits are: (split, directory)."""
    names = {path.name.lower(): path for path in folder.iterdir() if path.is_dir()}
    for name, path in sorted(names.items()):
        if name in SPLITS:
            yield SPLITS[name], path


def images_beside(folder: pathlib.Path, given: str | None) -> pathlib.Path:
    """The directory of images: the one given, else `images` of the folder, else itself."""
    if given:
        if not os.path.isdir(given):
            raise UserError(f"--images={given} is not a directory.")
        return pathlib.Path(given)
    return folder / "images" if (folder / "images").is_dir() else folder
