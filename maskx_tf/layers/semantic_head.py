"""Semantic heads: features of the image's pixels, of which a class's kernel makes its map.

Each is a layer {level: [B, H_l, W_l, C']} -> [B, H, W, C] of stride 2**level, with attributes
`level` and `filters`, C. The score of class c at a pixel is w_c · features + b_c: a 1x1 convolution
to K classes, of which only those that are asked for are computed. What the published heads do with
maps of classes, upsampling and sums, is linear and so the same for features.

A file or class here and a line in `choices.SEMANTIC_HEADS` make it a choice.
"""

import functools
from collections.abc import Callable, Sequence

import tensorflow as tf
import tf_keras

from maskx_tf.layers.backbone import ConvNorm
from maskx_tf.layers.mask_bodies import aspp, gcn
from maskx_tf.layers.mask_bodies.body import Body

# Sides of photos, in pixels, that DeepLab's rates are for.
DEEPLAB_SIDE = 513


class FCN(tf_keras.layers.Layer):
    """Long et al., CVPR 2015: a score of the coarsest level, to which finer ones are added.

    The coarsest level passes a 3x3 and a 1x1 convolution with ReLU; published are 7x7 and 1x1,
    VGG's classifier. From there on all is linear: bilinear upsampling by 2, plus a 1x1 of the next
    level, which is zero at first.

    Args:
      count: levels that it sees: 1 of FCN-32s, 2 of 16s, 3 of 8s.
      levels: of the pyramid, ascending.
      filters: C.
      norm: of the convolutions with ReLU, see `mask_bodies.body.Deconvolution`; published without.
    """

    def __init__(
        self, count: int, levels: Sequence[int], filters: int = 256, norm: str = "none", **kwargs
    ):
        super().__init__(**kwargs)
        self.level, *_ = self.levels = tuple(levels[-count:])
        self.filters = filters
        self.coarsest = [
            ConvNorm(filters, 3, 1, norm, name="fc6"),
            ConvNorm(filters, 1, 1, norm, name="fc7"),
        ]
        self.skips = {
            str(level): ConvNorm(
                filters, 1, 1, "none", relu=False, initializer="zeros", name=f"skip{level}"
            )
            for level in self.levels[:-1]
        }

    def call(self, pyramid: dict[int, tf.Tensor], training: bool = False) -> tf.Tensor:
        """{level: [B, H_l, W_l, C']} -> [B, H, W, C]."""
        x = pyramid[self.levels[-1]]
        for layer in self.coarsest:
            x = layer(x)
        for level in reversed(self.levels[:-1]):
            x = upsample(x) + self.skips[str(level)](pyramid[level])
        return x


class DeepLab(tf_keras.layers.Layer):
    """Chen et al., 2016 and 2017: an atrous spatial pyramid on the coarsest level, ASPP.

    Args:
      body: the ASPP, see `mask_bodies.aspp`.
      rates: its published ones, at `stride`.
      stride: see `rates`.
      levels: of the pyramid, ascending.
      image_max_side: longest side of an image, pixels: rates are in proportion below 513.
      filters: C.
      norm: of all layers, see `mask_bodies.body.Deconvolution`.
    """

    def __init__(
        self,
        body: Callable[..., Body],
        rates: Sequence[int],
        stride: int,
        levels: Sequence[int],
        image_max_side: int,
        filters: int = 256,
        norm: str = "none",
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.level, self.filters = levels[-1], filters
        scale = stride / 2**self.level * min(1.0, image_max_side / DEEPLAB_SIDE)
        scaled = [max(1, round(rate * scale)) for rate in rates]
        self.aspp = body(filters, 1, norm, rates=scaled, name="aspp")

    def call(self, pyramid: dict[int, tf.Tensor], training: bool = False) -> tf.Tensor:
        """{level: [B, H_l, W_l, C']} -> [B, H, W, C]."""
        return self.aspp(pyramid[self.level])[:, :, :, 0, 0]


class GCN(tf_keras.layers.Layer):
    """Peng et al., CVPR 2017: large kernels on each level, refined and added from coarse to fine.

    Args:
      levels: of the pyramid, ascending.
      filters: C; published as many as there are classes.
      kernel: k, odd.
      norm: see `mask_bodies.body.Deconvolution`; published without.
    """

    def __init__(
        self,
        levels: Sequence[int],
        filters: int = 64,
        kernel: int = 13,
        norm: str = "none",
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.levels, self.level, self.filters = tuple(levels), levels[0], filters
        self.blocks = {
            str(level): gcn.GCN(filters, kernel, 1, norm, name=f"gcn{level}") for level in levels
        }
        self.refinements = {
            str(level): gcn.BoundaryRefinement(filters, norm, name=f"refinement{level}")
            for level in levels[:-1]
        }

    def call(self, pyramid: dict[int, tf.Tensor], training: bool = False) -> tf.Tensor:
        """{level: [B, H_l, W_l, C']} -> [B, H, W, C]."""
        x = None
        for level in reversed(self.levels):
            block = self.blocks[str(level)](pyramid[level])[:, :, :, 0, 0]
            x = block if x is None else self.refinements[str(level)](upsample(x) + block)
        return x


class Pixels(Body):
    """RoI features as they are, as a mask body: a class's kernel makes its map of them."""

    def call(self, roi_features: tf.Tensor, training: bool = False) -> tf.Tensor:
        """[N, m, m, C] -> [N, m, m, 1, 1, C]."""
        return roi_features[:, :, :, None, None]


def upsample(x: tf.Tensor) -> tf.Tensor:
    """Bilinear by 2: [B, H, W, C] -> [B, 2 H, 2 W, C].

    Inside, it is the deconvolution with a bilinear kernel that FCN begins with; at the border it
    goes on with the border's values, where a deconvolution would fall off to 0.
    """
    _, height, width, _ = tf.unstack(tf.shape(x))
    resized = tf.image.resize(x, [2 * height, 2 * width])
    return tf.ensure_shape(tf.cast(resized, x.dtype), [*x.shape[:1], None, None, x.shape[3]])


fcn32s, fcn16s, fcn8s = (functools.partial(FCN, count) for count in (1, 2, 3))
deeplab_v2 = functools.partial(DeepLab, aspp.ASPPv2, (6, 12, 18, 24), 8)
deeplab_v3 = functools.partial(DeepLab, aspp.ASPPv3, (6, 12, 18), 16)
