"""What follows from a model's weights, computed once: faster, for inference."""

import tensorflow as tf

from maskx_tf.layers import backbone, convolution
from maskx_tf.model import MaskXRCNN


def fold(model: MaskXRCNN) -> None:
    """Keeps the outputs of T, batch norms within kernels, and the kernels' transforms."""
    fold_transfer(model)
    for layer in model.submodules:
        if isinstance(layer, backbone.ConvNorm | convolution.Conv2D):
            layer.fold()


def fold_transfer(model: MaskXRCNN) -> None:
    """Evaluates each T once for all classes; from then on masks use that table."""
    # Group by group: a group's rows do not depend, in any bit, on what was added after it.
    first, *added = model.box_head.groups
    ranges = [tf.range(first.stop), *(tf.range(g.start, g.stop) for g in added)]
    for transfer in model.transfers:
        transfer.fold(tf.concat([transfer(model.w_det(classes)) for classes in ranges], axis=0))
