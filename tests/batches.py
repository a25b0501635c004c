"""A configuration that trains in milliseconds, and random batches that fit it."""

import numpy as np
import tensorflow as tf

from maskx_tf.config import Config

NUM_CLASSES = 7
SIDE = 64
MASK_SIDE = 14  # of masks that the model puts out, and of those in the labels

_OPTIONS = {
    "backbone": "small",
    "backbone_width": 8,
    "convolutions": "direct",
    "normalization": "batch_norm",
    "frozen_stages": 0,
    "fpn_filters": 16,
    "max_level": 5,
    "rpn_filters": 16,
    "rpn_batch_size": 64,
    "rpn_straddle_threshold": -1.0,
    "rpn_pre_nms_train": 100,
    "rpn_post_nms_train": 50,
    "rpn_pre_nms_test": 100,
    "rpn_post_nms_test": 50,
    "roi_batch_size": 32,
    "roi_canonical_size": 56.0,
    "box_fc_units": 32,
    "mask_roi_size": 7,
    "mask_filters": 8,
    "mask_convs": 1,
    "mask_mlp": True,
    "transfer_units": 16,
    "max_detections": 10,
    "image_min_side": SIDE,
    "image_max_side": SIDE,
    "max_objects": 5,
    "mask_crop_size": MASK_SIDE,
    "batch_size": 2,
}


def tiny_config(**changes) -> Config:
    """The tiny configuration with some options changed."""
    return Config(**_OPTIONS | changes)


def random_boxes(rng: np.random.Generator, count: int, side: float, least: float = 4.0):
    """float32 [count, 4] boxes_yxyx inside a square image, sides of at least `least` pixels."""
    size = rng.uniform(least, side / 2, (count, 2))
    low = rng.uniform(0, 1, (count, 2)) * (side - size)
    return np.concatenate([low, low + size], axis=1).astype(np.float32)


def random_features(seed: int = 0, batch: int = 2) -> dict[str, tf.Tensor]:
    """`features` of a batch of noise images that fill the canvas."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (batch, SIDE, SIDE, 3)).astype(np.uint8)
    sizes = np.full([batch, 2], SIDE, np.float32)
    return {"image": tf.constant(image), "image_size": tf.constant(sizes)}


def random_labels(seed: int = 0, batch: int = 2, present: int = 3) -> dict[str, np.ndarray]:
    """`labels` as writable NumPy arrays: `present` of 5 objects, all with masks, no crowds."""
    rng = np.random.default_rng(seed)
    most, crop = _OPTIONS["max_objects"], _OPTIONS["mask_crop_size"]
    labels = {
        "boxes_yxyx": np.zeros([batch, most, 4], np.float32),
        "classes": np.zeros([batch, most], np.int32),
        "is_crowd": np.zeros([batch, most], bool),
        "has_mask": np.zeros([batch, most], bool),
        "masks": np.zeros([batch, most, crop, crop], np.uint8),
    }
    for image in range(batch):
        labels["boxes_yxyx"][image, :present] = random_boxes(rng, present, SIDE, least=16)
        labels["classes"][image, :present] = rng.integers(1, NUM_CLASSES + 1, present)
    labels["has_mask"][:, :present] = True
    labels["masks"][:, :present] = rng.integers(0, 2, (batch, present, crop, crop))
    return labels


def to_tensors(labels: dict[str, np.ndarray]) -> dict[str, tf.Tensor]:
    """Copies, so that changing the arrays afterwards changes nothing."""
    return {name: tf.constant(value.copy()) for name, value in labels.items()}
