"""What new classes are fitted to: box features of their boxes and of everything beside them."""

from __future__ import annotations

import pathlib
import sys
from collections import Counter
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tqdm

from maskx_tf.adding.frozen_detector import FrozenDetector
from maskx_tf.adding.regions import given_of, regions_of, sample_weights
from maskx_tf.data import preprocessing
from maskx_tf.data.coco.images import locate, read_image
from maskx_tf.data.coco.instances import CocoJson
from maskx_tf.data.coco.issues import STORED_AS_PNG, Issue, summary, tabulate
from maskx_tf.data.coco.objects import IGNORED, read_objects
from maskx_tf.data.image_formats import BadImageError
from maskx_tf.ops import boxes


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

    def means(self, num_new: int) -> np.ndarray:
        """Mean features of the new classes over the examples of each, float64 [M, D]."""
        share = self.weights * (self.labels == np.arange(1, num_new + 1)[:, None])  # [M, R]
        return share @ self.features / share.sum(axis=1, keepdims=True)


def collect(
    detector: FrozenDetector,
    source: CocoJson,
    images: pathlib.Path,
    names: list[str],
    seed: int,
    crowds: str = IGNORED,
) -> tuple[Samples, Counter[str]]:
    """The samples of all images that show a new class.

    An image is read for its examples of `names`; boxes of classes that the model knows are told
    apart from them. Everything else in it may be anything: a region weighs as much as the model is
    sure what it is, so that an unmarked object of a new class does little harm.

    Args:
      detector: of the model.
      source: json with boxes.
      images: directory of the image files.
      names: of the new classes.
      seed: of the jitter.
      crowds: what iscrowd means, one of `objects.CROWDS`.

    Returns:
      The samples, and the number of usable examples by class.
    """
    rng = np.random.default_rng(seed)
    counts: Counter[str] = Counter()
    parts, problems = [], []
    classes = dict(zip(source.vocabulary.external_ids, source.vocabulary.names, strict=True))
    items, issues = locate(source.items, images)
    issues += source.issues
    shown = [i for i in items if any(classes[a.category_id] in names for a in i.annotations)]
    for item in tqdm.tqdm(shown, unit="image", desc="features"):
        try:
            image = read_image(pathlib.Path(item.path), item.size)
        except BadImageError as error:
            problems.append(str(error))
            continue
        changes = (change for change in image.changes if change != STORED_AS_PNG)
        issues += [Issue(change, item.image_id) for change in changes]
        pixels = tf.constant(image.pixels)
        objects, found = read_objects(item, image.size, crowds)
        issues += found
        named = [(classes[annotation.category_id], one) for annotation, one in objects]
        parts.append(_of_image(detector, pixels, named, names, rng, counts))
    if problems:
        print(f"{len(problems)} images cannot be read, such as {problems[0]}", file=sys.stderr)
    if issues:
        print(summary(tabulate(issues)), file=sys.stderr)
    parts.append(_no_samples(detector))
    return Samples(*(np.concatenate(column) for column in zip(*parts, strict=True))), counts


def _no_samples(detector: FrozenDetector) -> Samples:
    features = np.zeros([0, detector.head.units], np.float32)
    return Samples(features, np.zeros([0], np.int64), np.zeros([0]), np.zeros([0, 4], np.float32))


def _of_image(detector, image, objects, names, rng, counts) -> Samples:
    config, head = detector.loaded.config, detector.head
    resized, size, scale = preprocessing.resize_and_pad(
        image, config.image_min_side, config.image_max_side
    )
    given = given_of(objects, names, scale.numpy())
    if not given.labels.any():  # its examples are crowds or no boxes
        return _no_samples(detector)
    counts.update(names[label - 1] for label in given.labels if label)
    view = detector.look(resized[None], size[None])
    regions = regions_of(view.proposals.numpy(), given, size.numpy(), head.positive_iou, rng)
    found, probabilities = detector.features(view, regions.boxes_yxyx)
    positive = regions.labels > 0
    targets = boxes.encode(
        tf.constant(regions.matched, tf.float32),
        tf.constant(regions.boxes_yxyx, tf.float32),
        head.delta_weights,
    ).numpy()
    weights = sample_weights(regions, probabilities.numpy(), config.roi_positive_fraction)
    return Samples(found.numpy(), regions.labels, weights, np.where(positive[:, None], targets, 0))
