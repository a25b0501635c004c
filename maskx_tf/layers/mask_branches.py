"""Branches of the mask head, which add a map of their own to the logits of a RoI's class."""

import tensorflow as tf
import tf_keras

from maskx_tf.layers import initializers


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
