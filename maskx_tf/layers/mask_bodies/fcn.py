"""The published body of the mask head: convolutions and a deconvolution."""

import tensorflow as tf
import tf_keras

from maskx_tf.layers import initializers
from maskx_tf.layers.convolution import Conv2D


class FCN(tf_keras.layers.Layer):
    """3x3 convolutions and a 2x2 deconvolution of stride 2, each with a ReLU (paper §3.4).

    Args:
      filters: C, channels of all layers.
      convs: number of 3x3 convolutions.
    """

    upsampling = 2

    def __init__(self, filters: int = 256, convs: int = 4, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.convs = [
            Conv2D(
                filters,
                3,
                activation="relu",
                kernel_initializer=initializers.msra_fill(),
                name=f"conv{i}",
            )
            for i in range(1, convs + 1)
        ]
        self.deconv = tf_keras.layers.Conv2DTranspose(
            filters,
            2,
            2,
            activation="relu",
            kernel_initializer=initializers.msra_fill(),
            name="deconv",
        )

    def build(self, input_shape) -> None:
        """Creates the weights of all layers; the deconvolution is not called as one."""
        shape = list(input_shape)
        for layer in (*self.convs, self.deconv):
            with tf.name_scope(layer.name):
                layer.build(shape)
            shape[-1] = self.filters
        super().build(input_shape)

    def call(self, roi_features: tf.Tensor) -> tf.Tensor:
        """RoI features [N, S, S, C'] -> pixel features [N, S, S, 2, 2, C].

        A deconvolution of stride 2 with a 2 x 2 kernel writes no pixel twice: it is a matrix
        product, which is faster than the gradient of a convolution.
        """
        x = roi_features
        for conv in self.convs:
            x = conv(x)
        side, channels = x.shape[1], x.shape[3]
        kernel = tf.cast(self.deconv.kernel, x.dtype)  # [2, 2, C, C']
        kernel = tf.reshape(tf.transpose(kernel, [3, 0, 1, 2]), [channels, 4 * self.filters])
        x = tf.matmul(tf.reshape(x, [-1, channels]), kernel)
        x = tf.reshape(x, [-1, side, side, 2, 2, self.filters])
        return tf.nn.relu(x + tf.cast(self.deconv.bias, x.dtype))
