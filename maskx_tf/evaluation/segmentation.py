"""Masks of boxes that are made, or refined, on the original images of the records."""

from __future__ import annotations

import concurrent.futures
import os
from collections.abc import Callable, Sequence
from typing import Self

import numpy as np

from maskx_tf.evaluation.record_images import RecordImages
from maskx_tf.ops import dense_crf, grabcut
from maskx_tf.ops import masks as mask_ops
from maskx_tf.ops.masks import Rle

# (image uint8 RGB [H, W, 3], box_yxyx of 4 pixel coordinates, the model's mask float [m, m] of the
# box or None) -> the mask in the image.
SegmentBox = Callable[[np.ndarray, Sequence[float], np.ndarray | None], Rle]


class Segment:
    """Segments boxes of the images of some records, each image read when it is needed.

    A context manager: NumPy and OpenCV work in threads, one for each core.

    Args:
      eval_records: record directories or shard globs.
      segment_box: makes a mask.
      refines: whether it needs the model's.

    Raises:
      UserError: the records are damaged or missing.
    """

    def __init__(self, eval_records: Sequence[str], segment_box: SegmentBox, refines: bool = False):
        self._segment_box, self.refines = segment_box, refines
        self._read_image = RecordImages(eval_records)
        self._threads = concurrent.futures.ThreadPoolExecutor(os.cpu_count())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown()

    def __call__(
        self, image_id: int, boxes_yxyx: np.ndarray, masks: np.ndarray | None = None
    ) -> list[Rle]:
        """Run-length codes of the masks in boxes [N, 4], pixels of the original image.

        Args:
          image_id: of the image.
          boxes_yxyx: float [N, 4].
          masks: the model's, float [N, m, m], where they are refined.
        """
        image = self._read_image(image_id)
        boxes = np.asarray(boxes_yxyx, np.float64).tolist()
        given = [None] * len(boxes) if masks is None else list(masks)
        return list(
            self._threads.map(lambda box, mask: self._segment_box(image, box, mask), boxes, given)
        )


def by_grabcut(image: np.ndarray, box_yxyx: Sequence[float], _: np.ndarray | None) -> Rle:
    """A `SegmentBox`."""
    region = grabcut.segment(image[..., ::-1], box_yxyx)  # in OpenCV's order
    return mask_ops.encode_region(*region, *image.shape[:2])


def by_shape(shape: str) -> SegmentBox:
    """A `SegmentBox` that looks at nothing: the whole `box`, or the `ellipse` in it."""
    axis = np.linspace(-1, 1, 113)[1::2]  # centres of 56 cells
    distances = axis**2 + axis[:, None] ** 2
    mask = (distances <= (1.0 if shape == "ellipse" else 2.0)).astype(np.float32)

    def segment_box(image: np.ndarray, box_yxyx: Sequence[float], _: np.ndarray | None) -> Rle:
        height, width = image.shape[:2]
        region = mask_ops.paste_region(mask, box_yxyx, height, width)
        return mask_ops.encode_region(*region, height, width)

    return segment_box


def by_crf(parameters: dense_crf.Parameters, whole_pixels: bool) -> SegmentBox:
    """A `SegmentBox` that refines masks, and pastes them as `ops.masks.paste_region` says."""

    def segment_box(image: np.ndarray, box_yxyx: Sequence[float], mask: np.ndarray | None) -> Rle:
        assert mask is not None
        refined = dense_crf.refine(image, box_yxyx, mask, parameters)
        height, width = image.shape[:2]
        region = mask_ops.paste_region(refined, box_yxyx, height, width, whole_pixels=whole_pixels)
        return mask_ops.encode_region(*region, height, width)

    return segment_box
