"""Builds the model of the parts that its options name."""

import inspect
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from maskx_tf.config import Config
from maskx_tf.errors import UserError
from maskx_tf.layers import choices, convolution, initializers, mask_branches
from maskx_tf.layers.box_head import DELTA_WEIGHTS, box_head_name
from maskx_tf.layers.convolution import Conv2D
from maskx_tf.layers.fpn import FPN
from maskx_tf.layers.mask_head import MaskHead
from maskx_tf.layers.mask_iou_head import MaskIoUHead
from maskx_tf.layers.point_head import PointHead
from maskx_tf.layers.rpn import RPN
from maskx_tf.layers.semantic_head import Pixels
from maskx_tf.layers.weight_transfer import LearnedMaskWeights, WeightTransfer
from maskx_tf.model import MaskXRCNN

# What Keras calls each `config.precision`.
POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}


def _check_groups(config: Config, num_classes: int) -> None:
    sizes = config.class_groups
    if sizes and (sum(sizes) != num_classes or min(sizes) < 1):
        raise UserError(
            f"--class_groups={','.join(map(str, sizes))} are {sum(sizes)} classes, but the "
            f"vocabulary has {num_classes}."
        )
    if sizes and config.max_detections % len(sizes):
        raise UserError(
            f"--max_detections={config.max_detections} must be a multiple of {len(sizes)}, the "
            "number of --class_groups that share it."
        )


def _embedding_rows(embeddings: np.ndarray | None, num_classes: int) -> tf.Variable:
    """The fixed class embeddings with a zero row for the background, [K + 1, D]."""
    if embeddings is None or embeddings.ndim != 2 or len(embeddings) != num_classes:
        shape = None if embeddings is None else embeddings.shape
        raise UserError(
            f"The class vectors that T takes have shape {shape}; there must be one row for "
            f"each of the {num_classes} classes, in vocabulary order."
        )
    rows = np.pad(embeddings.astype(np.float32), [[1, 0], [0, 0]])
    return tf.Variable(rows, trainable=False, name="embeddings")


def _chosen(constructor: str, config: Config, option: str, **kwargs: Any) -> Any:
    """The layer that an option chose, made with the options that its constructor asks for.

    Parameter `width` of a backbone is --backbone_width or, if there is no such option, --width.

    Args:
      constructor: of `choices`.
      config: where the options are read.
      option: what comes before the names of the options that are the layer's own.
      **kwargs: further arguments.
    """
    create, values = choices.load(constructor), vars(config)
    for parameter in inspect.signature(create).parameters:
        for name in (f"{option}_{parameter}", parameter):
            if name in values:
                kwargs.setdefault(parameter, values[name])
    return create(**kwargs)


def assemble(
    config: Config, num_classes: int, embeddings: np.ndarray | None = None, **parts: Any
) -> MaskXRCNN:
    """The model of `build_model`, its weights not created yet.

    The order in which layers are made decides which random numbers of a seed each of them gets.
    """
    _check_groups(config, num_classes)
    backbone = parts.get("backbone") or _chosen(
        choices.BACKBONES[config.backbone].constructor, config, "backbone", name="backbone"
    )
    levels = tuple(level for level in backbone.levels if level >= config.min_level)
    chosen = {
        "backbone": backbone,
        "fpn": FPN(levels, config.max_level, config.fpn_filters, name="fpn"),
        "rpn": RPN(
            config.rpn_filters,
            config.anchor_size,
            config.anchor_ratios,
            config.anchor_offset,
            config.rpn_nms_iou,
            config.conventions,
            name="rpn",
        ),
        "box_heads": [
            _chosen(
                choices.BOX_HEADS[config.box_head],
                config,
                "box",
                num_classes=num_classes,
                units=config.box_fc_units,
                groups=config.class_groups,
                positive_iou=positive_iou,
                delta_weights=tuple(stage * weight for weight in DELTA_WEIGHTS),
                name=box_head_name(stage),
            )
            for stage, positive_iou in enumerate(
                config.cascade_ious or [config.roi_positive_iou], start=1
            )
        ],
    }
    if config.semantic_head != "none":
        chosen |= _semantic_parts(config, num_classes, levels)
    chosen["mask_head"] = parts.get("mask_head") or chosen.get("mask_head") or _mask_head(config)
    chosen["mask_weights"] = _mask_weights(config, num_classes, chosen["mask_head"].body.filters)
    if config.has_point_head:
        chosen["point_head"] = PointHead(config.point_units, name="point_head")
        length = chosen["point_head"].filters
        chosen["point_weights"] = _class_weights(config, config.point_head, length, "point")
    if config.has_mask_scoring:
        units = config.mask_scoring_units
        chosen["mask_iou_head"] = MaskIoUHead(config.mask_filters, units, name="mask_iou_head")
        chosen["mask_iou_weights"] = _class_weights(config, config.mask_scoring, units, "mask_iou")
    if config.transfer_input == "embedding":
        chosen["embeddings"] = _embedding_rows(embeddings, num_classes)
    return MaskXRCNN(config, num_classes, **(chosen | parts))


def _mask_head(config: Config) -> MaskHead:
    choice = choices.MASK_BODIES[config.mask_body]
    body = _chosen(choice.constructor, config, "mask", name="body")
    branches = [mask_branches.MLP(name="mlp")] if config.mask_mlp and choice.has_pixels else []
    return MaskHead(body, branches, "coords" in config.mask_branches, name="mask_head")


def _semantic_parts(
    config: Config, num_classes: int, levels: tuple[int, ...]
) -> dict[str, tf_keras.layers.Layer]:
    constructor = choices.SEMANTIC_HEADS[config.semantic_head].constructor
    head = _chosen(constructor, config, "mask", levels=levels, name="semantic_head")
    parts = {"semantic_head": head}
    if not config.has_mask_head:
        body = Pixels(head.filters, upsampling=1, name="body")
        return parts | {"mask_head": MaskHead(body, name="mask_head")}
    initializer = initializers.xavier_fill()
    parts["semantic_embedding"] = Conv2D(
        config.fpn_filters, 1, kernel_initializer=initializer, name="semantic_embedding"
    )
    names = ("semantic_transfer", "semantic_weights")
    parts["semantic_weights"] = _mask_weights(config, num_classes, head.filters, *names)
    return parts


def _mask_weights(
    config: Config,
    num_classes: int,
    filters: int,
    transfer: str = "weight_transfer",
    learned: str = "mask_weights",
) -> WeightTransfer | LearnedMaskWeights:
    if config.mask_output == "transfer":
        return _transfer(config, filters, transfer)
    rows = 1 if config.mask_output == "class_agnostic" else num_classes + 1
    return LearnedMaskWeights(rows, filters, name=learned)


def _class_weights(
    config: Config, output: str, length: int, name: str
) -> WeightTransfer | LearnedMaskWeights:
    """The kernels of a head whose last layer is `agnostic` or by `transfer`."""
    if output == "transfer":
        return _transfer(config, length, f"{name}_transfer")
    return LearnedMaskWeights(1, length, name=f"{name}_weights")


def _transfer(config: Config, length: int, name: str) -> WeightTransfer:
    return WeightTransfer(
        length,
        config.transfer_layers,
        config.transfer_units,
        config.transfer_activation,
        config.transfer_stop_gradient,
        name=name,
    )


def build_model(
    config: Config, num_classes: int, embeddings: np.ndarray | None = None, **parts: Any
) -> MaskXRCNN:
    """The model with all its weights created; the same seed gives the same weights.

    With a `config.precision` other than float32 the convolutions and fully connected layers
    compute in it. Weights, boxes, RoIAlign, class and box outputs, NMS and losses are float32.

    Args:
      config: its options.
      num_classes: K, without background.
      embeddings: [K, D], needed with transfer_input=embedding; see `data.word_vectors`.
      **parts: of `MaskXRCNN`, in place of those that the options choose.
    """
    tf_keras.utils.set_random_seed(config.seed)
    side = 2 ** max(5, config.max_level)
    images, sizes = tf.zeros([1, side, side, 3]), tf.fill([1, 2], float(side))
    before = tf_keras.mixed_precision.global_policy()
    tf_keras.mixed_precision.set_global_policy(POLICIES[config.precision])
    try:  # layers take the policy over when they are made
        with convolution.algorithm(config.convolutions):
            model = assemble(config, num_classes, embeddings, **parts)
            model(images, sizes)
            if model.semantic_weights is not None:  # which detections do without
                model.semantic_weights.kernels(tf.ones([1], tf.int32), model.w_det)
    finally:
        tf_keras.mixed_precision.set_global_policy(before)
    return model


def rebuilt(model: MaskXRCNN, config: Config) -> MaskXRCNN:
    """The model's weights under other options, of those that leave the variables as they are."""
    weights = model.get_weights()
    other = build_model(config, model.num_classes, model.class_embeddings)
    other.set_weights(weights)
    return other
