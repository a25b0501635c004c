"""Flagfiles: found in the working directory or among those of the package, and read.

`configs/…` names the same file in a checkout and, after `pip install`, in any directory. What
shells expand is expanded here too: `~` and `$NAME`, and quotes in files.
"""

import os
import pathlib
import re
from collections.abc import Callable, Sequence

from maskx_tf.errors import UserError

OF_A_RUN = "train.flags"  # the effective options of a run, in its directory
_PACKAGE = pathlib.Path(__file__).resolve().parents[1]


def resolve(name: str) -> str:
    """The path to open for a file's name: as it is, or else the package's own `configs/…`."""
    packaged = _PACKAGE / name
    if name.startswith("configs/") and not os.path.exists(name) and packaged.exists():
        return str(packaged)
    return os.path.expanduser(name)


def expand(arguments: Sequence[str], note: Callable[[str], None] = lambda text: None) -> list[str]:
    """Replaces each `--flagfile=NAME` by the lines of its file, and of those that it includes.

    As absl does, but for `resolve` and what shells expand: blank lines and comments (# or //) are
    left out, and nothing after `--` is looked at. The file of a run names its own directory as
    --model_dir, wherever the run was when it was written.

    Args:
      arguments: of a command line.
      note: is told of a run that was written elsewhere.

    Raises:
      UserError: a file that cannot be read, that includes itself, or has a variable without value.
    """
    expanded: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument in ("--flagfile", "-flagfile"):
            argument = f"--flagfile={next(rest, '')}"
        if argument == "--":
            return [*expanded, argument, *rest]
        lines = _lines(os.path.expandvars(argument), (), note)
        expanded += [_at_home(line) for line in lines]
    return expanded


def _lines(line: str, including: tuple[str, ...], note: Callable[[str], None]) -> list[str]:
    """The line itself, or those of the flagfile that it names; `including`: the files above it."""
    option, _, name = line.partition("=")
    if option not in ("--flagfile", "-flagfile") or not name:
        return [line]
    name = name.strip()
    where = f"flagfile {name}" + "".join(f", included in {file}" for file in including)
    if name in including:
        raise UserError(f"{where}: it includes itself; remove one of the lines.")
    try:
        text = pathlib.Path(resolve(name)).read_text()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise UserError(f"{where}: {reason}; its path is relative to {os.getcwd()}.") from None
    lines = (line.strip() for line in text.splitlines())
    flags = [
        flag
        for line in lines
        if line and not line.startswith(("#", "//"))
        for flag in _lines(_expanded(line, name), (name, *including), note)
    ]
    directory, file = os.path.split(resolve(name))
    # A directory alone with this file is no run: it may be a copy to start another from.
    if file == OF_A_RUN and os.path.exists(os.path.join(directory, "vocabulary.json")):
        flags = [_of_this_run(flag, directory or ".", note) for flag in flags]
    return flags


def _of_this_run(flag: str, directory: str, note: Callable[[str], None]) -> str:
    """A flag of a run's file, where the run may have been moved or copied to another directory."""
    option, _, value = flag.partition("=")
    if option != "--model_dir" or os.path.realpath(value) == os.path.realpath(directory):
        return flag
    note(
        f"{os.path.join(directory, OF_A_RUN)} was written in {value}; the run is taken to be where "
        f"the file is now: --model_dir={directory}"
    )
    return f"--model_dir={directory}"


def _expanded(line: str, file: str) -> str:
    """A line of a file with its variables, and without the quotes around its value."""
    if not line.startswith("-") or os.path.basename(file) == OF_A_RUN:  # written by the program
        return line
    if quoted := re.fullmatch(r"""(--?\w+=)(["'])([^"',]*)\2""", line):
        line = quoted[1] + quoted[3]
    line = os.path.expandvars(line)
    if unset := re.search(r"\$(\w+|\{\w+\})", line):
        raise UserError(f"flagfile {file}: {unset[0]} in {line} has no value; set it or write it.")
    return line


def _at_home(flag: str) -> str:
    """An option with `~/…` and `~user/…` expanded, in each item of a list."""
    option, equals, value = flag.partition("=")
    if not option.startswith("-") or "~" not in value:
        return flag
    items = [os.path.expanduser(item) for item in value.split(",")]
    return f"{option}{equals}{','.join(items)}"
