"""Scores an export on the images of records, which it resizes itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import tqdm

from maskx_tf.data import decoding
from maskx_tf.data.records import index, manifest, schema
from maskx_tf.evaluation import coco
from maskx_tf.evaluation.ground_truth import ground_truth_from_records
from maskx_tf.inference.detector import Detector


def images(records: Sequence[str], most: int | None = None) -> Iterator[tuple[int, np.ndarray]]:
    """Image ids and pixels, uint8 RGB [H, W, 3], in the order of the records.

    Args:
      records: record directories or shard globs.
      most: of images.

    Raises:
      UserError: the records are damaged or missing.
    """
    places = index.places_by_image_id(manifest.find_shards(records))
    for image_id, place in list(places.items())[:most]:
        columns, _ = schema.columns_of(place.read())
        yield image_id, decoding.to_array(columns["image/encoded"])


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
