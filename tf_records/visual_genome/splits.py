"""Which images of Visual Genome go into train, val and test: no image of COCO's val2017 into train.

val: the images that are in COCO's val2017; test: the last ones that are not in COCO at all; train:
the rest.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import NamedTuple

from maskx_tf.data.coco.json_stream import JsonStream
from maskx_tf.errors import UserError
from tf_records.visual_genome.images import Image, whole_number
from tf_records.visual_genome.stream import open_json

SPLITS = ("train", "val", "test")
# …/4572769123_0a1b2c3d4e_z.jpg: photo id, secret, and a letter for the size.
_FLICKR = re.compile(r".*/(\d+)_[0-9a-zA-Z]+(?:_[a-z0-9]+)?\.[a-z]+")


class CocoImages(NamedTuple):
    """The images of a COCO json: their ids in COCO and on Flickr, and the file's sha256."""

    ids: frozenset[int]
    flickr_ids: frozenset[int]
    sha256: str | None


NO_COCO = CocoImages(frozenset(), frozenset(), None)


def read_coco(path: str) -> CocoImages:
    """Reads the images of a COCO json; UserError if it has none."""
    ids, flickr_ids = set(), set()
    with open_json(path, "coco_annotations") as file:
        stream = JsonStream(file, path, os.path.getsize(path))
        for entry in stream.entries():
            if entry.key != "images" or entry.index is None:
                continue
            image = entry.value if isinstance(entry.value, dict) else {}
            image_id = whole_number(image.get("id"))
            if image_id is None:
                raise UserError(f"{path}: images[{entry.index}] has no integer id.")
            ids.add(image_id)
            flickr_id = flickr_id_of(image.get("flickr_url"))
            if flickr_id is not None:
                flickr_ids.add(flickr_id)
    if not ids:
        raise UserError(f"{path} is not a COCO json: it has no images.")
    return CocoImages(frozenset(ids), frozenset(flickr_ids), stream.sha256)


def flickr_id_of(url: object) -> int | None:
    """The photo's id in the address of a Flickr image; None if it is no such address."""
    match = _FLICKR.fullmatch(url) if isinstance(url, str) else None
    return whole_number(match[1]) if match else None


def assign(images: Sequence[Image], coco: CocoImages, test_images: int) -> list[str]:
    """The split of each image.

    Args:
      images: in the file's order.
      coco: the images that no other split than val may have.
      test_images: how many of the last images without a coco_id are in test.

    Raises:
      UserError: fewer images are without a coco_id.
    """
    splits = ["val" if is_in(image, coco) else "train" for image in images]
    free = [i for i, image in enumerate(images) if splits[i] == "train" and image.coco_id is None]
    if not 0 <= test_images <= len(free):
        raise UserError(
            f"--test_images={test_images} is not between 0 and {len(free)}, the number of images "
            "that have no coco_id."
        )
    for index in free[len(free) - test_images :]:
        splits[index] = "test"
    return splits


def is_in(image: Image, coco: CocoImages) -> bool:
    """Whether the image is one of COCO's, by its id there or on Flickr."""
    return image.coco_id in coco.ids or image.flickr_id in coco.flickr_ids


def notes(images: Sequence[Image], coco: CocoImages) -> list[str]:
    """How the images of val were found, a line each."""
    if coco.sha256 is None:
        return ["No COCO json: images of COCO's val2017 may be in any split, and there is no val."]
    by_id = sum(image.coco_id in coco.ids for image in images)
    by_flickr = sum(is_in(image, coco) for image in images) - by_id
    return [f"{by_id} images are in COCO's json by coco_id, {by_flickr} more by flickr_id."]
