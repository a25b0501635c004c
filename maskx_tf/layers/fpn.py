"""Feature pyramid network (as in the paper: no normalisation, P6 by subsampling P5)."""

import tensorflow as tf
import tf_keras

from maskx_tf.layers import initializers
from maskx_tf.layers.convolution import Conv2D


class FPN(tf_keras.layers.Layer):
    """Top-down pyramid over backbone features.

    Args:
      backbone_levels: levels of the backbone features used, ascending, e.g. (2, 3, 4, 5).
      max_level: coarsest level of the output; levels above the backbone's are subsampled by 2.
      filters: channels of every output level.
    """

    def __init__(
        self,
        backbone_levels: tuple[int, ...],
        max_level: int,
        filters: int,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.backbone_levels, self.max_level = backbone_levels, max_level
        levels = [str(level) for level in backbone_levels]

        def conv(size: int, name: str) -> Conv2D:
            return Conv2D(
                filters,
                size,
                kernel_initializer=initializers.xavier_fill(),
                name=name,
            )

        self.laterals = {level: conv(1, f"lateral{level}") for level in levels}
        self.outputs = {level: conv(3, f"output{level}") for level in levels}

    def call(self, features: dict[int, tf.Tensor]) -> dict[int, tf.Tensor]:
        """{level: [B, H_l, W_l, C_l]} -> {level: [B, H_l, W_l, filters]} up to max_level."""
        pyramid: dict[int, tf.Tensor] = {}
        inner = None
        for level in reversed(self.backbone_levels):
            lateral = self.laterals[str(level)](features[level])
            inner = lateral if inner is None else lateral + _upsample(inner)
            pyramid[level] = self.outputs[str(level)](inner)
        for level in range(self.backbone_levels[-1] + 1, self.max_level + 1):
            pyramid[level] = pyramid[level - 1][:, ::2, ::2, :]
        return dict(sorted(pyramid.items()))


def _upsample(x: tf.Tensor) -> tf.Tensor:
    """Nearest-neighbour upsampling by 2. [B, H, W, C] -> [B, 2 H, 2 W, C]."""
    return tf.repeat(tf.repeat(x, 2, axis=1), 2, axis=2)
