"""Masks of boxes by GrabCut on the original images, in place of a model's mask head."""

from __future__ import annotations

import concurrent.futures
import functools
import os
from collections.abc import Sequence
from typing import Self

import numpy as np

from maskx_tf.data import decoding
from maskx_tf.data.records import index, manifest, schema
from maskx_tf.ops import grabcut
from maskx_tf.ops import masks as mask_ops
from maskx_tf.ops.masks import Rle


class GrabCutMasks:
    """Segments boxes of the images of some records, each image read when it is needed.

    A context manager: OpenCV works in threads, one for each core.
    """

    def __init__(self, eval_records: Sequence[str]):
        """Takes record directories or shard globs; UserError if they are damaged or missing."""
        self._places = index.places_by_image_id(manifest.find_shards(eval_records))
        self._threads = concurrent.futures.ThreadPoolExecutor(os.cpu_count())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown()

    def __call__(self, image_id: int, boxes_yxyx: np.ndarray) -> list[Rle]:
        """Run-length codes of the masks in boxes [N, 4], pixels of the original image."""
        columns, _ = schema.columns_of(self._places[image_id].read())
        image = decoding.to_array(columns["image/encoded"])[..., ::-1]  # in OpenCV's order
        segment = functools.partial(_segment, image)
        return list(self._threads.map(segment, np.asarray(boxes_yxyx, np.float64).tolist()))


def _segment(image: np.ndarray, box_yxyx: Sequence[float]) -> Rle:
    return mask_ops.encode_region(*grabcut.segment(image, box_yxyx), *image.shape[:2])
