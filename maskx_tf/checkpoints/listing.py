"""Which checkpoints a directory has, and which is the latest."""

import os
import pathlib
import re

from maskx_tf.errors import UserError

BEST = "best"  # of a run: the model directory of its best checkpoint
LIST = "checkpoint"  # TensorFlow's list of them
_CHECKPOINT_FILE = re.compile(r"ckpt-(\d+)\.(index|data-\d{5}-of-\d{5})")


def resolved(path: str | os.PathLike[str]) -> str:
    """RUN@best as the model directory RUN/best; any other path as it is."""
    text = os.fspath(path)
    if text.endswith(f"@{BEST}") and not os.path.lexists(text):
        return os.path.join(text.removesuffix(f"@{BEST}"), BEST)
    return text


def steps_of(directory: pathlib.Path) -> list[int]:
    """Steps of which there are checkpoint files, ascending; OSError if it cannot be listed."""
    matches = [_CHECKPOINT_FILE.fullmatch(path.name) for path in directory.iterdir()]
    return sorted({int(match[1]) for match in matches if match})


def files_of(directory: pathlib.Path, step: int) -> list[pathlib.Path]:
    """The index and the data files of a checkpoint, as far as there are any."""
    return sorted(directory.glob(f"ckpt-{step}.*"))


def listed(directory: pathlib.Path) -> list[int]:
    """Steps in the list, the latest last; none if there is no list, or what is in it is no list.

    Raises:
      OSError: it is there and cannot be read.
    """
    return [int(step) for step in re.findall(r'^all_model.*ckpt-(\d+)"$', _text(directory), re.M)]


def latest(directory: str | os.PathLike[str]) -> str | None:
    """The prefix of the latest checkpoint: that of the list, or else that of the last step.

    The list's names are taken as of files in this directory, wherever the run was before.

    Raises:
      UserError: the directory or the list is there and cannot be read.
    """
    directory = pathlib.Path(directory)
    try:
        named = re.search(r'^model_checkpoint_path: "(?:.*/)?([^/\n]+)"$', _text(directory), re.M)
        if named and _has_index(directory / named[1]):
            return str(directory / named[1])
        names = [f"ckpt-{step}" for step in steps_of(directory)]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(
            f"{error.filename}: {error.strerror}; the checkpoints of {directory} cannot be looked "
            "at."
        ) from None
    names = [name for name in names if _has_index(directory / name)]
    return str(directory / names[-1]) if names else None


def has_index(directory: pathlib.Path, step: int) -> bool:
    """Whether the checkpoint of a step has an index file, readable or not."""
    return _has_index(directory / f"ckpt-{step}")


def _has_index(prefix: pathlib.Path) -> bool:
    return os.path.lexists(f"{prefix}.index")


def _text(directory: pathlib.Path) -> str:
    try:
        return (directory / LIST).read_bytes().decode("utf-8", "replace")
    except FileNotFoundError:
        return ""
