"""The project's commands as users run them: in a process of their own, or in this one.

In this one, TensorFlow need not be imported again, which takes several seconds each time.
"""

import contextlib
import io
import os
import runpy
import subprocess
import sys
import warnings
from collections.abc import Iterator

from absl import app, flags  # noqa: F401 (app defines flags of its own, which stay)

from tests.harness import REPOSITORY


def in_process(
    module: str, *arguments: str, directory: str | os.PathLike[str] = REPOSITORY
) -> subprocess.CompletedProcess:
    """What `python -m module arguments…` gives in a directory, without that process."""
    out, err = io.StringIO(), io.StringIO()
    status = 0
    with (
        contextlib.chdir(directory),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        warnings.catch_warnings(),
        _command_line([module, *arguments]),
    ):
        try:
            # Of a module that a test has imported, runpy warns: it is executed again, as is meant.
            warnings.simplefilter("ignore", RuntimeWarning)
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            status = end.code or 0
    return subprocess.CompletedProcess(arguments, status, out.getvalue(), err.getvalue())


def as_process(module: str, *arguments: str) -> subprocess.CompletedProcess:
    """`python -m module arguments…` in the repository's root."""
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)


@contextlib.contextmanager
def _command_line(words: list[str]) -> Iterator[None]:
    """sys.argv, and absl's flags as in a new process."""
    argv, known = sys.argv, set(flags.FLAGS)
    sys.argv = words
    try:
        yield
    finally:
        sys.argv = argv
        for name in set(flags.FLAGS) - known:
            delattr(flags.FLAGS, name)
        flags.FLAGS.unparse_flags()
