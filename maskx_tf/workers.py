"""What the processes of a cluster agree on; one alone agrees with itself at no cost."""

import tensorflow as tf


class Agreement:
    """Asks all processes that train together; each has to ask at the same place.

    Args:
      strategy: MultiWorkerMirroredStrategy, or one of a single process.
    """

    def __init__(self, strategy: tf.distribute.Strategy):
        self._strategy = strategy
        self._is_alone = not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
        self._sum = tf.function(self._sum_of_replicas)

    def anywhere(self, flag: bool) -> bool:
        """Whether the flag is true in any process."""
        return flag if self._is_alone else bool(self._sum(tf.constant(float(flag))) > 0)

    def wait(self) -> None:
        """Returns when all processes have come here."""
        self.anywhere(False)

    def _sum_of_replicas(self, value: tf.Tensor) -> tf.Tensor:
        def replica() -> tf.Tensor:
            context = tf.distribute.get_replica_context()
            # Made here, so that it lies on the replica's device, where all_reduce looks for it.
            return context.all_reduce(tf.distribute.ReduceOp.SUM, tf.identity(value))

        return self._strategy.experimental_local_results(self._strategy.run(replica))[0]
