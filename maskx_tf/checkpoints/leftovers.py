"""The files of a run's checkpoints: what kills leave of them, and which of them is the latest.

A save of TensorFlow takes these steps, and a kill may fall between any two of them: the values go
to `ckpt-N_temp/`, then as `ckpt-N.data-*` into the directory; `ckpt-N.index` is written, and from
then on the checkpoint is complete; the list `checkpoint` is replaced; the index and then the data
of the oldest checkpoint are removed; the list is replaced once more. So what is in the directory
counts: `recover` keeps every complete checkpoint, removes what is none, and corrects the list.
"""

import contextlib
import os
import pathlib
import re
import shutil
import sys
from collections.abc import Callable, Iterator

import tensorflow as tf

from maskx_tf.errors import UserError
from maskx_tf.system import files
from maskx_tf.system.files import write_atomically

LIST = "checkpoint"
DAMAGED = "damaged-"  # put before the name of a checkpoint that cannot be read
_CHECKPOINT_FILE = re.compile(r"ckpt-(\d+)\.(index|data-\d{5}-of-\d{5})")
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
    """
    directory = pathlib.Path(model_dir)
    leftovers = [path for path in directory.iterdir() if _LEFTOVER.fullmatch(path.name)]
    for path in leftovers:
        _remove(path)
    listed = _listed(directory)
    for step in _steps(directory):
        if step not in listed and not _is_complete(directory, step):
            leftovers += _files(directory, step)
            for path in _files(directory, step):
                _remove(path)
    if leftovers:
        names = ", ".join(sorted(path.name for path in leftovers)[:5])
        print(f"Removed {len(leftovers)} leftovers of a killed save: {names}", file=sys.stderr)
    _write_list(directory)


def set_damaged_aside(model_dir: str) -> None:
    """Renames the latest checkpoints if they cannot be read whole, so that one before is latest.

    Restoring would find it out too late: what fails half-way stays pending in the objects.
    """
    while (path := tf.train.latest_checkpoint(model_dir)) and (damage := damage_of(path)):
        prefix = pathlib.Path(path)
        for file in _files(prefix.parent, int(prefix.name.removeprefix("ckpt-"))):
            file.rename(file.with_name(DAMAGED + file.name))
        _write_list(prefix.parent)
        before = tf.train.latest_checkpoint(model_dir)
        rest = f"resuming from {before}" if before else "there is no other"
        print(
            f"warning: checkpoint {path} is damaged ({damage}) and set aside as "
            f"{DAMAGED}{prefix.name}; {rest}.",
            file=sys.stderr,
        )


def damage_of(path: str) -> str:
    """What is wrong with the files of a checkpoint, all of which is read; empty if nothing is."""
    try:
        reader = tf.train.load_checkpoint(path)
        for name in reader.get_variable_to_shape_map():
            reader.get_tensor(name)
    # The reader raises what it likes: IndexError, RuntimeError, errors of TensorFlow.
    except Exception as error:
        return " ".join(str(error).split())[:200] or type(error).__name__
    return ""


def _steps(directory: pathlib.Path) -> list[int]:
    """Steps of which there are checkpoint files, ascending."""
    matches = [_CHECKPOINT_FILE.fullmatch(path.name) for path in directory.iterdir()]
    return sorted({int(match[1]) for match in matches if match})


def _files(directory: pathlib.Path, step: int) -> list[pathlib.Path]:
    return sorted(directory.glob(f"ckpt-{step}.*"))


def _is_complete(directory: pathlib.Path, step: int) -> bool:
    """Whether a checkpoint has its index, readable, and all data files that it names."""
    try:
        tf.train.load_checkpoint(str(directory / f"ckpt-{step}"))
    except Exception:
        return False
    data = [path.name for path in _files(directory, step) if ".data-" in path.name]
    return bool(data) and len(data) == int(data[0].rpartition("-")[2])


def _listed(directory: pathlib.Path) -> list[int]:
    """Steps in the list of checkpoints, the latest last; none if it is absent or unreadable."""
    try:
        text = (directory / LIST).read_text()
    except (OSError, UnicodeDecodeError):
        return []
    return [int(step) for step in re.findall(r'^all_model.*ckpt-(\d+)"$', text, re.MULTILINE)]


def _write_list(directory: pathlib.Path) -> None:
    """Lists the checkpoints of the list that have an index, and later ones."""
    for step in _steps(directory):
        if not (directory / f"ckpt-{step}.index").exists():  # killed while it was being removed
            for path in _files(directory, step):
                _remove(path)
    there, listed = _steps(directory), _listed(directory)
    # The order of the list counts: who went back to an earlier checkpoint has later steps in front.
    steps = [step for step in listed if step in there]
    new = [step for step in there if step not in listed]
    steps += [step for step in new if not listed or step > listed[-1]]
    if steps == listed:
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
