"""What the replicas of a step have in common, so that N devices compute what one would.

Each of N replicas sees B of the N * B images of a step: those from replica_id * B on. Everything
here is called in a replica's context; outside of a strategy there is one replica, and nothing is
communicated.
"""

import tensorflow as tf

from maskx_tf.losses import Loss

# The count that a loss is a mean over; the others are means over images, of which all have B.
_MEAN_OVER = {"class": "class", "box": "class", "mask": "mask"}


def _sum(value: tf.Tensor) -> tf.Tensor:
    replica = tf.distribute.get_replica_context()
    if replica.num_replicas_in_sync == 1:
        return value
    return replica.all_reduce(tf.distribute.ReduceOp.SUM, value)


def anywhere(mask: tf.Tensor) -> tf.Tensor:
    """Where `mask`, bool [...], is true on any replica."""
    return _sum(tf.cast(mask, tf.float32)) > 0


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


def shares(losses: dict[str, Loss]) -> dict[str, tf.Tensor]:
    """This replica's part of each loss of the whole batch: its sum over replicas is that loss.

    A mean over RoIs is one over the RoIs of all replicas: it weighs a replica by its count.

    Args:
      losses: {name: (value, count)} of this replica's images.
    """
    replicas = tf.distribute.get_replica_context().num_replicas_in_sync
    counted = sorted(set(_MEAN_OVER.values()) & losses.keys())
    totals = tf.unstack(_sum(tf.stack([losses[name][1] for name in counted]))) if counted else []
    weights = {
        name: losses[name][1] / tf.maximum(total, 1.0)
        for name, total in zip(counted, totals, strict=True)
    }
    return {
        name: value * weights[_MEAN_OVER[name]] if name in _MEAN_OVER else value / replicas
        for name, (value, _) in losses.items()
    }
