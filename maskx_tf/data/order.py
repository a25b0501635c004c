"""The order of training examples as a pure function of seed and step, so that it can be resumed."""

from __future__ import annotations

import numpy as np
import tensorflow as tf


class TrainingOrder:
    """An endless sequence of batches, each of records of one group.

    Every epoch is a permutation of all records, some perhaps repeated. A group's records fill its
    batches in that order; what is left of a batch at the end of an epoch is filled in the next.
    Batches come in the order in which they become full. An example is the pair (record, number);
    numbers 0, 1, 2, ... count examples through the epochs, so that an example's augmentation can
    depend on it.

    Args:
      groups: int or bool [N], group of each record; a batch is of one group.
      batch_size: examples in a batch.
      seed: of the permutations.
      repeats: float [N], at least 1, how often a record comes in an epoch: 1.25 is twice in every
        fourth. A group's sum is rounded, so that all epochs are of one length. None: once.
    """

    def __init__(
        self,
        groups: np.ndarray,
        batch_size: int,
        seed: int,
        repeats: np.ndarray | None = None,
    ) -> None:
        names, self._groups = np.unique(groups, return_inverse=True)
        self._counts = np.bincount(self._groups, minlength=len(names)).tolist()
        self._batch_size, self._seed = batch_size, seed
        self._has_repeats = repeats is not None
        if repeats is not None:
            sizes, sums = self._counts, np.bincount(self._groups, weights=repeats)
            self._counts = np.rint(sums).astype(int).tolist()
            # Records group by group, and where each one's share of an epoch's examples ends.
            self._by_group = np.argsort(self._groups, kind="stable")
            shares = repeats * (self._counts / sums)[self._groups]
            self._ends = np.cumsum(shares[self._by_group])
            self._ends[np.cumsum(sizes) - 1] = np.cumsum(self._counts)  # exactly
        # Epochs before the present one that a batch which becomes full in it can reach back to.
        self._history = max(-(-(batch_size - 1) // count) for count in self._counts)

    def find(self, step: int) -> tuple[int, int]:
        """(epoch, place in `batches(epoch)`) of the batch of a step, from 0."""
        epoch = step * self._batch_size // sum(self._counts)  # no earlier one reaches the step
        while self._full_before(epoch + 1) <= step:
            epoch += 1
        return epoch, step - self._full_before(epoch)

    def _full_before(self, epoch: int) -> int:
        return sum(epoch * count // self._batch_size for count in self._counts)

    def batches(self, epoch: tf.Tensor) -> tf.Tensor:
        """int64 [n, batch_size, 2]: the batches that become full in an epoch; n may be 0.

        Args:
          epoch: int64 [].
        """
        oldest = epoch - self._history
        examples = tf.concat(
            [self._examples(oldest + back) for back in range(self._history + 1)], axis=0
        )
        groups = tf.gather(self._groups, examples[:, 0])
        found = []
        for group, count in enumerate(self._counts):
            stream = tf.boolean_mask(examples, groups == group)  # [(history + 1) * count, 2]
            size = self._batch_size
            first, last = epoch * count // size, (epoch + 1) * count // size
            part = stream[first * size - oldest * count : last * size - oldest * count]
            found.append(tf.reshape(part, [-1, size, 2]))
        batches = tf.concat(found, axis=0)
        return tf.gather(batches, tf.argsort(batches[:, -1, 1]))

    def _examples(self, epoch: tf.Tensor) -> tf.Tensor:
        """int64 [N, 2]: the examples of an epoch in order."""
        count = sum(self._counts)
        seed = tf.stack([tf.constant(self._seed, tf.int64), epoch])
        keys = tf.random.stateless_uniform(
            [count], seed, minval=None, maxval=None, dtype=tf.int32, alg="philox"
        )
        records = tf.cast(tf.argsort(keys, stable=True), tf.int64)
        if self._has_repeats:
            records = tf.gather(self._with_repeats(seed), records)
        return tf.stack([records, epoch * count + tf.range(count, dtype=tf.int64)], axis=-1)

    def _with_repeats(self, seed: tf.Tensor) -> tf.Tensor:
        """int64 [sum of counts]: records, each as often as its repeats say, rounded at random.

        Systematic sampling: the points u, u + 1, u + 2, ... fall into the records' shares.
        """
        seed = tf.random.experimental.stateless_fold_in(seed, 1)
        start = tf.random.stateless_uniform([], seed, dtype=tf.float64, alg="philox")
        points = start + tf.range(sum(self._counts), dtype=tf.float64)
        places = tf.searchsorted(tf.constant(self._ends), points, side="right")
        return tf.gather(self._by_group, places)
