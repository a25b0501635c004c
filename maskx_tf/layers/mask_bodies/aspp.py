"""Atrous spatial pyramid pooling as a body: DeepLab v2 and v3, Chen et al., 2016 and 2017.

The published rates are for maps of whole images (`semantic_head.DeepLab`); in a RoI of side 14 a
3x3 convolution of rate 14 is its centre alone. There they scale with the side: (1, 2, 4, 6) at 14,
(2, 4, 8, 12) at 28.
"""

from collections.abc import Sequence

import tensorflow as tf

from maskx_tf.layers.backbone import ConvNorm
from maskx_tf.layers.mask_bodies.body import Body

RATES, RATES_SIDE = (1, 2, 4, 6), 14


def rates(side: int) -> list[int]:
    """Rates of the 3x3 convolutions in a RoI of that many cells a side."""
    return [max(1, round(rate * side / RATES_SIDE)) for rate in RATES]


class _ASPP(Body):
    """What both versions are told: arguments of `Body`, and the rates, None: by the RoI's side."""

    def __init__(
        self,
        filters: int = 256,
        upsampling: int = 2,
        norm: str = "none",
        rates: Sequence[int] | None = None,
        **kwargs,
    ):
        super().__init__(filters, upsampling, norm, **kwargs)
        self.rates = rates


class ASPPv2(_ASPP):
    """3x3 convolutions of four rates side by side, a 1x1 after each, summed; ReLU after each layer.

    Args:
      filters: C, channels of all layers.
      upsampling: u.
      norm: see `body.Deconvolution`; published without.
      rates: of the 3x3 convolutions; None: by the side of the RoI.
    """

    def build(self, input_shape) -> None:
        """Makes the layers: their rates depend on the side."""
        self.atrous = [
            ConvNorm(self.filters, 3, 1, self.norm, dilation=rate, name=f"atrous{i}")
            for i, rate in enumerate(self.rates or rates(input_shape[1]), start=1)
        ]
        self.mixed = [
            ConvNorm(self.filters, 1, 1, self.norm, name=f"mixed{i}")
            for i in range(1, len(self.atrous) + 1)
        ]
        self.add_deconvolutions()
        super().build(input_shape)

    def call(self, roi_features: tf.Tensor, training: bool = False) -> tf.Tensor:
        """RoI features [N, S, S, C'] -> pixel features [N, S, S, u, u, C]."""
        pairs = zip(self.atrous, self.mixed, strict=True)
        return self.upsample(tf.add_n([mixed(atrous(roi_features)) for atrous, mixed in pairs]))


class ASPPv3(_ASPP):
    """A 1x1, 3x3 of three rates and the mean of the RoI side by side; a 1x1 of all; each with ReLU.

    Args:
      filters: C, channels of all layers.
      upsampling: u.
      norm: see `body.Deconvolution`; published with batch norm.
      rates: of the 3x3 convolutions; None: by the side of the RoI.
    """

    def build(self, input_shape) -> None:
        """Makes the layers: their rates depend on the side."""
        self.parallel = [ConvNorm(self.filters, 1, 1, self.norm, name="pointwise")] + [
            ConvNorm(self.filters, 3, 1, self.norm, dilation=rate, name=f"atrous{i}")
            for i, rate in enumerate(self.rates or rates(input_shape[1])[1:], start=1)
        ]
        self.pooled = ConvNorm(self.filters, 1, 1, self.norm, name="pooled")
        self.mixed = ConvNorm(self.filters, 1, 1, self.norm, name="mixed")
        self.add_deconvolutions()
        super().build(input_shape)

    def call(self, roi_features: tf.Tensor, training: bool = False) -> tf.Tensor:
        """RoI features [N, S, S, C'] -> pixel features [N, S, S, u, u, C]."""
        maps = [layer(roi_features) for layer in self.parallel]
        mean = self.pooled(tf.reduce_mean(roi_features, axis=(1, 2), keepdims=True))
        maps.append(tf.broadcast_to(mean, tf.shape(maps[0])))
        x = self.mixed(tf.concat(maps, axis=-1))
        return self.upsample(x)
