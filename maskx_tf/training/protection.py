"""What surrounds a training that may be killed, interrupted, or run out of disk: `protected`."""

import contextlib
from collections.abc import Iterator

import tensorflow as tf

from maskx_tf.checkpoints import leftovers
from maskx_tf.checkpoints.saving import disk_errors
from maskx_tf.system.interruption import Interruption
from maskx_tf.training import devices
from maskx_tf.training.agreement import Agreement


@contextlib.contextmanager
def protected(model_dir: str, strategy: tf.distribute.Strategy) -> Iterator[Interruption]:
    """Within it no other process trains in the directory, and its checkpoints can be read.

    What a killed process left is removed, a damaged checkpoint set aside. Signals raise
    `Interrupted`, or wait for the end of a step where that is asked of what this yields.

    Raises:
      UserError: another process trains there; or, out of what is within, the disk is full or
        another worker has ended.
    """
    interruption = Interruption()
    is_chief = devices.is_chief(strategy)
    lock = leftovers.locked(model_dir) if is_chief else contextlib.nullcontext()
    with interruption.handled(), disk_errors(model_dir), devices.lost_workers(strategy), lock:
        if is_chief:
            leftovers.recover(model_dir)
            leftovers.set_damaged_aside(model_dir)
        Agreement(strategy).wait()  # for what the chief leaves to be restored
        yield interruption
