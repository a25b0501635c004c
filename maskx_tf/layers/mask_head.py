"""Mask head: the FCN trunk, the per-class 1x1 predictor and the class-agnostic MLP branch."""

import tensorflow as tf
import tf_keras

from maskx_tf.layers import initializers
from maskx_tf.layers.convolution import Conv2D


class MaskHead(tf_keras.layers.Layer):
    """One mask per RoI, for one class each (paper §3.2 and §3.4).

    The kernel of the RoI's class is an input, so only one map per RoI is ever computed, whatever
    the number of classes: loss, gradient and result equal those of the K-channel convolution.

    Args:
      filters: C, channels of the trunk.
      convs: number of 3x3 convolutions before the deconvolution.
      mlp: adds the class-agnostic branch, one linear layer from the whole trunk output to the map.
    """

    def __init__(
        self,
        filters: int = 256,
        convs: int = 4,
        mlp: bool = True,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.filters, self.mlp = filters, mlp
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
        """Creates the MLP branch, whose size depends on the RoI size, and the trunk's weights.

        In this order: it decides which random numbers of a seed each of them gets.
        """
        if self.mlp:
            pixels = 4 * input_shape[1] * input_shape[2]
            self.mlp_dense = tf_keras.layers.Dense(
                pixels, kernel_initializer=initializers.gaussian_fill(0.001), name="mlp"
            )
            with tf.name_scope("mlp"):
                self.mlp_dense.build([None, pixels * self.filters])
        shape = list(input_shape)
        for layer in (*self.convs, self.deconv):  # the last one is not called as a layer
            with tf.name_scope(layer.name):
                layer.build(shape)
            shape[-1] = self.filters
        super().build(input_shape)

    def trunk(self, roi_features: tf.Tensor) -> tf.Tensor:
        """RoI features [N, S, S, C'] -> [N, 2 S, 2 S, C]."""
        return _in_rows(self._cells(roi_features))

    def _cells(self, roi_features: tf.Tensor) -> tf.Tensor:
        """`trunk` cell by cell, [N, S, S, 2, 2, C].

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

    def call(
        self, roi_features: tf.Tensor, kernels: tf.Tensor, biases: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Mask logits of each RoI for its class.

        Args:
          roi_features: [N, S, S, C'].
          kernels: w_seg of each RoI's class, [N, C].
          biases: [N], or None as with T, which predicts none.

        Returns:
          float32 [N, 2 S, 2 S].
        """
        x = self._cells(roi_features)
        count, side = tf.shape(x)[0], x.shape[1]
        pixels = tf.reshape(x, [count, 4 * side * side, self.filters])
        logits = tf.cast(tf.linalg.matvec(pixels, tf.cast(kernels, x.dtype)), tf.float32)
        logits = _in_rows(tf.reshape(logits, [count, side, side, 2, 2]))
        if biases is not None:
            logits += tf.cast(biases, tf.float32)[:, None, None]
        if self.mlp:
            flat = tf.reshape(_in_rows(x), [count, 4 * side * side * self.filters])
            branch = tf.cast(self.mlp_dense(flat), tf.float32)
            logits += tf.reshape(branch, [count, 2 * side, 2 * side])
        return logits


def _in_rows(x: tf.Tensor) -> tf.Tensor:
    """[N, S, S, 2, 2, …] -> [N, 2 S, 2 S, …]."""
    side, others = x.shape[1], x.shape[5:]
    x = tf.transpose(x, [0, 1, 3, 2, 4, *range(5, x.shape.rank)])
    return tf.reshape(x, [-1, 2 * side, 2 * side, *others])
