"""Runs a model over the evaluation records once and scores it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf
import tqdm
from absl import logging

from maskx_tf.config import Config
from maskx_tf.data import pipeline
from maskx_tf.data.classes import Vocabulary
from maskx_tf.errors import UserError
from maskx_tf.evaluation import coco, limits
from maskx_tf.evaluation.ground_truth import ground_truth_from_records
from maskx_tf.evaluation.segmentation import Segment
from maskx_tf.frozen import evaluation as frozen
from maskx_tf.ops import masks as mask_ops
from maskx_tf.ops.boxes import mask_windows
from maskx_tf.ops.conventions import CONVENTIONS


def records_of(config: Config) -> tuple[str, ...]:
    """Where a model is evaluated; UserError if that is nowhere."""
    if not config.eval_records:
        raise UserError("There is nothing to evaluate on: set --eval_records=DIRECTORY.")
    return config.eval_records


class ModelEvaluator:
    """Scores a model on `config.eval_records`, again and again.

    Ground truth is read and graphs are traced once.

    Args:
      model: a `MaskXRCNN`.
      config: options; the data part is read here.
      vocabulary: names of the model's classes.
      mask_class_ids: set A.
      ground_truth: COCO layout, see `ground_truth`; default: that of the records.
      engine: one of `coco.ENGINES`.
      segment: makes the masks, in place of the model, or refines the model's.

    Attributes:
      results, curves: of the last evaluation, as of `CocoEvaluator`; empty before.
      evaluator: that of the last evaluation.

    Raises:
      UserError: there are no evaluation records, or they cannot be read.
    """

    def __init__(
        self,
        model,
        config: Config,
        vocabulary: Vocabulary,
        mask_class_ids: Sequence[int],
        *,
        ground_truth: dict | None = None,
        engine: str = "faster_coco_eval",
        segment: Segment | None = None,
    ):
        self._segment = segment
        records = records_of(config)
        self._config, self._vocabulary = config, vocabulary
        self._mask_class_ids, self._engine = tuple(mask_class_ids), engine
        self._ground_truth = ground_truth or ground_truth_from_records(records, vocabulary)

        has_masks = config.has_masks and (segment is None or segment.refines)
        limits.warn(self._ground_truth, config)

        @tf.function(autograph=False)
        def predict(features, labels):
            sizes, scales = features["image_size"], features["image_scale"]
            pyramid = model.pyramid(features["image"], sizes)
            if not has_masks:
                return model.detect_boxes(pyramid, sizes, scales)
            given = model.masks(pyramid, labels["boxes_yxyx"], labels["classes"], scales)
            return {**model.detect(pyramid, sizes, scales), "given_masks": given}

        self._model, self._predict = model, predict
        self.evaluator: coco.CocoEvaluator | None = None
        self.results: dict = {}
        self.curves: dict[str, dict[str, np.ndarray]] = {}

    def evaluate(self, per_class: bool = False, progress: bool = False) -> dict:
        """Scores the model as it is now.

        Args:
          per_class: also list the AP of every class.
          progress: show a progress bar.

        Returns:
          What `CocoEvaluator.evaluate` returns, with "mask_given_boxes": the masks predicted for
          the ground-truth boxes and classes, each with score 1. Of an image with more than
          `config.max_objects` objects, only that many are given. Boxes alone of a model of stage 1,
          whose mask head nothing trained, unless `segment` makes the masks.

        Raises:
          UserError: the records do not fit the ground truth or the vocabulary.
        """
        evaluator = coco.CocoEvaluator(
            self._ground_truth, self._vocabulary, self._mask_class_ids, self._engine
        )
        dataset = pipeline.make_dataset(
            self._config.eval_records,
            self._config,
            self._vocabulary,
            self._mask_class_ids,
            training=False,
            seed=self._config.seed,
        )
        total, seen = len(self._ground_truth["images"]), 0
        whole_pixels = CONVENTIONS[self._config.conventions].paste_whole_pixels
        scale = self._config.mask_roi_scale
        with tqdm.tqdm(total=total, unit="image", disable=not progress) as bar:
            for batch in self._predictions(dataset, total):
                for i in range(len(batch["image_id"])):
                    image = {key: value[i] for key, value in batch.items()}
                    add_image(evaluator, image, whole_pixels, scale, self._segment)
                seen += len(batch["image_id"])
                bar.update(len(batch["image_id"]))
        if seen < total:
            logging.warning(
                "%d of the %d images of the ground truth are not in --eval_records; their objects "
                "count as missed.",
                total - seen,
                total,
            )
        self.results, self.curves = evaluator.evaluate(per_class), evaluator.curves
        self.evaluator = evaluator
        return self.results

    def _predictions(self, dataset: tf.data.Dataset, total: int) -> Iterator[dict[str, np.ndarray]]:
        """What `add_image` reads, with a leading batch dimension."""
        if self._config.feature_cache:
            yield from frozen.predictions(self._model, self._config, dataset, total)
            return
        for features, labels in dataset:
            yield _to_numpy({**features, **labels, **self._predict(features, labels)})


def _to_numpy(tensors: dict[str, tf.Tensor]) -> dict[str, np.ndarray]:
    return {key: tensor.numpy() for key, tensor in tensors.items()}


def add_image(
    evaluator: coco.CocoEvaluator,
    image: dict[str, np.ndarray],
    whole_pixels: bool = False,
    mask_roi_scale: float = 1.0,
    segment: Segment | None = None,
) -> None:
    """Adds the detections and the masks for given boxes of one image, in original pixels.

    Args:
      evaluator: what they are added to.
      image: features, labels and detections without their batch dimension, and "given_masks"
        float [M, m, m]; no masks of a model without, whose boxes alone are added.
      whole_pixels: how masks are pasted, see `ops.masks.paste_region`.
      mask_roi_scale: see `boxes.mask_windows`.
      segment: makes the masks of the boxes, in place of those in `image`, or refines those.
    """
    height, width = (int(side) for side in image["original_size"])
    image_id = int(image["image_id"])

    def masks_of(kind: str, chosen, boxes_yxyx: np.ndarray) -> list[mask_ops.Rle] | None:
        if segment and not segment.refines:
            return segment(image_id, boxes_yxyx)
        if f"{kind}_masks" not in image:
            return None
        masks = image[f"{kind}_masks"][chosen]
        windows = mask_windows(boxes_yxyx, mask_roi_scale).numpy()
        if segment:
            return segment(image_id, windows, masks)
        return mask_ops.paste_to_rle(masks, windows, height, width, whole_pixels=whole_pixels)

    count = int(image["num_detections"])
    boxes = to_original(image["detection_boxes"][:count], image["image_scale"], height, width)
    rles = masks_of("detection", slice(count), boxes)
    evaluator.add(
        image_id,
        boxes,
        image["detection_scores"][:count],
        image["detection_classes"][:count],
        rles,
        image["detection_mask_scores"][:count] if "detection_mask_scores" in image else None,
    )
    given = (image["classes"] > 0) & ~image["is_crowd"]
    boxes = to_original(image["boxes_yxyx"][given], image["image_scale"], height, width)
    rles = masks_of("given", given, boxes)
    if rles is not None:
        evaluator.add_given_boxes(image_id, boxes, image["classes"][given], rles)


def to_original(
    boxes_yxyx: np.ndarray, image_scale: np.ndarray, height: int, width: int
) -> np.ndarray:
    """Boxes float64 [N, 4] from network-input to original pixels, clipped to the image."""
    boxes = boxes_yxyx.astype(np.float64) / np.tile(image_scale, 2)  # [N, 4]
    return np.clip(boxes, 0, [height, width, height, width])
