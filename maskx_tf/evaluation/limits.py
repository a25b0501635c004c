"""Warnings of an evaluation whose numbers cannot be what they seem: limits that the data exceed."""

from collections import Counter
from typing import Any

from absl import logging

from maskx_tf.config import Config
from maskx_tf.evaluation import federated
from maskx_tf.evaluation.coco import MAX_DETECTIONS


def warn(ground_truth: dict[str, Any], config: Config) -> None:
    """Warns of what the metrics or `max_objects` leave out of account.

    Args:
      ground_truth: COCO layout, see `ground_truth`.
      config: options of the evaluation.
    """
    is_federated = federated.is_federated(ground_truth)
    limit = federated.MAX_DETECTIONS if is_federated else MAX_DETECTIONS
    objects = [a for a in ground_truth["annotations"] if not a["iscrowd"]]
    by_class = Counter((a["image_id"], a["category_id"]) for a in objects)
    if crowded := {image for (image, _), count in by_class.items() if count > limit}:
        (image, category), count = by_class.most_common(1)[0]
        (name,) = (c["name"] for c in ground_truth["categories"] if c["id"] == category)
        logging.warning(
            "%d images have more than %d objects of a class, such as %d of %r in image %d: AP "
            "counts the best %d detections of a class in an image, so that even a perfect model "
            "stays below 100.",
            len(crowded), limit, count, name, image, limit,
        )  # fmt: skip
    if config.max_detections > limit:
        logging.warning(
            "--max_detections=%d: AP counts the best %d detections of a class in an image.",
            config.max_detections,
            limit,
        )
    if is_federated and config.max_detections < limit:
        logging.warning(
            "%s counts up to %d detections of an image; --max_detections=%d leaves some out.",
            federated.NAME,
            limit,
            config.max_detections,
        )
    by_image = Counter(a["image_id"] for a in ground_truth["annotations"])
    full = [image for image, count in by_image.items() if count > config.max_objects]
    if full and config.has_masks:
        most = by_image.most_common(1)[0][1]
        logging.warning(
            "%d images have more than --max_objects=%d objects, up to %d: masks in given boxes are "
            "made for the largest, and the others count as missed. Set --max_objects=%d.",
            len(full), config.max_objects, most, most,
        )  # fmt: skip
