"""The files of a run's checkpoints: what kills leave of them, and which of them is the latest.

A save of TensorFlow takes these steps, and a kill may fall between any two of them: the values go
to `ckpt-N_temp/`, then as `ckpt-N.data-*` into the directory; `ckpt-N.index` is written, and from
then on the checkpoint is complete; the list `checkpoint` is replaced; the index and then the data
of the oldest checkpoint are removed; the list is replaced once more. So what is in the directory
counts: `recover` keeps every complete checkpoint, removes what is none, and corrects the list.

Only what was read is removed or renamed. What cannot be read, for this user or at this moment, may
be whole: it ends the run by name, and nothing is changed.
"""

import contextlib
import os
import pathlib
import re
import shutil
import sys
from collections.abc import Callable, Iterator

import tensorflow as tf

from maskx_tf.checkpoints.listing import LIST, files_of, has_index, latest, listed, steps_of
from maskx_tf.errors import UserError, first_of
from maskx_tf.system import files
from maskx_tf.system.files import write_atomically
from maskx_tf.system.literal_paths import literal

DAMAGED = "damaged-"  # put before the name of a checkpoint that cannot be read
_LEFTOVER = re.compile(
    r"ckpt-\d+_temp.*|ckpt-\d+\..*\.tempstate\d+|checkpoint\.tmp.*"
    r"|(train\.flags|(vocabulary|validation)\.json|mask_classes\.(json|txt)|parameters\.txt)\.tmp"
    r"|bad_batch_\d+\.npz\.tmp"
)


@contextlib.contextmanager
def locked(model_dir: str) -> Iterator[None]:
    """Makes the directory and keeps other trainings out of it; a killed one leaves no lock.

    Raises:
      UserError: another process trains there.
    """

    def refuse() -> None:
        raise UserError(
            f"another process is training in {model_dir}; end it or choose another --model_dir."
        )

    with files.locked(model_dir, refuse):
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # it is not empty, or there is none
                os.rmdir(model_dir)


def recover(model_dir: str) -> None:
    """Removes what killed or failed saves left, and corrects the list of checkpoints.

    Files that are not of a training run stay. No other process may be training there.

    Raises:
      UserError: a file that counts cannot be read, or the list names checkpoints of which none is
        complete; nothing has been changed.
    """
    directory = pathlib.Path(model_dir)
    remove = [path for path in directory.iterdir() if _LEFTOVER.fullmatch(path.name)]
    in_list, steps = _listed(directory), steps_of(directory)
    # One in the list that has no index was killed while it was being removed.
    whole = [
        step
        for step in steps
        if (has_index(directory, step) if step in in_list else _is_complete(directory, step))
    ]
    if steps and in_list and not whole:
        raise UserError(
            f"{directory / LIST} names ckpt-{in_list[-1]}, and no checkpoint in {model_dir} has "
            "its .index file; put it back. To train from the first step, move ckpt-* out."
        )
    remove += [path for step in steps if step not in whole for path in files_of(directory, step)]
    for path in remove:
        _remove(path)
    if remove:
        names = ", ".join(sorted(path.name for path in remove)[:5])
        print(f"Removed {len(remove)} leftovers of a killed save: {names}", file=sys.stderr)
    _write_list(directory)


def set_damaged_aside(model_dir: str) -> None:
    """Renames the latest checkpoints if they are damaged, so that the one before is the latest.

    Restoring would find it out too late: what fails half-way stays pending in the objects.

    Raises:
      UserError: one cannot be read, or all are damaged; nothing has been renamed.
    """
    directory = pathlib.Path(model_dir)
    last = latest(directory)
    if not last:
        return
    steps = [step for step in _listed(directory) if not last.endswith(f"/ckpt-{step}")]
    paths, damaged = [*(str(directory / f"ckpt-{step}") for step in steps), last], {}
    while paths and (damage := damage_of(paths[-1])):
        damaged[pathlib.Path(paths.pop())] = damage
    if not paths:
        names = first_of([path.name for path in damaged], 5)
        raise UserError(
            f"no checkpoint in {model_dir} can be used: damaged are {names} "
            f"({next(iter(damaged.values()))}). Put a good copy in place; to train from the first "
            "step, move ckpt-* out."
        )
    for path, damage in damaged.items():
        for file in files_of(directory, _step(path)):
            file.rename(file.with_name(DAMAGED + file.name))
        print(
            f"warning: checkpoint {path} is damaged ({damage}) and set aside as "
            f"{DAMAGED}{path.name}; resuming from {paths[-1]}.",
            file=sys.stderr,
        )
    _write_list(directory)


def damage_of(path: str) -> str:
    """What is wrong with the files of a checkpoint, all of which is read; empty if nothing is.

    Raises:
      UserError: a file cannot be read, so that nothing is known of the checkpoint.
    """
    prefix = pathlib.Path(path)
    for file in files_of(prefix.parent, _step(prefix)):
        _require_readable(file)
    try:
        reader = tf.train.load_checkpoint(literal(path))
        for name in reader.get_variable_to_shape_map():
            reader.get_tensor(name)
    # The reader raises what it likes: IndexError, RuntimeError, errors of TensorFlow.
    except Exception as error:
        return " ".join(str(error).split())[:200] or type(error).__name__
    return ""


def _step(prefix: pathlib.Path) -> int:
    return int(prefix.name.removeprefix("ckpt-"))


def _is_complete(directory: pathlib.Path, step: int) -> bool:
    """Whether a checkpoint has its index and all data files that it names."""
    if not has_index(directory, step):
        return False
    _require_readable(directory / f"ckpt-{step}.index")
    try:
        tf.train.load_checkpoint(literal(directory / f"ckpt-{step}"))
    except Exception:
        return False
    data = [path.name for path in files_of(directory, step) if ".data-" in path.name]
    return bool(data) and len(data) == int(data[0].rpartition("-")[2])


def _listed(directory: pathlib.Path) -> list[int]:
    try:
        return listed(directory)
    except OSError as error:
        raise _unreadable(directory / LIST, error) from None


def _require_readable(file: pathlib.Path) -> None:
    """Reads all of a file: what TensorFlow then says of it is true of its content."""
    try:
        with open(file, "rb") as opened:
            while opened.read(1 << 24):
                pass
    except OSError as error:
        raise _unreadable(file, error) from None


def _unreadable(file: pathlib.Path, error: OSError) -> UserError:
    return UserError(
        f"{file} cannot be read: {error.strerror}. Whether the checkpoint is whole is not known; "
        "nothing was removed or renamed. Make it readable, or move it out to train on without it."
    )


def _write_list(directory: pathlib.Path) -> None:
    """Lists the checkpoints of the list that are there, and later ones; all if none of them is."""
    there, before = steps_of(directory), _listed(directory)
    # The order of the list counts: who went back to an earlier checkpoint has later steps in front.
    steps = [step for step in before if step in there]
    steps += [step for step in there if step not in before and (not steps or step > before[-1])]
    if steps == before:
        return
    if not steps:
        (directory / LIST).unlink(missing_ok=True)
        return
    written = {step: (directory / f"ckpt-{step}.index").stat().st_mtime for step in steps}
    lines = [f'model_checkpoint_path: "ckpt-{steps[-1]}"']
    lines += [f'all_model_checkpoint_paths: "ckpt-{step}"' for step in steps]
    lines += [f"all_model_checkpoint_timestamps: {written[step]}" for step in steps]
    lines += [f"last_preserved_timestamp: {min(written.values()) - 1}"]
    write_atomically(directory / LIST, "\n".join(lines) + "\n")


def _remove(path: pathlib.Path) -> None:
    remove: Callable[[pathlib.Path], None] = shutil.rmtree if path.is_dir() else os.unlink
    with contextlib.suppress(FileNotFoundError):
        remove(path)
