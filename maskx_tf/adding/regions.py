"""Which regions of an image count as examples of new classes, which do not, and by how much."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from maskx_tf.data.coco.objects import CocoObject
from maskx_tf.ops import boxes

JITTERED = 24  # boxes drawn around each example, besides the example itself
_SHIFT, _LOG_SCALE = 0.2, 0.3  # largest change of a jittered box, in its sides and in log
_CROWD_OVERLAP = 0.7


class Regions(NamedTuple):
    """Regions of an image: boxes_yxyx and matched boxes [R, 4], labels and example (or -1) [R]."""

    boxes_yxyx: np.ndarray
    labels: np.ndarray
    matched: np.ndarray
    example: np.ndarray


class Given(NamedTuple):
    """The boxes that an image is given with, in network-input pixels.

    Attributes:
      boxes_yxyx: float64 [G, 4], crowds not among them.
      labels: int [G], 1..M for the classes whose examples are sought, 0 for others.
      crowds: float64 [C, 4] boxes of crowds of these classes.
    """

    boxes_yxyx: np.ndarray
    labels: np.ndarray
    crowds: np.ndarray


def given_of(
    objects: Sequence[tuple[str, CocoObject]], names: Sequence[str], scale: np.ndarray
) -> Given:
    """The boxes of the objects of an image.

    Args:
      objects: (name of the class, object in pixels of the image) of each.
      names: of the classes whose examples are sought.
      scale: [2], network-input pixels per pixel (y, x).
    """
    found, labels, crowds = [], [], []
    for name, item in objects:
        label = names.index(name) + 1 if name in names else 0
        if not item.is_crowd:
            found.append(item.box_yxyx)
            labels.append(label)
        elif label:
            crowds.append(item.box_yxyx)
    factor = np.tile(scale, 2)
    boxes_yxyx, crowds_yxyx = (np.array(b, np.float64).reshape(-1, 4) for b in (found, crowds))
    return Given(boxes_yxyx * factor, np.array(labels, np.int64), crowds_yxyx * factor)


def regions_of(
    proposals: np.ndarray,
    given: Given,
    size: np.ndarray,
    positive_iou: float,
    rng: np.random.Generator,
) -> Regions:
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
