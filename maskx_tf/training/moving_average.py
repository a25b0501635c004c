"""Moving averages of the trained weights (EMA), kept beside them and used in their place."""

import contextlib
from collections.abc import Iterator

import tensorflow as tf

from maskx_tf.model import MaskXRCNN, trained_variables, variable_key


class MovingAverage:
    """average <- d average + (1 - d) weight after each step, d = min(decay, (1 + n) / (10 + n)).

    n counts the steps done, this one included: the weights that a run starts from are soon
    forgotten, whatever the decay.

    Args:
      model: built; made under the strategy that it was made under.
      decay: of a step, in [0, 1).

    Attributes:
      values: {key of a trained variable: its average}.
      checkpoint: what of it is saved, beside the model.
    """

    def __init__(self, model: MaskXRCNN, decay: float):
        self._trained, self._decay = trained_variables(model), decay
        self.values = {
            variable_key(v): tf.Variable(v, trainable=False, dtype=tf.float32)
            for v in self._trained
        }
        self.checkpoint = tf.train.Checkpoint(values=self.values)

    def _pairs(self) -> list[tuple[tf.Variable, tf.Variable]]:
        return [(self.values[variable_key(v)], v) for v in self._trained]

    def start(self) -> None:
        """Sets the averages to the weights as they are."""
        for average, weight in self._pairs():
            average.assign(weight)

    def update(self, strategy: tf.distribute.Strategy, step: tf.Tensor) -> None:
        """Takes the weights after `step` steps into the averages. Outside of the replicas."""
        done = tf.cast(step, tf.float32)
        keep = tf.minimum(self._decay, (1.0 + done) / (10.0 + done))

        def move(average: tf.Variable, weight: tf.Variable) -> None:
            average.assign_sub((1.0 - keep) * (average - weight))

        for average, weight in self._pairs():
            strategy.extended.update(average, move, args=(weight,))

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Within it the model has the averages for weights; afterwards its own again, exactly."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        for average, weight in self._pairs():
            value = tf.identity(weight)
            weight.assign(average)
            average.assign(value)
