"""What the known classes look like to the detector: the mean box features of their objects."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tqdm

from maskx_tf.adding.frozen_detector import FrozenDetector
from maskx_tf.adding.regions import Given, regions_of
from maskx_tf.data import pipeline
from maskx_tf.data.records import index
from maskx_tf.data.records.manifest import find_records
from maskx_tf.data.records.reader import reading_errors


class ClassMeans(NamedTuple):
    """Mean features of K classes.

    Attributes:
      features: float64 [K, D] of the box head; zeros where no object was seen.
      counts: int [K], the objects that they are means over.
    """

    features: np.ndarray
    counts: np.ndarray


def class_means(
    detector: FrozenDetector, records: tuple[str, ...], num_images: int, seed: int
) -> ClassMeans:
    """The means over the objects of images drawn from records.

    An object's features are the mean over the regions that belong to it, as those of an example.

    Args:
      detector: of the model.
      records: directories or patterns of records with its classes.
      num_images: how many images to draw; all, if there are not so many.
      seed: of the draw and of the jitter.

    Raises:
      UserError: records are missing or damaged, or have a class that the model lacks.
    """
    loaded, rng = detector.loaded, np.random.default_rng(seed)
    config = loaded.config.replace(
        batch_size=1,
        mask_sources=(),
        mask_source_weights=(),
        repeat_threshold=0.0,
        copy_paste=0.0,
        horizontal_flip=False,
        scale_jitter_min=1.0,
        scale_jitter_max=1.0,
    )
    total = min(num_images, _num_records(records, config.skip_corrupt_records))
    dataset = pipeline.make_dataset(
        records, config, loaded.vocabulary, (), training=True, seed=seed
    ).take(total)
    sums = np.zeros([loaded.vocabulary.num_classes, detector.head.units])
    counts = np.zeros(len(sums), np.int64)
    with reading_errors(records):
        for image, labels in tqdm.tqdm(dataset, total=total, unit="image", desc="known classes"):
            given = _given(labels)
            if not len(given.labels):
                continue
            view = detector.look(image["image"], image["image_size"])
            size = image["image_size"][0].numpy()
            iou = detector.head.positive_iou
            found = regions_of(view.proposals.numpy(), given, size, iou, rng)
            regions = found.boxes_yxyx[found.labels > 0]
            owners = found.example[found.labels > 0]
            features = detector.features(view, regions)[0].numpy()
            for owner in np.unique(owners):
                class_index = given.labels[owner] - 1
                sums[class_index] += features[owners == owner].mean(axis=0)
                counts[class_index] += 1
    return ClassMeans(sums / np.maximum(counts, 1)[:, None], counts)


def _num_records(records: tuple[str, ...], skip_corrupt: bool) -> int:
    """How many of them there are to draw from."""
    found = find_records(records, check_sizes=not skip_corrupt)
    return len(index.build(found.paths, found.counts, skip_corrupt))


def _given(labels: dict[str, tf.Tensor]) -> Given:
    """The boxes of a batch of one image."""
    classes = labels["classes"][0].numpy().astype(np.int64)
    boxes = labels["boxes_yxyx"][0].numpy().astype(np.float64)
    is_crowd = labels["is_crowd"][0].numpy()
    is_object = (classes > 0) & ~is_crowd
    return Given(boxes[is_object], classes[is_object], boxes[(classes > 0) & is_crowd])
