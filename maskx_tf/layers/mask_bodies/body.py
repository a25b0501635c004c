"""What all bodies of the mask head have in common, and the upsampling at their end."""

import math

import tensorflow as tf
import tf_keras

from maskx_tf.layers import initializers
from maskx_tf.layers.backbone import ConvNorm, normalization_layer
from maskx_tf.layers.convolution import Conv2D


class Body(tf_keras.layers.Layer):
    """RoI features [N, S, S, C'] -> pixel features [N, S, S, u, u, C].

    There are u x u pixels for each cell of the RoI, so that what upsamples does not have to put
    pixels in order: `in_rows` does, once. A body that puts them in order itself returns
    [N, u S, u S, 1, 1, C]. `call` takes `training`, which Keras hands on to the layers within.

    Args:
      filters: C, the length of a class's kernel.
      upsampling: u, a power of 2: side of the mask over side of the RoI.
      norm: of the layers, see `Deconvolution`.
    """

    def __init__(self, filters: int = 256, upsampling: int = 2, norm: str = "none", **kwargs):
        super().__init__(**kwargs)
        self.filters, self.upsampling, self.norm = filters, upsampling, norm

    def logits(self, x: tf.Tensor, kernels: tf.Tensor) -> tf.Tensor:
        """What `call` returned and a kernel for each RoI, [N, C] -> float32 [N, u S, u S]."""
        cells, channels = x.shape[1:5], x.shape[5]
        pixels = tf.reshape(x, [tf.shape(x)[0], cells.num_elements(), channels])
        logits = tf.cast(tf.linalg.matvec(pixels, tf.cast(kernels, x.dtype)), tf.float32)
        return in_rows(tf.reshape(logits, [-1, *cells]))

    def add_deconvolutions(self) -> None:
        """Makes the layers of `upsample`: `deconv`, `deconv2`, …, each for a factor of 2."""
        for name in self._deconvolution_names():
            setattr(self, name, Deconvolution(self.filters, self.norm, name=name))

    def _deconvolution_names(self) -> list[str]:
        count = int(math.log2(self.upsampling))
        return ["deconv", *(f"deconv{i}" for i in range(2, count + 1))][:count]

    @property
    def deconvolutions(self) -> list["Deconvolution"]:
        """The layers of `upsample`; checkpoints know them by their names alone."""
        return [getattr(self, name) for name in self._deconvolution_names()]

    def upsample(self, x: tf.Tensor) -> tf.Tensor:
        """[N, S, S, C'] -> [N, S, S, u, u, C]."""
        x = x[:, :, :, None, None]
        for layer in self.deconvolutions:
            x = layer(x)
        return x


class Deconvolution(tf_keras.layers.Layer):
    """2x2 deconvolution of stride 2 with ReLU, on cells.

    It writes no pixel twice: it is a matrix product, which is faster than the gradient of a
    convolution.

    Args:
      filters: C.
      norm: `none`, which has a bias, or one of `backbone.normalization_layer`.
    """

    def __init__(self, filters: int, norm: str = "none", **kwargs):
        super().__init__(**kwargs)
        self.filters, self.initializer = filters, initializers.msra_fill()
        self.norm = None if norm == "none" else normalization_layer(norm, "norm")

    def build(self, input_shape) -> None:
        """Creates the kernel in the shape of Keras' deconvolution."""
        shape = [2, 2, self.filters, input_shape[-1]]
        self.kernel = self.add_weight("kernel", shape, initializer=self.initializer)
        if self.norm is None:
            self.bias = self.add_weight("bias", [self.filters], initializer="zeros")
        else:
            with tf.name_scope(self.norm.name):
                self.norm.build([None, None, None, self.filters])
        super().build(input_shape)

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """[N, S, S, u, u, C'] -> [N, S, S, 2u, 2u, C]."""
        side, factor, channels = x.shape[1], x.shape[3], x.shape[5]
        kernel = tf.cast(self.kernel, x.dtype)  # [2, 2, C, C']
        kernel = tf.reshape(tf.transpose(kernel, [3, 0, 1, 2]), [channels, 4 * self.filters])
        x = tf.matmul(tf.reshape(x, [-1, channels]), kernel)
        if self.norm is None:
            x = tf.reshape(x, [-1, self.filters]) + tf.cast(self.bias, x.dtype)
        else:
            pixels = tf.reshape(x, [-1, side, side * (2 * factor) ** 2, self.filters])
            x = tf.cast(self.norm(pixels, training=training), x.dtype)
        x = tf.nn.relu(x)
        if factor == 1:
            return tf.reshape(x, [-1, side, side, 2, 2, self.filters])
        x = tf.reshape(x, [-1, side, side, factor, factor, 2, 2, self.filters])
        x = tf.transpose(x, [0, 1, 2, 3, 5, 4, 6, 7])
        return tf.reshape(x, [-1, side, side, 2 * factor, 2 * factor, self.filters])


def convolution(filters: int, norm: str, name: str) -> tf_keras.layers.Layer:
    """A 3x3 convolution with ReLU, and between them a bias (`none`) or a normalisation."""
    if norm != "none":
        return ConvNorm(filters, 3, 1, norm, name=name)
    initializer = initializers.msra_fill()
    return Conv2D(filters, 3, activation="relu", kernel_initializer=initializer, name=name)


def in_rows(x: tf.Tensor) -> tf.Tensor:
    """The pixels of cells in order: [N, S, S, u, u, …] -> [N, u S, u S, …]."""
    side, factor, others = x.shape[1], x.shape[3], x.shape[5:]
    if factor == 1:
        return tf.squeeze(x, axis=(3, 4))
    x = tf.transpose(x, [0, 1, 3, 2, 4, *range(5, x.shape.rank)])
    return tf.reshape(x, [-1, factor * side, factor * side, *others])
