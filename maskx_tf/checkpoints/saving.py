"""Saving the checkpoints of a run so that a full disk or a power cut takes none of them."""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterator

import tensorflow as tf

from maskx_tf.checkpoints import leftovers
from maskx_tf.checkpoints.listing import latest
from maskx_tf.errors import UserError
from maskx_tf.system.files import is_full_disk, sync_directory
from maskx_tf.system.literal_paths import literal


class RunCheckpoints(tf.train.CheckpointManager):
    """A CheckpointManager whose saves either succeed as a whole or leave what was there."""

    def __init__(self, checkpoint: tf.train.Checkpoint, directory: str, **options):
        """As of the base class; `directory` is there."""
        self.model_dir = directory
        super().__init__(checkpoint, literal(directory), **options)

    def save(self, checkpoint_number=None, check_interval=True, options=None):
        """Saves as the base class does, and has the files on the disk before the list names them.

        A multiple of the interval is always saved, however far back the last checkpoint is.

        Raises:
          UserError: the directory cannot take the checkpoint; nothing of it is left.
        """
        del options
        interval = self.checkpoint_interval
        if interval and int(self._step_counter.numpy()) % interval == 0:
            check_interval = False
        options = tf.train.CheckpointOptions(experimental_write_callbacks=[_sync])
        try:
            return super().save(checkpoint_number, check_interval, options)
        except (tf.errors.OpError, OSError) as error:
            remaining = None
            # Of a new list, where there is no room for it; of what cannot be read.
            with contextlib.suppress(OSError, UserError):
                leftovers.recover(self.model_dir)
                remaining = latest(self.model_dir)
            told = f"{remaining} is kept" if remaining else "there is no earlier one"
            raise UserError(
                f"no checkpoint could be saved in {self.model_dir} ({told}): "
                f"{_reason(error, self.model_dir)}"
            ) from None


@contextlib.contextmanager
def disk_errors(model_dir: str) -> Iterator[None]:
    """Turns into a UserError that a disk is full."""
    try:
        yield
    except (tf.errors.OpError, OSError) as error:
        if not is_full_disk(error):
            raise
        raise UserError(
            f"{model_dir} takes no more files, the last checkpoint is kept: "
            f"{_reason(error, model_dir)}"
        ) from None


def _reason(error: Exception, model_dir: str) -> str:
    if not is_full_disk(error):
        return " ".join(str(error).split())[:200]
    free = shutil.disk_usage(model_dir).free
    sizes = [path.stat().st_size for path in pathlib.Path(model_dir).glob("ckpt-*.data-*")]
    needed = f"a checkpoint takes {max(sizes) / 1e6:,.1f} MB, " if sizes else ""
    return (
        f"the disk is full ({needed}{free / 1e6:,.1f} MB are free). Make room or lower "
        f"--keep_checkpoints, then repeat the command to resume from the last checkpoint."
    )


def _sync(path: str) -> None:
    """Puts the files of a checkpoint on the disk."""
    prefix = pathlib.Path(path)
    for file in prefix.parent.glob(prefix.name + ".*"):
        with open(file, "rb") as opened:
            os.fsync(opened.fileno())
    sync_directory(prefix.parent)
