"""Where the weights of the mask predictor come from: T (the paper's idea), or learned directly."""

from collections.abc import Callable

import tensorflow as tf
import tf_keras

from maskx_tf.layers import initializers

ACTIVATIONS = {
    "none": tf.identity,
    "relu": tf.nn.relu,
    "leaky_relu": lambda x: tf.nn.leaky_relu(x, 0.1),
}


class WeightTransfer(tf_keras.layers.Layer):
    """w_seg = T(w_det; θ), paper §3.2: an MLP from class weights to a 1x1 mask kernel.

    Args:
      filters: C, channels of the mask trunk, which is the length of w_seg.
      layers: 1, 2 or 3 fully connected layers, each with a bias.
      units: of the hidden layers.
      activation: between the layers: none, relu or leaky_relu (slope 0.1).
      stop_gradient: whether w_det is taken as a constant, so that the mask loss does not change it.
    """

    def __init__(
        self,
        filters: int,
        layers: int = 2,
        units: int = 256,
        activation: str = "leaky_relu",
        stop_gradient: bool = True,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.activation, self.stop_gradient = ACTIVATIONS[activation], stop_gradient
        sizes = [units] * (layers - 1) + [filters]
        self.dense = [
            tf_keras.layers.Dense(size, kernel_initializer=initializers.msra_fill(), name=f"fc{i}")
            for i, size in enumerate(sizes, start=1)
        ]

        self._table: tf.Variable | None = None

    def call(self, w_det: tf.Tensor) -> tf.Tensor:
        """Class weights [U, D] -> mask kernels w_seg [U, C]."""
        x = tf.stop_gradient(w_det) if self.stop_gradient else w_det
        for layer in self.dense[:-1]:
            x = self.activation(layer(x))
        return self.dense[-1](x)

    def kernels(
        self, classes: tf.Tensor, w_det: Callable[[tf.Tensor], tf.Tensor]
    ) -> tuple[tf.Tensor, None]:
        """The kernel of each RoI's class; no bias.

        T runs once for each class present, not for each RoI and not for all classes.

        Args:
          classes: int32 [N].
          w_det: classes int32 [U] -> their class weights [U, D].

        Returns:
          [N, C], None.
        """
        if self._table is not None:
            return tf.gather(self._table, classes), None
        present, place = tf.unique(classes)
        return tf.gather(self(w_det(present)), place), None

    def fold(self, table: tf.Tensor) -> None:
        """Keeps T's outputs of all classes, [K + 1, C]: `kernels` reads them from now on."""
        self._table = tf.Variable(table, trainable=False, name="w_seg")


class LearnedMaskWeights(tf_keras.layers.Layer):
    """Mask kernels and biases learned row by row: the class-agnostic baseline and the oracle.

    Args:
      rows: 1 for a class-agnostic predictor; K + 1 for one map per class.
      filters: C, channels of the mask trunk.
    """

    def __init__(self, rows: int, filters: int, **kwargs):
        super().__init__(**kwargs)
        self.rows, self.filters = rows, filters

    def build(self, input_shape) -> None:
        """Creates kernel [rows, C] and bias [rows] with the published initialisation."""
        stddev = 0.001 if self.rows == 1 else (2.0 / self.rows) ** 0.5
        self.kernel = self.add_weight(
            "kernel", [self.rows, self.filters], initializer=initializers.gaussian_fill(stddev)
        )
        self.bias = self.add_weight("bias", [self.rows], initializer="zeros")
        super().build(input_shape)

    def call(self, classes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Classes int32 [N] -> kernels [N, C] and biases [N]."""
        rows = tf.zeros_like(classes) if self.rows == 1 else classes
        return tf.gather(self.kernel, rows), tf.gather(self.bias, rows)

    def kernels(self, classes: tf.Tensor, w_det: Callable) -> tuple[tf.Tensor, tf.Tensor]:
        """As of `WeightTransfer`: the same, whatever the weights of a class are."""
        del w_det
        return self(classes)
