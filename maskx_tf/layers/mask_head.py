"""The mask head: a body, the predictor of the RoI's class, and branches that add to its map."""

from collections.abc import Sequence

import tensorflow as tf
import tf_keras

from maskx_tf.layers.mask_bodies.body import Body, in_rows
from maskx_tf.layers.mask_branches import with_coordinates


class MaskHead(tf_keras.layers.Layer):
    """One mask per RoI, for one class each (paper §3.2 and §3.4).

    The kernel of the RoI's class is an input, so only one map per RoI is ever computed, whatever
    the number of classes: loss, gradient and result equal those of the K-channel convolution.

    Args:
      body: RoI features [N, S, S, C'] -> pixel features, and with a kernel for each RoI its map.
      branches: each turns pixel features [N, m, m, C] into a map [N, m, m] that is added.
      coordinates: whether the body is told where in the RoI a cell is.
    """

    def __init__(
        self,
        body: Body,
        branches: Sequence[tf_keras.layers.Layer] = (),
        coordinates: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.body, self.branches, self.coordinates = body, list(branches), coordinates

    def build(self, input_shape) -> None:
        """Creates the weights of the branches, each in a scope of its name, and those of the body.

        In this order: it decides which random numbers of a seed each of them gets.
        """
        side = self.body.upsampling * input_shape[1]
        for branch in self.branches:
            with tf.name_scope(branch.name):
                branch.build([None, side, side, self.body.filters])
        channels = input_shape[-1] + 2 * self.coordinates
        self.body.build([*input_shape[:-1], channels])
        super().build(input_shape)

    def pixels(self, roi_features: tf.Tensor, training: bool = False) -> tf.Tensor:
        """What the body returns of RoI features [N, S, S, C'], for all classes."""
        if self.coordinates:
            roi_features = with_coordinates(roi_features)
        return self.body(roi_features, training=training)

    def call(
        self,
        roi_features: tf.Tensor,
        kernels: tf.Tensor,
        biases: tf.Tensor | None = None,
        training: bool = False,
    ) -> tf.Tensor:
        """Mask logits of each RoI for its class.

        Args:
          roi_features: [N, S, S, C'].
          kernels: w_seg of each RoI's class, [N, C].
          biases: [N], or None as with T, which predicts none.
          training: whether batch norm uses the statistics of these RoIs.

        Returns:
          float32 [N, m, m]; m = u S with the body's upsampling u.
        """
        return self.of_pixels(self.pixels(roi_features, training=training), kernels, biases)

    def of_pixels(
        self, x: tf.Tensor, kernels: tf.Tensor, biases: tf.Tensor | None = None
    ) -> tf.Tensor:
        """`call` of what `pixels` returned."""
        logits = self.body.logits(x, kernels)
        if biases is not None:
            logits += tf.cast(biases, tf.float32)[:, None, None]
        for branch in self.branches:
            logits += tf.cast(branch(in_rows(x)), tf.float32)
        return logits

    def _trackable_children(self, save_type="checkpoint", **kwargs):
        """In checkpoints the layers of body and branches count as the head's own."""
        children = super()._trackable_children(save_type, **kwargs)
        for part in (self.body, *self.branches) if save_type == "checkpoint" else ():
            children |= part._trackable_children(save_type, **kwargs)
        return children
