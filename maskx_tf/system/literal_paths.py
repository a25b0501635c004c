"""Paths as they are written, for what takes `[`, `*`, `?` and backslashes for a pattern."""

import atexit
import functools
import glob
import os
import pathlib
import re
import shutil
import tempfile

from maskx_tf.errors import UserError

_PATTERN = re.compile(r"[\[*?\\]")


def literal(path: str | os.PathLike[str]) -> str:
    """The same directory or file prefix by a path without characters of patterns.

    Where there are some in its directories, it leads through a symbolic link in a temporary
    directory, which goes when the process ends.

    Args:
      path: an existing directory; or a prefix of files in one, as of a checkpoint.

    Raises:
      UserError: the prefix itself has such characters, or there are no symbolic links.
    """
    path = os.fspath(path)
    if not _PATTERN.search(path):
        return path
    directory, prefix = (path, "") if os.path.isdir(path) else os.path.split(path)
    if _PATTERN.search(prefix):
        raise UserError(f"{path}: TensorFlow takes {prefix!r} for a pattern; rename it.")
    try:
        link = _link(os.path.abspath(directory))
    except OSError as error:
        raise UserError(
            f"{path}: TensorFlow takes it for a pattern, and no link to it can be made "
            f"({error.strerror}); choose a path without [, *, ? and backslashes."
        ) from None
    return os.path.join(link, prefix) if prefix else link


def matches(pattern: str) -> list[pathlib.Path]:
    """The paths of a glob pattern, sorted; directories in front of it that exist are no pattern."""
    existing = pattern
    while existing and not os.path.exists(existing):
        existing = os.path.dirname(existing)
    escaped = glob.escape(existing) + pattern[len(existing) :]
    return [pathlib.Path(path) for path in sorted(glob.glob(escaped, recursive=True))]


@functools.cache
def _link(directory: str) -> str:
    temporary = tempfile.mkdtemp(prefix="maskx_tf_")
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    link = os.path.join(temporary, "link")
    os.symlink(directory, link, target_is_directory=True)
    return link
