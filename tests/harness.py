"""What tests of several packages share: the test data, and builders of small COCO data sets."""

from __future__ import annotations

import io
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
COCO_JSONS = {
    "train": ("annotations/instances_train2017.json", "train2017"),
    "val": ("annotations/instances_val2017.json", "val2017"),
}


def shared_data() -> pathlib.Path:
    """The directory of data that are not part of the repository; skips the test without them.

    It is $MASKX_TF_TEST_DATA, or `shared/data` beside or inside the repository.
    """
    candidates = [REPOSITORY.parent / "shared" / "data", REPOSITORY / "shared" / "data"]
    if named := os.environ.get("MASKX_TF_TEST_DATA"):
        candidates = [pathlib.Path(named)]
    for path in candidates:
        if path.is_dir():
            return path
    pytest.skip("test data are absent; name their directory in MASKX_TF_TEST_DATA")


def thorough(*values):
    """A case of `parametrize` that `make test` leaves out."""
    return pytest.param(*values, marks=pytest.mark.thorough)


def check_each(check: Callable[[Any], object], cases: Iterable[Any]) -> None:
    """Calls check(case) for every case, and fails once with all the cases that it fails for.

    For a rule about many files. Where a case can be read off the test's name, parametrize.
    """
    complaints, cases = [], list(cases)
    assert cases, "there are no cases"
    for case in cases:
        try:
            check(case)
        except Exception as error:
            complaints.append(f"{case}: {type(error).__name__}: {error}")
    assert not complaints, f"{len(complaints)} of {len(cases)} fail:\n" + "\n".join(complaints)


def case(name: str) -> tuple[str, str]:
    """(annotations json, image directory) of a data set as people have them."""
    root = shared_data().parent / "cases" / name
    if not root.is_dir():
        pytest.skip(f"{root} is absent")
    return str(root / "data.json"), str(root / "photos")


def coco_mini(split: str) -> tuple[str, str]:
    """(annotations json, image directory) of the small COCO excerpt; split: train or val."""
    annotations, images = COCO_JSONS[split]
    root = shared_data() / "coco_mini"
    return str(root / annotations), str(root / images)


def random_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    """uint8 RGB [height, width, 3], smooth enough for JPEG to keep it nearly unchanged."""
    coarse = np.random.default_rng(seed).uniform(0, 255, [4, 4, 3])
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR).astype(np.uint8)


def encode_image(image: np.ndarray, extension: str = ".jpg") -> bytes:
    """An RGB (or grey, without channels) image as the bytes of an image file."""
    if image.ndim == 3:
        image = np.ascontiguousarray(image[..., ::-1])
    ok, encoded = cv2.imencode(extension, image)
    assert ok
    return encoded.tobytes()


def image_file(image: np.ndarray | Image.Image, kind: str = "PNG", **options) -> bytes:
    """An image as the bytes of a file that Pillow writes with these options."""
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def polygon_of(x: float, y: float, width: float, height: float) -> list[list[float]]:
    """The segmentation of a rectangle."""
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def annotation(image_id: int, bbox: Any, **changes: Any) -> dict[str, Any]:
    """A COCO annotation of category 1 whose mask is the whole box; `changes` go on top."""
    made = {"image_id": image_id, "category_id": 1, "bbox": bbox, "iscrowd": 0} | changes
    if "segmentation" not in changes and isinstance(bbox, list):
        made["segmentation"] = polygon_of(*bbox)
        made.setdefault("area", bbox[2] * bbox[3])
    return made


def write_coco(
    directory: pathlib.Path,
    annotations: Sequence[Mapping[str, Any] | Any],
    *,
    sizes: Sequence[tuple[int, int]] = ((40, 60),),
    names: Sequence[str] = ("cat", "dog", "bird"),
    **changes: Any,
) -> tuple[str, str]:
    """Writes a COCO data set and returns (json, image directory).

    Args:
      directory: gets instances.json and images/.
      annotations: those without an id get 1, 2, ... in order.
      sizes: (height, width) of the images; their ids are 1, 2, ..., their files 1.jpg, 2.jpg, ...
      names: of the categories; their ids are 1, 2, ...
      **changes: entries of the json that replace the built ones.
    """
    images = directory / "images"
    images.mkdir(parents=True, exist_ok=True)
    entries = []
    for image_id, (height, width) in enumerate(sizes, start=1):
        encoded = encode_image(random_image(height, width, seed=image_id))
        (images / f"{image_id}.jpg").write_bytes(encoded)
        file_name = f"{image_id}.jpg"
        entry = {"id": image_id, "file_name": file_name, "height": height, "width": width}
        entries.append(entry)
    content = {
        "images": entries,
        "annotations": [
            {"id": index} | item if isinstance(item, Mapping) else item
            for index, item in enumerate(annotations, start=1)
        ],
        "categories": [{"id": index, "name": name} for index, name in enumerate(names, start=1)],
    }
    path = directory / "instances.json"
    path.write_text(json.dumps(content | changes))
    return str(path), str(images)
