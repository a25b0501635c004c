"""Scores an export on the images of records, which it resizes itself."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import tqdm

from maskx_tf.evaluation import coco
from maskx_tf.evaluation.ground_truth import ground_truth_from_records
from maskx_tf.evaluation.record_images import RecordImages
from maskx_tf.inference.detector import Detector


def images(records: Sequence[str], most: int | None = None) -> Iterator[tuple[int, np.ndarray]]:
    """Image ids and pixels, uint8 RGB [H, W, 3], in the order of the records.

    Args:
      records: record directories or shard globs.
      most: of images.

    Raises:
      UserError: the records are damaged or missing.
    """
    read_image = RecordImages(records)
    for image_id in itertools.islice(read_image, most):
        yield image_id, read_image(image_id)


def evaluate(
    detector: Detector,
    records: Sequence[str],
    mask_class_ids: Sequence[int],
    engine: str = "faster_coco_eval",
    per_class: bool = False,
    progress: bool = True,
) -> dict:
    """Box and mask AP of a detector.

    Args:
      detector: of `inference.detector.load_export`.
      records: record directories or shard globs.
      mask_class_ids: set A.
      engine: one of `coco.ENGINES`.
      per_class: also list the AP of every class.
      progress: show a progress bar.

    Returns:
      As of `coco.CocoEvaluator.evaluate`.

    Raises:
      UserError: the records cannot be used.
    """
    ground_truth = ground_truth_from_records(records, detector.vocabulary)
    evaluator = coco.CocoEvaluator(ground_truth, detector.vocabulary, mask_class_ids, engine)
    total = len(ground_truth["images"])
    for image_id, pixels in tqdm.tqdm(
        images(records), total=total, unit="image", disable=not progress
    ):
        found = detector(pixels, min_score=0)
        rles = [one.rle() for one in found]
        evaluator.add(image_id, found.boxes_yxyx, found.scores, found.class_ids, rles)
    return evaluator.evaluate(per_class)
