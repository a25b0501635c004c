"""The published body of the mask head: convolutions and a deconvolution."""

import tensorflow as tf

from maskx_tf.layers.mask_bodies.body import Body, convolution


class FCN(Body):
    """3x3 convolutions and 2x2 deconvolutions of stride 2, each with a ReLU (paper §3.4).

    Args:
      filters: C, channels of all layers.
      convs: number of 3x3 convolutions.
      upsampling: u; the paper's one deconvolution is 2.
      norm: of all layers, see `body.Deconvolution`.
    """

    def __init__(
        self,
        filters: int = 256,
        convs: int = 4,
        upsampling: int = 2,
        norm: str = "none",
        **kwargs,
    ):
        super().__init__(filters, upsampling, norm, **kwargs)
        self.convs = [convolution(filters, norm, f"conv{i}") for i in range(1, convs + 1)]
        self.add_deconvolutions()

    def build(self, input_shape) -> None:
        """Creates the weights of all layers, in scopes of their names."""
        shape = list(input_shape)
        for layer in (*self.convs, *self.deconvolutions):
            with tf.name_scope(layer.name):
                layer.build(shape)
            shape[-1] = self.filters
        super().build(input_shape)

    def call(self, roi_features: tf.Tensor, training: bool = False) -> tf.Tensor:
        """RoI features [N, S, S, C'] -> pixel features [N, S, S, u, u, C]."""
        x = roi_features
        for conv in self.convs:
            x = conv(x)
        return self.upsample(x)
