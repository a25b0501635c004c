"""Batches formed inside the graph out of concurrent requests (TensorFlow's BatchFunction)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import tensorflow as tf

from maskx_tf.errors import UserError


@dataclasses.dataclass(frozen=True)
class Batching:
    """How batches are formed.

    Attributes:
      allowed_sizes: sizes a batch may have, rising; it is filled up to the next one. The last one
        is the largest batch; a larger call is split, and refused (INVALID_ARGUMENT) where it has
        more than `most_rows`.
      timeout_us: microseconds that a request waits for others.
      threads: batches that run at the same time.
      max_enqueued: full batches that wait; a request beyond is refused at once (UNAVAILABLE).
    """

    allowed_sizes: tuple[int, ...] = (1, 2, 4)
    timeout_us: int = 2000
    threads: int = 2
    max_enqueued: int = 16

    @property
    def most_rows(self) -> int:
        """Rows of one call at most: those of all the batches that may wait."""
        return self.allowed_sizes[-1] * self.max_enqueued

    def __post_init__(self):
        sizes = self.allowed_sizes
        if not sizes or sizes[0] < 1 or list(sizes) != sorted(set(sizes)):
            raise UserError(
                f"--allowed_batch_sizes={list(sizes)} must be ascending numbers from 1."
            )
        for flag, value, least in (
            ("batch_timeout_micros", self.timeout_us, 0),
            ("num_batch_threads", self.threads, 1),
            ("max_enqueued_batches", self.max_enqueued, 1),
        ):
            if value < least:
                raise UserError(f"--{flag}={value} is too small; the minimum is {least}.")


def on_rows(
    function: Callable[..., dict[str, tf.Tensor]],
    signature: Sequence[tf.TensorSpec],
    batching: Batching | None,
    name: str,
) -> Callable[..., dict[str, tf.Tensor]]:
    """The same function for any number of rows, also none, of one call or of concurrent ones.

    `tf.nondifferentiable_batch_function` batches as well, but names the batcher after the scope:
    two functions, or two versions of a model in one process, would share one.

    Args:
      function: of tensors to a dictionary of tensors, all with one leading dimension of rows.
      signature: of its arguments, [None, …] each.
      batching: how the rows of concurrent calls become batches; None: each call is one.
      name: of the batcher, unique in every process that the graph will be loaded in.

    Returns:
      A function to be called in graphs.
    """
    # The body of a BatchFunction is run as it is; a call in it that is not inlined is optimised
    # first (convolution, bias and ReLU become one kernel, …).
    apart = tf.function(function, autograph=False, experimental_attributes={"_noinline": True})
    concrete = tf.function(
        lambda *arguments: apart(*arguments), input_signature=list(signature), autograph=False
    ).get_concrete_function()
    outputs = concrete.structured_outputs

    def run(*arguments: tf.Tensor) -> dict[str, tf.Tensor]:
        if batching is None:
            return concrete(*arguments)
        found = tf.raw_ops.BatchFunction(
            in_tensors=list(arguments),
            captured_tensors=concrete.captured_inputs,
            f=concrete,
            num_batch_threads=batching.threads,
            # With splitting, this bounds a call and the last allowed size a batch.
            max_batch_size=batching.most_rows,
            batch_timeout_micros=batching.timeout_us,
            allowed_batch_sizes=list(batching.allowed_sizes),
            max_enqueued_batches=batching.max_enqueued,
            shared_name=name,
            enable_large_batch_splitting=True,
            Tout=[output.dtype for output in concrete.outputs],
        )
        found = tf.nest.pack_sequence_as(outputs, found)
        return {key: tf.ensure_shape(found[key], outputs[key].shape) for key in outputs}

    def no_rows() -> dict[str, tf.Tensor]:
        return {key: tf.zeros([0, *value.shape[1:]], value.dtype) for key, value in outputs.items()}

    return lambda *arguments: tf.cond(
        tf.shape(arguments[0])[0] > 0, lambda: run(*arguments), no_rows
    )
