"""What the replicas of a step have in common, so that N devices compute what one would.

Each of N replicas sees B of the N * B images of a step: those from replica_id * B on. Everything
here is called in a replica's context; outside of a strategy there is one replica, and nothing is
communicated.
"""

import tensorflow as tf


def total(value: tf.Tensor) -> tf.Tensor:
    """The sum of `value` over all replicas."""
    replica = tf.distribute.get_replica_context()
    if replica.num_replicas_in_sync == 1:
        return value
    return replica.all_reduce(tf.distribute.ReduceOp.SUM, value)


def anywhere(mask: tf.Tensor) -> tf.Tensor:
    """Where `mask`, bool [...], is true on any replica."""
    return total(tf.cast(mask, tf.float32)) > 0


def uniform(shape: list, seed: tf.Tensor) -> tf.Tensor:
    """float32 [B, n] in [0, 1): this replica's rows of a draw for the images of all replicas.

    Args:
      shape: [B, n].
      seed: int32 [2], the same on all replicas.
    """
    replica = tf.distribute.get_replica_context()
    images, count = shape
    drawn = tf.random.stateless_uniform([images * replica.num_replicas_in_sync, count], seed)
    first = tf.convert_to_tensor(replica.replica_id_in_sync_group) * images
    return drawn[first : first + images]
