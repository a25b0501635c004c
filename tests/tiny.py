"""A tiny detector with random weights, its vocabulary and a few images of different shapes."""

import itertools
from typing import Any

import numpy as np
import tensorflow as tf

from maskx_tf.assembly import build_model
from maskx_tf.config import Config
from maskx_tf.data.classes import Vocabulary
from maskx_tf.model import MaskXRCNN

VOCABULARY = Vocabulary(("ant", "bee", "cat", "dog"), (1, 3, 4, 7))
SET_A = (1, 3)


def config(**changes) -> Config:
    """A small model on small images; every RoI scores enough to be a detection."""
    options: dict[str, Any] = {
        "backbone": "small",
        "backbone_width": 8,
        "convolutions": "direct",
        "fpn_filters": 16,
        "max_level": 5,
        "rpn_filters": 16,
        "rpn_pre_nms_test": 100,
        "rpn_post_nms_test": 30,
        "roi_canonical_size": 56.0,
        "box_roi_size": 3,
        "box_fc_units": 24,
        "mask_roi_size": 7,
        "mask_filters": 8,
        "mask_convs": 1,
        "mask_mlp": False,
        "transfer_units": 12,
        "image_min_side": 64,
        "image_max_side": 96,
        "score_threshold": 0.05,
        "max_detections": 6,
    }
    return Config(**options | changes)


def model(options: Config) -> MaskXRCNN:
    """The model with weights that make its outputs vary; the same options give the same weights."""
    built = build_model(options, VOCABULARY.num_classes)
    rng = np.random.default_rng(options.seed)
    head = built.box_head
    for variable, scale in ((head.cls_kernel, 0.01), (head.box_kernel, 0.002)):
        variable.assign(tf.constant(rng.normal(0, scale, variable.shape), variable.dtype))
    return built


def images(count: int = 3) -> list[np.ndarray]:
    """uint8 RGB images [H, W, 3]: landscape, portrait, square, landscape, and so on."""
    rng = np.random.default_rng(0)
    sizes = list(itertools.islice(itertools.cycle([(40, 56), (60, 44), (48, 48), (33, 70)]), count))
    return [rng.integers(0, 256, (*size, 3)).astype(np.uint8) for size in sizes]


def segment(model: MaskXRCNN, images, image_sizes, boxes_yxyx, classes, image_scales=None):
    """Masks [B, N, m, m] of boxes [B, N, 4] and classes [B, N], from the images on."""
    pyramid = model.pyramid(images, image_sizes)
    return model.masks(pyramid, boxes_yxyx, classes, image_scales)
