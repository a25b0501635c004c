"""Large kernels and boundary refinement as a body: GCN, Peng et al., CVPR 2017."""

import tensorflow as tf
import tf_keras

from maskx_tf.layers.backbone import ConvNorm
from maskx_tf.layers.mask_bodies.body import Body, in_rows


class GCN(Body):
    """A k x k convolution of two separable paths; boundary refinement before and after upsampling.

    Args:
      filters: C, channels of all layers.
      kernel: k, odd. The paper has up to 15; 13 reaches over the whole of a RoI of side 14.
      upsampling: u.
      norm: see `body.Deconvolution`; published without.
    """

    def __init__(
        self,
        filters: int = 64,
        kernel: int = 13,
        upsampling: int = 2,
        norm: str = "none",
        **kwargs,
    ):
        super().__init__(filters, upsampling, norm, **kwargs)
        tall, wide = (kernel, 1), (1, kernel)
        self.left = [
            ConvNorm(filters, tall, 1, norm, relu=False, name="left1"),
            ConvNorm(filters, wide, 1, norm, relu=False, name="left2"),
        ]
        self.right = [
            ConvNorm(filters, wide, 1, norm, relu=False, name="right1"),
            ConvNorm(filters, tall, 1, norm, relu=False, name="right2"),
        ]
        self.coarse = BoundaryRefinement(filters, norm, name="coarse")
        self.add_deconvolutions()
        self.fine = BoundaryRefinement(filters, norm, name="fine") if upsampling > 1 else None

    def large_kernel(self, x: tf.Tensor) -> tf.Tensor:
        """[N, S, S, C'] -> [N, S, S, C]: the sum of both paths, linear in x without norms."""
        left = self.left[1](self.left[0](x))
        return left + self.right[1](self.right[0](x))

    def call(self, roi_features: tf.Tensor, training: bool = False) -> tf.Tensor:
        """RoI features [N, S, S, C'] -> pixel features in rows, [N, u S, u S, 1, 1, C]."""
        x = in_rows(self.upsample(self.coarse(self.large_kernel(roi_features))))
        if self.fine is not None:
            x = self.fine(x)
        return x[:, :, :, None, None]


class BoundaryRefinement(tf_keras.layers.Layer):
    """x plus two 3x3 convolutions of it with a ReLU between; without norm the identity at first."""

    def __init__(self, filters: int, norm: str, **kwargs):
        super().__init__(**kwargs)
        self.hidden = ConvNorm(filters, 3, 1, norm, name="hidden")
        zeros = "zeros" if norm == "none" else None  # a norm would divide by a deviation of 0
        self.change = ConvNorm(filters, 3, 1, norm, relu=False, initializer=zeros, name="change")

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """[N, m, m, C] -> the same shape."""
        return x + self.change(self.hidden(x))
