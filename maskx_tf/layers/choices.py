"""The layers that an option chooses by name: where each is, and what `config` has to know of it.

A new one is a file of its own and a line here. It takes its options as parameters of their names:
`filters` of a mask body is --mask_filters, see `assembly.assemble`. Nothing here imports
TensorFlow, so that options are checked, and `--help` answers, at once.
"""

import importlib
from collections.abc import Callable
from typing import NamedTuple


class Backbone(NamedTuple):
    """A backbone: images [B, H, W, 3] -> {level: [B, H / 2**level, W / 2**level, C_level]}.

    Attributes:
      constructor: `module:name` of what makes the layer; the layer has `levels`, which ascend.
      last_stage: the last of its levels; the first is 2.
    """

    constructor: str
    last_stage: int


class MaskBody(NamedTuple):
    """A body of the mask head, see `mask_bodies.body.Body`.

    Attributes:
      constructor: `module:name` of what makes the layer.
      divisor: what the side of the RoI features must be a multiple of.
      has_pixels: whether it returns pixel features, which branches can read.
    """

    constructor: str
    divisor: int = 1
    has_pixels: bool = True


class SemanticHead(NamedTuple):
    """A head of whole images, see `semantic_head`.

    Attributes:
      constructor: `module:name` of what makes the layer.
      levels: how many levels that the backbone has it needs at least.
    """

    constructor: str
    levels: int = 1


BACKBONES = {
    "resnet50": Backbone("maskx_tf.layers.backbone:resnet50", last_stage=5),
    "resnet101": Backbone("maskx_tf.layers.backbone:resnet101", last_stage=5),
    "small": Backbone("maskx_tf.layers.backbone:small", last_stage=4),
}
MASK_BODIES = {
    "fcn": MaskBody("maskx_tf.layers.mask_bodies.fcn:FCN"),
    "mlp": MaskBody("maskx_tf.layers.mask_bodies.mlp:MLP", has_pixels=False),
    "hourglass10": MaskBody("maskx_tf.layers.mask_bodies.hourglass:hourglass10", divisor=2),
    "hourglass20": MaskBody("maskx_tf.layers.mask_bodies.hourglass:hourglass20", divisor=4),
    "hourglass32": MaskBody("maskx_tf.layers.mask_bodies.hourglass:hourglass32", divisor=8),
    "hourglass52": MaskBody("maskx_tf.layers.mask_bodies.hourglass:hourglass52", divisor=32),
    "hourglass100": MaskBody("maskx_tf.layers.mask_bodies.hourglass:hourglass100", divisor=32),
    "aspp": MaskBody("maskx_tf.layers.mask_bodies.aspp:ASPPv3"),
    "aspp_v2": MaskBody("maskx_tf.layers.mask_bodies.aspp:ASPPv2"),
    "gcn": MaskBody("maskx_tf.layers.mask_bodies.gcn:GCN"),
    "fcis": MaskBody("maskx_tf.layers.mask_bodies.fcis:FCIS", divisor=7, has_pixels=False),
}
SEMANTIC_HEADS = {
    "fcn32s": SemanticHead("maskx_tf.layers.semantic_head:fcn32s"),
    "fcn16s": SemanticHead("maskx_tf.layers.semantic_head:fcn16s", levels=2),
    "fcn8s": SemanticHead("maskx_tf.layers.semantic_head:fcn8s", levels=3),
    "deeplab_v2": SemanticHead("maskx_tf.layers.semantic_head:deeplab_v2"),
    "deeplab_v3": SemanticHead("maskx_tf.layers.semantic_head:deeplab_v3"),
    "gcn": SemanticHead("maskx_tf.layers.semantic_head:GCN"),
}
# Layers as `box_head.BoxHead`; one with `class_activations` can tell the mask head of them. That of
# `mnc` is told the masks of its RoIs (`MaskXRCNN.box_features`).
BOX_HEADS = {
    "fc": "maskx_tf.layers.box_head:BoxHead",
    "conv": "maskx_tf.layers.conv_box_head:ConvBoxHead",
    "mnc": "maskx_tf.layers.mnc_box_head:MNCBoxHead",
}
# Functions with the arguments of `roi_align.roi_align`.
ROI_OPERATORS = {
    "align": "maskx_tf.layers.roi_align:roi_align",
    "pool": "maskx_tf.layers.roi_pooling:roi_pool",
    "warp": "maskx_tf.layers.roi_pooling:roi_warp",
    "average": "maskx_tf.layers.roi_pooling:roi_average",
}


def load(constructor: str) -> Callable:
    """What a constructor's `module:name` stands for."""
    module, _, name = constructor.partition(":")
    return getattr(importlib.import_module(module), name)
