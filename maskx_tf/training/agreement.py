"""What the processes of a cluster agree on; one alone agrees with itself at no cost."""

import zlib
from collections.abc import Mapping

import tensorflow as tf

from maskx_tf.errors import UserError


class Agreement:
    """Asks all processes that train together; each has to ask at the same place.

    Args:
      strategy: MultiWorkerMirroredStrategy, or one of a single process.
    """

    def __init__(self, strategy: tf.distribute.Strategy):
        self._strategy = strategy
        self._is_alone = not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
        self._sum = tf.function(self._sum_of_replicas, autograph=False)

    def anywhere(self, flag: bool) -> bool:
        """Whether the flag is true in any process."""
        return flag if self._is_alone else bool(self._sum(tf.constant(float(flag))) > 0)

    def wait(self) -> None:
        """Returns when all processes have come here."""
        self.anywhere(False)

    def require_equal(self, values: Mapping[str, str]) -> None:
        """Holds the processes to the same values: N that compute different things would go on.

        Args:
          values: what has to be equal, under the names that the message has for it; the same names
            in all processes.

        Raises:
          UserError: in all processes, with the names of what differs in any.
        """
        if self._is_alone:
            return
        digests = tf.constant([zlib.crc32(value.encode()) for value in values.values()], tf.int64)
        differs = self._sum(digests) != self._strategy.num_replicas_in_sync * digests
        anywhere = self._sum(tf.cast(differs, tf.float32)).numpy() > 0
        if found := [name for name, is_one in zip(values, anywhere, strict=True) if is_one]:
            raise UserError(
                f"the workers differ in {', '.join(found)}: start the same command on all, with "
                "the same files under the same paths (docs/devices.md)."
            )

    def _sum_of_replicas(self, value: tf.Tensor) -> tf.Tensor:
        def replica() -> tf.Tensor:
            context = tf.distribute.get_replica_context()
            # Made here, so that it lies on the replica's device, where all_reduce looks for it.
            return context.all_reduce(tf.distribute.ReduceOp.SUM, tf.identity(value))

        return self._strategy.experimental_local_results(self._strategy.run(replica))[0]
