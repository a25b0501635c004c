"""A fully connected body: the head of DeepMask, Pinheiro et al., NIPS 2015."""

import tensorflow as tf
import tf_keras

from maskx_tf.layers import initializers
from maskx_tf.layers.backbone import ConvNorm
from maskx_tf.layers.mask_bodies.body import Body


class MLP(Body):
    """A code of the RoI, and from it all pixels at once: a class's kernel gates the code.

    1x1 convolution to C / 4 channels with ReLU, a linear layer to the code h [C], and one to the
    mask: W (g * h) + b, g = 1 + kernel. The 1 is DeepMask's class-agnostic mask.

    Args:
      filters: C, published 512.
      upsampling: u.
      norm: of the convolution, see `body.Deconvolution`; published without.
      mlp: whether there is a 1 in g: it is what the branch of other bodies is, --mask_mlp.
    """

    def __init__(
        self,
        filters: int = 512,
        upsampling: int = 2,
        norm: str = "none",
        mlp: bool = True,
        **kwargs,
    ):
        super().__init__(filters, upsampling, norm, **kwargs)
        self.reduce = ConvNorm(max(1, filters // 4), 1, 1, norm, name="reduce")
        self.code = tf_keras.layers.Dense(
            filters, kernel_initializer=initializers.xavier_fill(), name="code"
        )
        self.agnostic = float(mlp)

    def build(self, input_shape) -> None:
        """Makes the last layer, which `logits` calls: its size depends on the side."""
        pixels = (self.upsampling * input_shape[1]) ** 2
        self.pixels = tf_keras.layers.Dense(
            pixels, kernel_initializer=initializers.gaussian_fill(0.001), name="pixels"
        )
        with tf.name_scope(self.pixels.name):
            self.pixels.build([None, self.filters])
        super().build(input_shape)

    def call(self, roi_features: tf.Tensor, training: bool = False) -> tf.Tensor:
        """RoI features [N, S, S, C'] -> codes [N, C]."""
        x = self.reduce(roi_features)
        return self.code(tf.reshape(x, [-1, x.shape[1] * x.shape[2] * x.shape[3]]))

    def logits(self, x: tf.Tensor, kernels: tf.Tensor) -> tf.Tensor:
        """Codes [N, C] and a kernel for each RoI [N, C] -> float32 [N, u S, u S]."""
        gates = self.agnostic + tf.cast(kernels, x.dtype)
        logits = tf.cast(self.pixels(gates * x), tf.float32)
        side = round(self.pixels.units**0.5)
        return tf.reshape(logits, [-1, side, side])
