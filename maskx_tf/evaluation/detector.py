"""Scores a detector, such as an export, on the images of records, which it resizes itself."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import tqdm

from maskx_tf.errors import UserError
from maskx_tf.evaluation import coco
from maskx_tf.evaluation.ground_truth import ground_truth_from_records
from maskx_tf.evaluation.record_images import RecordImages
from maskx_tf.evaluation.segmentation import Segment
from maskx_tf.inference.detections import Detections
from maskx_tf.inference.detector import Detector
from maskx_tf.inference.tiles import Segmenter, TiledSegmenter
from maskx_tf.inference.tiling import Tiling
from maskx_tf.ops.masks import Rle


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
    *,
    ground_truth: dict | None = None,
    engine: str = "faster_coco_eval",
    tiling: Tiling | None = None,
    segment: Segment | None = None,
    given_boxes: bool = True,
    progress: bool = True,
) -> coco.CocoEvaluator:
    """Looks at every image of records.

    Args:
      detector: the model.
      records: record directories or shard globs.
      mask_class_ids: set A.
      ground_truth: COCO layout, see `ground_truth`; default: that of the records.
      engine: one of `coco.ENGINES`.
      tiling: look at the images in tiles.
      segment: makes the masks, in place of the model, or refines the model's.
      given_boxes: whether to also segment the boxes of the ground truth, where the detector can:
        the images go through the network once more.
      progress: show a progress bar.

    Returns:
      The evaluator with all that was detected.

    Raises:
      UserError: the records cannot be used.
    """
    ground_truth = ground_truth or ground_truth_from_records(records, detector.vocabulary)
    evaluator = coco.CocoEvaluator(ground_truth, detector.vocabulary, mask_class_ids, engine)
    plain = _segmenter(detector) if given_boxes else None
    segmenter = TiledSegmenter(plain, tiling) if tiling and plain else plain
    objects: dict[int, list[dict]] = {entry["id"]: [] for entry in ground_truth["images"]}
    for annotation in ground_truth["annotations"]:
        if not annotation["iscrowd"]:
            objects[annotation["image_id"]].append(annotation)

    def masks_of(image_id: int, found: Detections) -> list[Rle] | None:
        if segment and not segment.refines:
            return segment(image_id, found.boxes_yxyx)
        if found.box_masks is None:
            return None
        if not segment:
            return [one.rle() for one in found]
        windows = found.mask_windows_yxyx
        masks = np.array([one.probabilities() for one in found])
        return segment(image_id, found.boxes_yxyx if windows is None else windows, masks)

    for image_id, pixels in tqdm.tqdm(
        images(records), total=len(objects), unit="image", disable=not progress
    ):
        if tiling:
            found = detector.tiled(pixels, *tiling, min_score=0)
        else:
            found = detector(pixels, min_score=0)
        rles = masks_of(image_id, found)
        boxes = found.boxes_yxyx
        evaluator.add(image_id, boxes, found.scores, found.class_ids, rles, found.mask_scores)
        if rles is not None and segmenter:
            given = _segmented(segmenter, pixels, objects.get(image_id, []))
            rles = masks_of(image_id, given)
            evaluator.add_given_boxes(image_id, given.boxes_yxyx, given.class_ids, rles or [])
    return evaluator


def _segmenter(detector: Detector) -> Segmenter | None:
    """What gives masks to boxes; None of a model of boxes only and of an export that cannot."""
    try:
        return detector.segmenter()
    except UserError:
        return None


def _segmented(
    segmenter: Segmenter,
    image: np.ndarray,
    annotations: Sequence[dict],
) -> Detections:
    """The masks of annotated boxes that have an area in the image."""
    height, width = image.shape[:2]
    boxes = np.array([annotation["bbox"] for annotation in annotations], float).reshape(-1, 4)
    boxes = np.concatenate([boxes[:, 1::-1], boxes[:, 1::-1] + boxes[:, :1:-1]], axis=1)
    boxes = np.clip(boxes, 0, [height, width, height, width])
    classes = np.array([annotation["category_id"] for annotation in annotations], int)
    has_area = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    return segmenter.segment(image, boxes[has_area], classes[has_area])
