"""The embedded data set Shapes: drawn, and written as images, COCO json and records.

72 classes = 12 shapes x 6 textures ("striped star"). Most objects come as pairs, one torn off on
top of another of the same shape, with nearly the same box: which is meant only the class
says. Masks are the visible pixels; boxes, unlike COCO's, are those of the whole silhouette, so that
occlusion cannot tell the two of a pair apart.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
from typing import Any, NamedTuple

import cv2
import numpy as np
import tqdm
from pycocotools import mask as mask_lib

from maskx_tf.data.classes import Vocabulary
from maskx_tf.data.records.manifest import Manifest
from maskx_tf.errors import UserError
from maskx_tf.system.files import write_atomically
from tf_records import coco, pool
from tf_records.grabcut_masks import ALL, ANNOTATED
from tf_records.output import Output
from tf_records.shapes import words
from tf_records.shapes.objects import CLASS_NAMES, SceneObject, SceneOptions, set_a_names
from tf_records.shapes.scene import make_scene

WORD_VECTORS = "word_vectors.txt"  # written last
_JPEG_OPTIONS = [
    cv2.IMWRITE_JPEG_QUALITY, 95,
    cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
]  # fmt: skip


class SplitSettings(NamedTuple):
    """What an image depends on besides its index; `directory` is where it is written.

    `split` (0 train, 1 val) makes equal indices of the two splits different images.
    """

    directory: str
    seed: int
    split: int
    options: SceneOptions


def make_image(index: int, settings: SplitSettings) -> list[dict[str, Any]]:
    """Writes image `index` and returns its COCO annotations, without ids."""
    image, objects = make_scene(settings.seed, settings.split, index, settings.options)
    path = pathlib.Path(settings.directory) / file_name(index)
    if not cv2.imwrite(str(path), np.ascontiguousarray(image[..., ::-1]), _JPEG_OPTIONS):
        raise UserError(f"{path} cannot be written; is the disk full?")
    return [_annotation(item) for item in objects]


def file_name(index: int) -> str:
    """The file name of image `index`, whose id is index + 1."""
    return f"{index + 1:06d}.jpg"


def _annotation(item: SceneObject) -> dict[str, Any]:
    y1, x1, y2, x2 = item.box_yxyx
    rle = mask_lib.encode(np.asfortranarray(item.visible.astype(np.uint8)))
    return {
        "category_id": item.class_id,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": int(item.visible.sum()),
        "iscrowd": 0,
        "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
    }


def write_split(settings: SplitSettings, count: int, workers: int, path: pathlib.Path) -> None:
    """Writes `count` images and the COCO json of their objects to `path`, last and atomically."""
    directory = pathlib.Path(settings.directory)
    directory.mkdir(parents=True, exist_ok=True)
    function = functools.partial(make_image, settings=settings)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    side = settings.options.image_size
    with pool.mapper(function, pool.num_workers(workers, count)) as run:
        results = tqdm.tqdm(
            run(range(count)), total=count, desc=f"{directory.name} scenes", unit=" images"
        )
        for index, found in enumerate(results):
            image = {"id": index + 1, "file_name": file_name(index), "height": side, "width": side}
            images.append(image)
            for annotation in found:
                ids = {"id": len(annotations) + 1, "image_id": index + 1}
                annotations.append(ids | annotation)
    content = {
        "info": _info(settings, count),
        "images": images,
        "annotations": annotations,
        "categories": Vocabulary.from_names(CLASS_NAMES).categories(),
    }
    write_atomically(path, json.dumps(content))


def _info(settings: SplitSettings, count: int) -> dict[str, Any]:
    """What the scenes were drawn from, as it comes back from json."""
    made_of = {
        "description": "Shapes",
        "seed": settings.seed,
        "split": settings.split,
        "images": count,
        "options": dataclasses.asdict(settings.options),
    }
    return json.loads(json.dumps(made_of))


def _is_drawn(path: pathlib.Path, info: dict[str, Any]) -> bool:
    """Whether `path` is the finished json of scenes drawn from `info`."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("info") == info


def generate(
    output_dir: str,
    *,
    train_images: int,
    val_images: int,
    seed: int = 0,
    workers: int = 0,
    reuse: bool = False,
    overwrite: bool = False,
    grabcut: bool = False,
    options: SceneOptions | None = None,
) -> dict[str, Manifest]:
    """Writes the data set and its records; equal arguments give equal files.

    A run that was interrupted resumes when it is repeated.

    Args:
      output_dir: gets train/*.jpg, val/*.jpg, instances_{train,val}.json, set_a.txt, set_b.txt,
        word_vectors.txt and the records in records/{train,val}.
      train_images: number of training images.
      val_images: number of validation images.
      seed: of the scenes.
      workers: processes, 0: one per core.
      reuse: keep finished scenes and records of equal arguments, instead of an error.
      overwrite: replace what is there, instead of an error.
      grabcut: write records/train_grabcut too, the training images with masks by GrabCut.
      options: statistics of the scenes.

    Returns:
      The manifests by the name of their directory in records/; splits of no images are left out.
    """
    root = pathlib.Path(output_dir)
    reuse = reuse or not (root / WORD_VECTORS).exists()
    set_a, set_b = set_a_names()
    jobs = []
    for split, (name, count) in enumerate({"train": train_images, "val": val_images}.items()):
        if count < 0:
            raise UserError(f"--{name}_images={count} must not be negative.")
        settings = SplitSettings(str(root / name), seed, split, options or SceneOptions())
        path = root / f"instances_{name}.json"
        drawn = reuse and not overwrite and _is_drawn(path, _info(settings, count))
        made = {name: ANNOTATED} | ({"train_grabcut": ALL} if grabcut and not split else {})
        outputs = {
            Output(str(root / "records" / key), key, 0, workers, reuse, overwrite): masks
            for key, masks in made.items()
        }
        for output in outputs if not drawn else ():
            output.reusable({}, count)  # refuses now what would be refused after drawing
        if count:
            jobs.append((settings, count, path, drawn, outputs))
    manifests = {}
    for settings, count, path, drawn, outputs in jobs:
        if not drawn:
            write_split(settings, count, workers, path)
        for output, masks in outputs.items():
            manifests[output.name] = coco.convert(
                str(path), settings.directory, output, masks=masks, set_a=set_a
            )
    write_atomically(root / "set_a.txt", "\n".join(set_a) + "\n")
    write_atomically(root / "set_b.txt", "\n".join(set_b) + "\n")
    write_atomically(root / WORD_VECTORS, words.to_text(seed))
    return manifests
