"""Branches of the mask head: what it is told beside the RoI features, or adds to the logits."""

import tensorflow as tf
import tf_keras

from maskx_tf.layers import initializers


def with_coordinates(roi_features: tf.Tensor) -> tf.Tensor:
    """RoI features [N, S, S, C] with y and x as channels, from -1 to 1: [N, S, S, C + 2]."""
    count, side = tf.shape(roi_features)[0], roi_features.shape[1]
    places = tf.linspace(-1.0, 1.0, side)
    y_x = tf.stack(tf.meshgrid(places, places, indexing="ij"), axis=-1)  # [S, S, 2]
    y_x = tf.tile(tf.cast(y_x, roi_features.dtype)[None], [count, 1, 1, 1])
    return tf.concat([roi_features, y_x], axis=-1)


def class_prior(activations: tf.Tensor, size: int) -> tf.Tensor:
    """Class activation maps as a prior of masks: each from 0 to 1, and of another side.

    Args:
      activations: float [N, s, s].
      size: side of the prior.

    Returns:
      float32 [N, size, size]; zeros of a constant map.
    """
    low = tf.reduce_min(activations, axis=[1, 2], keepdims=True)
    high = tf.reduce_max(activations, axis=[1, 2], keepdims=True)
    scaled = (activations - low) / tf.maximum(high - low, 1e-6)
    return tf.image.resize(scaled[..., None], [size, size])[..., 0]


class MLP(tf_keras.layers.Layer):
    """One linear layer from all pixel features to the map, class-agnostic (paper §3.4)."""

    def build(self, input_shape) -> None:
        """Creates the weights for pixel features [N, m, m, C]."""
        _, height, width, channels = input_shape
        pixels = height * width
        self.mlp_dense = tf_keras.layers.Dense(
            pixels, kernel_initializer=initializers.gaussian_fill(0.001)
        )
        self.mlp_dense.build([None, pixels * channels])
        super().build(input_shape)

    def call(self, pixels: tf.Tensor) -> tf.Tensor:
        """Pixel features [N, m, m, C] -> what is added to the logits, [N, m, m]."""
        count, (height, width, channels) = tf.shape(pixels)[0], pixels.shape[1:]
        flat = tf.reshape(pixels, [count, height * width * channels])
        return tf.reshape(self.mlp_dense(flat), [count, height, width])
