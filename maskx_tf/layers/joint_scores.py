"""Class scores that belong to the mask head's maps (FCIS), added to those of the box head."""

from collections.abc import Sequence

import tensorflow as tf

CANDIDATES = 5  # classes of a RoI that are scored jointly, whatever the number of classes


def candidates(
    class_logits: tf.Tensor, groups: Sequence[range], classes: tf.Tensor | None = None
) -> tf.Tensor:
    """The likeliest classes of each RoI, the background among them.

    Args:
      class_logits: float32 [N, K + 1], background first.
      groups: the class ids of each class group; `CANDIDATES` are chosen of each, so that those of a
        group do not depend on what was added after it.
      classes: int32 [N], which are among them in any case.

    Returns:
      int32 [N, U], no class twice.
    """
    if classes is not None:
        class_logits += tf.one_hot(classes, class_logits.shape[1], on_value=1e9)
    chosen, start = [], 0  # the background counts as of the first group
    for group in groups:
        most = min(CANDIDATES, group.stop - start)
        chosen.append(tf.math.top_k(class_logits[:, start : group.stop], most).indices + start)
        start = group.stop
    return tf.concat(chosen, axis=1)


def add(class_logits: tf.Tensor, classes: tf.Tensor, scores: tf.Tensor) -> tf.Tensor:
    """Class logits [N, K + 1] with scores [N, U] of classes int32 [N, U] added."""
    rows = tf.broadcast_to(tf.range(tf.shape(classes)[0])[:, None], tf.shape(classes))
    return tf.tensor_scatter_nd_add(class_logits, tf.stack([rows, classes], axis=-1), scores)
