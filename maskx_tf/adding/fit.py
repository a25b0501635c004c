"""Fits the box head's rows of new classes on frozen features, near the rows of the old classes.

T reads class weights as they are, so a row that merely separates the examples is not enough: it
must look like a row that training would have given. The trained rows are a sample of what rows look
like; the new ones are the most probable under it (a normal distribution with their covariance, its
mean from `prior`) and under the examples.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tf_keras

from maskx_tf import losses
from maskx_tf.adding.examples import Samples
from maskx_tf.layers.box_head import BoxHead

PRIOR_STRENGTH = 3.0  # it matters little on Shapes, see docs/adding_classes.md
_STEPS = 600
_LEARNING_RATE = 0.05
_RESIDUAL = 0.1  # variance of the free part of w_cls, as a share of the old rows' variance
_BIAS_DEVIATION = 1.0  # of the part of a bias that does not follow from the old rows


class Rows(NamedTuple):
    """Rows of M classes in the box head.

    Attributes:
      cls_kernel: float32 [M, D].
      cls_bias: float32 [M].
      box_kernel: float32 [M, 4, D].
      box_bias: float32 [M, 4].
    """

    cls_kernel: np.ndarray
    cls_bias: np.ndarray
    box_kernel: np.ndarray
    box_bias: np.ndarray


def old_rows(head: BoxHead) -> Rows:
    """The rows of all classes of a box head, without the background."""
    variables = (head.cls_kernel, head.cls_bias, head.box_kernel, head.box_bias)
    return Rows(*(variable.numpy()[1:] for variable in variables))


def fit(
    head: BoxHead,
    samples: Samples,
    num_new: int,
    expected: np.ndarray | None = None,
    prior_strength: float = PRIOR_STRENGTH,
) -> Rows:
    """The rows of new classes.

    A new row is the mean of the old ones plus a combination of their deviations from it, the same
    for all parts of a row (w_cls, w_box and biases), plus a small free part of w_cls. With K
    classes, normal coefficients with variance 1 / K give the covariance of the old rows. The loss
    is the softmax over all classes, the old logits being constants: a new class has to win over
    background and old classes alike; smooth L1 for the boxes of the examples.

    Args:
      head: the box head, not changed.
      samples: see `examples`.
      num_new: M.
      expected: [M, K], means of the coefficients, see `prior.mix_of`; None: 0.
      prior_strength: factor on the prior against the examples.
    """
    old = old_rows(head)
    count, width = len(old.cls_kernel), old.cls_kernel.shape[1]
    free_scale = float(np.sqrt(_RESIDUAL * old.cls_kernel.var(axis=0).mean()))
    problem = _Problem(head, old, samples, free_scale)
    centre = np.zeros([num_new, count]) if expected is None else expected
    centre = tf.constant(centre, tf.float32)
    mix = tf.Variable(centre)
    free = tf.Variable(tf.zeros([num_new, width]))
    bias = tf.Variable(tf.zeros([num_new]))

    def objective():
        prior = count * tf.reduce_sum((mix - centre) ** 2) + tf.reduce_sum(free**2)
        prior += tf.reduce_sum((bias / _BIAS_DEVIATION) ** 2)
        return problem.loss(mix, free, bias) + 0.5 * prior_strength * prior

    _minimize(objective, [mix, free, bias])
    combined = [
        part.mean(axis=0) + np.tensordot(mix.numpy(), part - part.mean(axis=0), axes=1)
        for part in old
    ]
    combined[0] = combined[0] + free_scale * free.numpy()
    combined[1] = combined[1] + bias.numpy()
    return Rows(*(part.astype(np.float32) for part in combined))


class _Problem:
    """The loss of new rows on the examples, by the combinations that they are.

    Logits and deltas are linear in the rows: those of a new class are the same combination of what
    the old classes give, which is computed once.
    """

    def __init__(self, head: BoxHead, old: Rows, samples: Samples, free_scale: float):
        positive = np.flatnonzero(samples.labels > 0)
        self._features = tf.constant(samples.features, tf.float32)
        self._free_scale = free_scale
        logits = head.class_logits(self._features)  # [R, K + 1]
        # All that is not new is one outcome: which of the old classes it is does not matter.
        self._rest = tf.reduce_logsumexp(logits, axis=1, keepdims=True)  # [R, 1]
        self._logit_mean = tf.reduce_mean(logits[:, 1:], axis=1, keepdims=True)
        self._logit_parts = logits[:, 1:] - self._logit_mean  # [R, K]
        count, _, width = old.box_kernel.shape
        deltas = samples.features[positive] @ old.box_kernel.reshape(-1, width).T
        deltas = deltas.reshape(-1, count, 4) + old.box_bias  # [F, K, 4]
        self._delta_mean = tf.constant(deltas.mean(axis=1), tf.float32)
        self._delta_parts = tf.constant(deltas, tf.float32) - self._delta_mean[:, None]
        self._labels = tf.constant(samples.labels, tf.int32)
        self._weights = tf.constant(samples.weights, tf.float32)
        self._new = tf.constant(samples.labels[positive] - 1, tf.int32)  # [F]
        self._targets = tf.constant(samples.targets[positive], tf.float32)  # [F, 4]
        self._box_weights = tf.constant(samples.weights[positive], tf.float32)

    def loss(self, mix: tf.Tensor, free: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
        """Class and box loss of mix [M, K], free [M, D] and bias [M]."""
        logits = self._logit_mean + tf.matmul(self._logit_parts, mix, transpose_b=True) + bias
        logits += tf.matmul(self._features, free * self._free_scale, transpose_b=True)
        log_p = tf.nn.log_softmax(tf.concat([self._rest, logits], axis=1))
        class_loss = -tf.reduce_sum(self._weights * tf.gather(log_p, self._labels, batch_dims=1))
        deltas = tf.einsum("fkc,fk->fc", self._delta_parts, tf.gather(mix, self._new))
        errors = losses.smooth_l1(self._delta_mean + deltas - self._targets, losses.BOX_BETA)
        return class_loss + tf.reduce_sum(self._box_weights * tf.reduce_sum(errors, axis=1))


def _minimize(objective, variables: list[tf.Variable]) -> None:
    """Adam with a rate that falls to 0; the objective is convex."""
    schedule = tf_keras.optimizers.schedules.CosineDecay(_LEARNING_RATE, _STEPS)
    optimizer = tf_keras.optimizers.Adam(schedule)
    optimizer.build(variables)

    @tf.function(autograph=False)
    def step():
        with tf.GradientTape() as tape:
            loss = objective()
        gradients = tape.gradient(loss, variables)
        optimizer.apply_gradients(zip(gradients, variables, strict=True))

    for _ in range(_STEPS):
        step()
