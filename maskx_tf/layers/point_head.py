"""PointRend's point head: a mask's logits at single points, out of the finest features there."""

from typing import NamedTuple

import tensorflow as tf
import tf_keras

from maskx_tf.layers import initializers
from maskx_tf.ops import points


class FineFeatures(NamedTuple):
    """What the points of R masks are seen in."""

    features: tf.Tensor  # [B, H, W, C], the finest level of the pyramid
    regions_yxyx: tf.Tensor  # float32 [R, 4], what the masks reach over, in cells of `features`
    image_indices: tf.Tensor  # int32 [R] into B

    def sample(self, shares_yx: tf.Tensor) -> tf.Tensor:
        """Features at points [R, P, 2], shares of the masks' sides -> float32 [R, P, C]."""
        top_left, bottom_right = tf.split(self.regions_yxyx[:, None], 2, axis=-1)  # [R, 1, 2]
        cells = top_left + shares_yx * (bottom_right - top_left)
        return points.sample(self.features, cells, self.image_indices)


class PointHead(tf_keras.layers.Layer):
    """Fully connected layers, the same for all points, each of which sees the coarse logit too.

    As in PointRend (Kirillov et al., CVPR 2020), but for the coarse logit: it is that of the RoI's
    class alone, and not one for each class. So is the kernel that ends the head.

    Args:
      units: of each layer.
      layers: how many.
    """

    def __init__(self, units: int = 256, layers: int = 3, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.dense = [
            tf_keras.layers.Dense(
                units, "relu", kernel_initializer=initializers.msra_fill(), name=f"fc{i}"
            )
            for i in range(1, layers + 1)
        ]

    @property
    def filters(self) -> int:
        """Length of a class's kernel: the coarse logit counts as a feature."""
        return self.units + 1

    def call(
        self,
        features: tf.Tensor,
        coarse: tf.Tensor,
        kernels: tf.Tensor,
        biases: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Mask logits of points, each for the class of its RoI.

        Args:
          features: [R, P, C], the finest level's at the points.
          coarse: [R, P], the mask head's logits there.
          kernels: of each RoI's class, [R, filters].
          biases: [R], or None as with T, which predicts none.

        Returns:
          float32 [R, P].
        """
        coarse = tf.cast(coarse, features.dtype)[..., None]
        x = tf.concat([features, coarse], axis=-1)
        for layer in self.dense:
            x = tf.concat([layer(x), coarse], axis=-1)
        logits = tf.cast(tf.linalg.matvec(x, tf.cast(kernels, x.dtype)), tf.float32)
        return logits if biases is None else logits + tf.cast(biases, tf.float32)[:, None]
