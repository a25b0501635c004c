"""A box head without fully connected layers, whose features have a place: OPMask's."""

import tensorflow as tf

from maskx_tf.layers.box_head import BoxHead
from maskx_tf.layers.mask_bodies.body import convolution


class ConvBoxHead(BoxHead):
    """3x3 convolutions and the mean over the RoI (Biertimpel et al., ICCV 2021).

    Where w_cls of a class meets the features before the mean, it says which part of the RoI speaks
    for the class: its class activation map.

    Args:
      num_classes: K.
      units: D, channels of the last convolution. The first has twice those of the RoI features, the
        next twice as many, up to D.
      convs: number of convolutions.
      norm: `none` or `group_norm`.
      **options: of `BoxHead`.
    """

    def __init__(
        self,
        num_classes: int,
        units: int = 1024,
        convs: int = 4,
        norm: str = "none",
        **options,
    ):
        super().__init__(num_classes, units, **options)
        self.num_convs, self.norm = convs, norm

    def add_hidden_layers(self, channels: int) -> None:
        """Makes the convolutions, from `conv1` on."""
        filters = [min(channels * 2**i, self.units) for i in range(1, self.num_convs)]
        self.convs = [
            convolution(count, self.norm, f"conv{i}")
            for i, count in enumerate([*filters, self.units], start=1)
        ]

    def call(self, roi_features: tf.Tensor) -> tf.Tensor:
        """RoI features [N, S, S, C] -> box features float32 [N, D]."""
        return tf.reduce_mean(self.maps(roi_features), axis=[1, 2])

    def maps(self, roi_features: tf.Tensor) -> tf.Tensor:
        """RoI features [N, S, S, C] -> what box features are the mean of, float32 [N, S, S, D]."""
        x = roi_features
        for conv in self.convs:
            x = conv(x)
        return tf.cast(x, tf.float32)  # also in mixed precision: so are class and box output

    def class_activations(self, roi_features: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
        """Class activation maps of RoIs [N, S, S, C], each for its class [N] -> float32 [N, S, S].

        The mean of a map and the class's bias make the class's logit. There is no gradient to the
        class's weights.
        """
        kernels = tf.stop_gradient(tf.gather(self.cls_kernel, classes))  # [N, D]
        return tf.einsum("nyxd,nd->nyx", self.maps(roi_features), kernels)
