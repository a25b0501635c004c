"""What new classes are fitted to: box features of their boxes and of everything beside them."""

from __future__ import annotations

import pathlib
import sys
from collections import Counter
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tqdm

from maskx_tf.checkpoints import LoadedModel
from maskx_tf.data import preprocessing
from maskx_tf.labeling.source import Annotation, Source
from maskx_tf.layers.box_head import DELTA_WEIGHTS
from maskx_tf.ops import boxes
from tf_records.coco_objects import clean_box
from tf_records.images import BadImageError, read_image

JITTERED = 24  # boxes drawn around each example, besides the example itself
_SHIFT, _LOG_SCALE = 0.2, 0.3  # largest change of a jittered box, in its sides and in log
_CROWD_OVERLAP = 0.7


class Samples(NamedTuple):
    """Regions with the features of the frozen detector.

    Attributes:
      features: float32 [R, D] of the box head.
      labels: int [R], 1..M for the new classes, 0 for all else.
      weights: float [R]; those of an example's regions add up to 1.
      targets: float32 [R, 4] box deltas (dy, dx, dh, dw); 0 where the label is 0.
    """

    features: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    targets: np.ndarray


class Regions(NamedTuple):
    """Regions of an image: boxes_yxyx and matched boxes [R, 4], labels and example (or -1) [R]."""

    boxes_yxyx: np.ndarray
    labels: np.ndarray
    matched: np.ndarray
    example: np.ndarray


def collect(
    loaded: LoadedModel, source: Source, images: pathlib.Path, names: list[str], seed: int
) -> tuple[Samples, Counter[str]]:
    """The samples of all images that show a new class.

    An image is read for its examples of `names`; boxes of classes that the model knows are told
    apart from them. Everything else in it may be anything: a region weighs as much as the model is
    sure what it is, so that an unmarked object of a new class does little harm.

    Args:
      loaded: the model.
      source: json with boxes.
      images: directory of the image files.
      names: of the new classes.
      seed: of the jitter.

    Returns:
      The samples, and the number of usable examples by class.
    """
    rng = np.random.default_rng(seed)
    extract = _extractor(loaded)
    counts: Counter[str] = Counter()
    parts, problems = [], []
    by_image = source.by_image()
    shown = [e for e in source.images if any(a.class_name in names for a in by_image[e.image_id])]
    for entry in tqdm.tqdm(shown, unit="image", desc="features"):
        try:
            encoded = read_image(images / entry.file_name, (entry.height, entry.width)).encoded
            image = preprocessing.decode_image(tf.constant(encoded))
        except (BadImageError, tf.errors.OpError) as error:
            problems.append(f"{entry.file_name}: {str(error).splitlines()[0]}")
            continue
        parts.append(
            _of_image(loaded, extract, image, by_image[entry.image_id], names, rng, counts)
        )
    if problems:
        print(f"{len(problems)} images cannot be read, such as {problems[0]}", file=sys.stderr)
    parts.append(_no_samples(loaded))
    return Samples(*(np.concatenate(column) for column in zip(*parts, strict=True))), counts


def _no_samples(loaded: LoadedModel) -> Samples:
    features = np.zeros([0, loaded.config.box_fc_units], np.float32)
    return Samples(features, np.zeros([0], np.int64), np.zeros([0]), np.zeros([0, 4], np.float32))


def _extractor(loaded: LoadedModel):
    """(image uint8 [h, w, 3]) -> pyramid, proposals [P, 4], their logits, scale; and features."""
    model, config = loaded.model, loaded.config

    @tf.function(input_signature=[tf.TensorSpec([None, None, 3], tf.uint8)])
    def look(image):
        sides = config.image_min_side, config.image_max_side
        resized, size, scale = preprocessing.resize_and_pad(image, *sides)
        pyramid = model.pyramid(resized[None], size[None])
        limits = model.conventions.proposal_limits(size[None])
        proposals, logits = model.rpn.propose(
            model.rpn(pyramid), limits, config.rpn_pre_nms_test, config.rpn_post_nms_test
        )
        return pyramid, proposals[0], logits[0] > float("-inf"), scale, size

    @tf.function(reduce_retracing=True)
    def features(pyramid, boxes_yxyx):
        found = model.box_head(model.roi_features(pyramid, boxes_yxyx[None], config.box_roi_size))
        return found, tf.nn.softmax(model.box_head.class_logits(found))

    return look, features


def _of_image(loaded, extract, image, annotations, names, rng, counts) -> Samples:
    look, features = extract
    pyramid, proposals, valid, scale, size = look(image)
    given = _Given(annotations, names, tuple(image.shape[:2]), scale.numpy(), counts)
    if not given.labels.any():  # its examples are crowds or no boxes
        return _no_samples(loaded)
    regions = regions_of(
        proposals.numpy()[valid.numpy()], given, size.numpy(), loaded.config.roi_positive_iou, rng
    )
    found, probabilities = features(pyramid, tf.constant(regions.boxes_yxyx, tf.float32))
    positive = regions.labels > 0
    targets = boxes.encode(
        tf.constant(regions.matched, tf.float32),
        tf.constant(regions.boxes_yxyx, tf.float32),
        DELTA_WEIGHTS,
    ).numpy()
    weights = sample_weights(regions, probabilities.numpy(), loaded.config.roi_positive_fraction)
    return Samples(found.numpy(), regions.labels, weights, np.where(positive[:, None], targets, 0))


class _Given:
    """The boxes of an image's annotations, in network-input pixels.

    Attributes:
      boxes_yxyx: float [G, 4] of new and known classes.
      labels: int [G], 1..M for new classes, 0 for known ones.
      crowds: float [C, 4] boxes of crowds of new classes.
    """

    def __init__(
        self,
        annotations: list[Annotation],
        names: list[str],
        image_size: tuple[int, int],
        scale: np.ndarray,
        counts: Counter[str],
    ):
        found, labels, crowds = [], [], []
        for annotation in annotations:
            box, _ = clean_box(annotation.bbox, *image_size)
            if box is None:
                continue
            label = (
                names.index(str(annotation.class_name)) + 1 if annotation.class_name in names else 0
            )
            if annotation.is_crowd:
                crowds += [box] if label else []
                continue
            found.append(box)
            labels.append(label)
            if label:
                counts[names[label - 1]] += 1
        factor = np.tile(scale, 2)
        self.boxes_yxyx = np.array(found, np.float64).reshape(-1, 4) * factor
        self.labels = np.array(labels, np.int64)
        self.crowds = np.array(crowds, np.float64).reshape(-1, 4) * factor


def regions_of(proposals, given, size, positive_iou: float, rng) -> Regions:
    """Proposals [P, 4], the given boxes and boxes jittered around them, with labels.

    A region belongs to the given box that it overlaps most, from `positive_iou` on; what overlaps
    none so much is labelled 0. What lies in a crowd of a new class is left out.
    """
    is_new = given.labels > 0
    drawn = [jitter(box, rng) for box in given.boxes_yxyx[is_new]]
    limits = np.tile(size, 2)
    regions = np.clip(np.concatenate([given.boxes_yxyx, *drawn, proposals]), 0, limits)
    ious = boxes.iou(tf.constant(regions), tf.constant(given.boxes_yxyx)).numpy()  # [R, G]
    match = ious.argmax(axis=1)
    is_match = ious.max(axis=1) >= positive_iou
    labels = np.where(is_match, given.labels[match], 0)
    example = np.where(labels > 0, match, -1)
    keep = (regions[:, 2:] - regions[:, :2]).min(axis=1) > 0
    if len(given.crowds):
        inside = boxes.overlap_fraction(tf.constant(regions), tf.constant(given.crowds)).numpy()
        keep &= (labels > 0) | (inside.max(axis=1) <= _CROWD_OVERLAP)
    matched = given.boxes_yxyx[match]
    return Regions(regions[keep], labels[keep], matched[keep], example[keep])


def jitter(box_yxyx: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Random boxes about as large and about where a box is, [JITTERED, 4]."""
    low, high = box_yxyx[:2], box_yxyx[2:]
    centre, side = (low + high) / 2, high - low
    centres = centre + rng.uniform(-_SHIFT, _SHIFT, [JITTERED, 2]) * side
    halves = side * np.exp(rng.uniform(-_LOG_SCALE, _LOG_SCALE, [JITTERED, 2])) / 2
    return np.concatenate([centres - halves, centres + halves], axis=1)


def sample_weights(
    regions: Regions, probabilities: np.ndarray, positive_fraction: float
) -> np.ndarray:
    """Weights of an image's regions, [R].

    The regions of an example share a weight of 1. The rest share what makes the examples
    `positive_fraction` of all, as in training, in proportion to how sure the old model is of its
    most probable class in each, background included.

    Args:
      regions: R of them.
      probabilities: float [R, K + 1] of the old model.
      positive_fraction: the share.
    """
    sure = probabilities.max(axis=1).astype(np.float64)
    examples = np.unique(regions.example[regions.example >= 0])
    weights = np.zeros(len(sure))
    for example in examples:
        rows = regions.example == example
        weights[rows] = 1 / rows.sum()
    rest = regions.labels == 0
    if rest.any():
        total = len(examples) * (1 - positive_fraction) / positive_fraction
        weights[rest] = total * sure[rest] / sure[rest].sum()
    return weights
