"""What follows from a model's weights, computed once: faster, for inference."""

import tensorflow as tf

from maskx_tf.layers import backbone, convolution
from maskx_tf.layers.weight_transfer import WeightTransfer
from maskx_tf.model import MaskXRCNN


def fold(model: MaskXRCNN) -> None:
    """Keeps the outputs of T, batch norms within kernels, and the kernels' transforms."""
    fold_transfer(model)
    for layer in model.submodules:
        if isinstance(layer, backbone.ConvNorm | convolution.Conv2D):
            layer.fold()


def fold_transfer(model: MaskXRCNN) -> None:
    """Evaluates T once for all classes; from then on masks use that table."""
    if isinstance(model.mask_weights, WeightTransfer):
        # Group by group: a group's rows do not depend, in any bit, on what was added after it.
        first, *added = model.box_head.groups
        ranges = [tf.range(first.stop), *(tf.range(g.start, g.stop) for g in added)]
        table = tf.concat([model.w_seg(classes) for classes in ranges], axis=0)
        model.mask_weights.fold(table)
