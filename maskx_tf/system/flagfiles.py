"""Flagfiles: found in the working directory or among those of the package, and read.

`configs/…` names the same file in a checkout and, after `pip install`, in any directory.
"""

import os
import pathlib
from collections.abc import Sequence

from maskx_tf.errors import UserError

_PACKAGE = pathlib.Path(__file__).resolve().parents[1]


def resolve(name: str) -> str:
    """The path to open for a file's name: as it is, or else the package's own `configs/…`."""
    packaged = _PACKAGE / name
    if name.startswith("configs/") and not os.path.exists(name) and packaged.exists():
        return str(packaged)
    return os.path.expanduser(name)


def expand(arguments: Sequence[str]) -> list[str]:
    """Replaces each `--flagfile=NAME` by the lines of its file, and of those that it includes.

    As absl does, but for `resolve`: blank lines and comments (# or //) are left out, and nothing
    after `--` is looked at.

    Raises:
      UserError: a file that cannot be read, or that includes itself.
    """
    expanded: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument in ("--flagfile", "-flagfile"):
            argument = f"--flagfile={next(rest, '')}"
        if argument == "--":
            return [*expanded, argument, *rest]
        expanded += _lines(argument, ())
    return expanded


def _lines(line: str, including: tuple[str, ...]) -> list[str]:
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
    return [
        flag
        for line in lines
        if line and not line.startswith(("#", "//"))
        for flag in _lines(line, (name, *including))
    ]
