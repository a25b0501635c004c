"""Hourglass bodies, which see the whole object: Deep-MARC, Birodkar et al., ICCV 2021."""

import functools

import tensorflow as tf
import tf_keras

from maskx_tf.layers.backbone import ConvNorm, ResidualBlock
from maskx_tf.layers.mask_bodies.body import Body

# Blocks at each side, which halves from one to the next, and their channels over `filters`.
DEPTHS = {
    10: ((1, 1), (2, 2)),
    20: ((1, 2, 2), (2, 2, 3)),
    32: ((2, 2, 2, 2), (2, 2, 3, 3)),
    52: ((2, 2, 2, 2, 2, 4), (2, 2, 3, 3, 3, 4)),
    100: ((4, 4, 4, 4, 4, 8), (2, 2, 3, 3, 3, 4)),
}


class Hourglass(Body):
    """A residual encoder-decoder between two 3x3 convolutions, then deconvolutions.

    Args:
      depth: a key of `DEPTHS`, the published number of layers.
      filters: channels of first convolution and deconvolutions; those between are multiples of it.
        C is this, or twice it without upsampling. Published: 64, with RoI features of side 32.
      upsampling: u, published 2.
      norm: see `body.Deconvolution`; published with batch norm.
    """

    def __init__(
        self, depth: int, filters: int = 64, upsampling: int = 2, norm: str = "none", **kwargs
    ):
        super().__init__(filters if upsampling > 1 else 2 * filters, upsampling, norm, **kwargs)
        blocks, channels = DEPTHS[depth]
        widths = [filters * factor for factor in channels]
        self.first = ConvNorm(filters, 3, 1, norm, name="first")
        self.widen = _chain("widen", filters, [widths[0]], norm)[0]
        self.encoder_decoder = EncoderDecoder(blocks, widths, norm, name="level1")
        self.last = ConvNorm(widths[0], 3, 1, norm, name="last")
        self.add_deconvolutions()

    def call(self, roi_features: tf.Tensor, training: bool = False) -> tf.Tensor:
        """RoI features [N, S, S, C'] -> pixel features [N, S, S, u, u, C]."""
        x = self.widen(self.first(roi_features))
        return self.upsample(self.last(self.encoder_decoder(x)))


class EncoderDecoder(tf_keras.layers.Layer):
    """One level: blocks at this side, plus what comes back from half of it.

    Args:
      blocks: number of residual blocks at this side and at those below.
      widths: their channels.
      norm: see `Hourglass`.
    """

    def __init__(self, blocks: tuple[int, ...], widths: list[int], norm: str, **kwargs):
        super().__init__(**kwargs)
        count, (width, below, *_) = blocks[0], widths
        self.across = _chain("across", width, [width] * count, norm)
        self.down = _chain("down", width, [below] * count, norm, stride=2)
        if len(blocks) > 2:
            self.inner = [EncoderDecoder(blocks[1:], widths[1:], norm, name="inner")]
        else:
            self.inner = _chain("inner", below, [below] * blocks[1], norm)
        self.up = _chain("up", below, [below] * (count - 1) + [width], norm)

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """[N, S, S, C] -> the same shape; S is even on every level."""
        across, inner = x, x
        for block in self.across:
            across = block(across)
        below: list[tf_keras.layers.Layer] = [*self.down, *self.inner, *self.up]
        for layer in below:
            inner = layer(inner)
        _, half, _, channels = inner.shape
        inner = tf.broadcast_to(
            inner[:, :, None, :, None], [tf.shape(x)[0], half, 2, half, 2, channels]
        )
        return across + tf.reshape(inner, [-1, 2 * half, 2 * half, channels])


def _chain(
    name: str, before: int, widths: list[int], norm: str, stride: int = 1
) -> list[ResidualBlock]:
    """Residual blocks one after another; the first has the stride."""
    chain: list[ResidualBlock] = []
    for number, width in enumerate(widths, start=1):
        block = ResidualBlock(
            width,
            stride,
            norm,
            bottleneck=False,
            project=stride > 1 or before != width,
            name=f"{name}{number}",
        )
        if norm == "none":  # what is added starts at 0: a hundred sums would grow without bound
            block.convs[-1].conv.kernel_initializer = tf_keras.initializers.Zeros()
        chain.append(block)
        before, stride = width, 1
    return chain


hourglass10 = functools.partial(Hourglass, 10)
hourglass20 = functools.partial(Hourglass, 20)
hourglass32 = functools.partial(Hourglass, 32)
hourglass52 = functools.partial(Hourglass, 52)
hourglass100 = functools.partial(Hourglass, 100)
