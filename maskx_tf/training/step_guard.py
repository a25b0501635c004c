"""Stops training at the first step whose losses or gradients are not finite, before its update."""

import numpy as np
import tensorflow as tf

from maskx_tf.training.diagnosis import BATCH, GRADIENT_NORM

STEPS_KEPT = 16
_MARKER = "maskx_tf step guard"

Batch = dict[str, tf.Tensor]


class StepGuard:
    """Checks each step on the device, and remembers what the last steps were like.

    A step runs `sanitize` on its batch, computes losses and gradients, and applies what `check`
    returns. Where one replica sees a fault, all of them fail in the same step.

    Args:
      loss_names: in the order of the losses given to `check`.
      num_classes: K; class ids are 0..K.

    Attributes:
      names: of the columns of `recent`.
      recent: float32 [STEPS_KEPT, len(names)] on each replica, the latest step last: batch (0; NaN
        for one that `sanitize` had to change), the losses, norm of all gradients. Zeros before the
        first step. To be made under the strategy.
    """

    def __init__(self, loss_names: tuple[str, ...], num_classes: int):
        self.num_classes = num_classes
        self.names = (BATCH, *loss_names, GRADIENT_NORM)
        self.recent = tf.Variable(
            tf.zeros([STEPS_KEPT, len(self.names)]),
            trainable=False,
            synchronization=tf.VariableSynchronization.ON_READ,
            aggregation=tf.VariableAggregation.NONE,
            name="recent_steps",
        )

    def sanitize(self, features: Batch, labels: Batch) -> tuple[Batch, Batch, tf.Tensor]:
        """The batch as it is and 0.0; or with what would crash the step replaced, and NaN.

        Class ids beyond K crash it on the CPU and are taken for zeros on the GPU. A batch of a
        feature cache was looked at when it was made.
        """
        if "image" not in features:
            return features, labels, tf.zeros([])
        image, boxes, classes = features["image"], labels["boxes_yxyx"], labels["classes"]
        finite_boxes = tf.math.is_finite(boxes)
        in_range = (classes >= 0) & (classes <= self.num_classes)
        good = tf.reduce_all(finite_boxes) & tf.reduce_all(in_range)
        if image.dtype.is_floating:
            finite_image = tf.math.is_finite(image)
            good &= tf.reduce_all(finite_image)
            features = features | {"image": tf.where(finite_image, image, tf.zeros_like(image))}
        labels = labels | {
            "boxes_yxyx": tf.where(finite_boxes, boxes, tf.zeros_like(boxes)),
            "classes": tf.where(in_range, classes, tf.zeros_like(classes)),
        }
        return features, labels, tf.where(good, 0.0, float("nan"))

    def check(self, fault: tf.Tensor, losses: dict, gradients: list, *, scaled: bool) -> list:
        """The gradients, which cannot be had if anything is not finite.

        Args:
          fault: of `sanitize`.
          losses: {name: float []}, not scaled.
          gradients: of the replica; None where a variable has none.
          scaled: the loss was scaled for float16: its optimizer skips steps whose gradients are
            not finite, so that here only the losses count.

        Raises:
          InvalidArgumentError: when the step runs; `is_stop` knows it.
        """
        norm = tf.linalg.global_norm([value for value in gradients if value is not None])
        values = [fault, *losses.values(), norm]
        row = tf.stack([tf.cast(value, tf.float32) for value in values])
        history = tf.concat([self.recent[1:], row[None]], axis=0)
        checked = row[:-1] if scaled else row
        replica = tf.distribute.get_replica_context()
        if replica.num_replicas_in_sync > 1:
            checked = replica.all_reduce(tf.distribute.ReduceOp.SUM, checked)
        with tf.control_dependencies([self.recent.assign(history)]):
            checked = tf.debugging.check_numerics(checked, _MARKER)
        with tf.control_dependencies([checked]):
            return [None if value is None else tf.identity(value) for value in gradients]

    def history(self, strategy: tf.distribute.Strategy) -> np.ndarray:
        """`recent` of the replicas of this process, [replicas, steps, names]; only steps taken."""
        values = [value.numpy() for value in strategy.experimental_local_results(self.recent)]
        history = np.stack(values)
        return history[:, (history != 0).any(axis=(0, 2))]


def is_stop(error: tf.errors.OpError) -> bool:
    """Whether `StepGuard.check` raised an error."""
    return _MARKER in str(error)
