"""How a command ends: with a line on what is wrong, on Ctrl-C, or because nobody reads it."""

import contextlib
import os
import select
import sys
from collections.abc import Iterator
from typing import NoReturn


def fail(message: str) -> NoReturn:
    """Prints `error: …`, red in a terminal, and ends with status 2."""
    title = "error:"
    if sys.stderr.isatty() and not os.environ.get("NO_COLOR"):
        title = f"\033[1;31m{title}\033[0m"
    print(title, message, file=sys.stderr)
    sys.exit(2)


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Within it, Ctrl-C and the closed pipe of `… | head` end the process without a traceback.

    The exit status is that of the signal, as shells give it: 130 (SIGINT), 141 (SIGPIPE).
    """
    _open_streams()
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        closed = [descriptor for descriptor in (1, 2) if _is_closed(descriptor)]
        if not closed:  # some other pipe
            raise
        for descriptor in closed:  # for what is still buffered
            _to_nowhere(descriptor)
        sys.exit(141)


def leave_lost_terminal() -> None:
    """Sends to nowhere what is written to a terminal that has gone; writing to it would fail."""
    for descriptor in (1, 2):
        if _is_closed(descriptor):
            _to_nowhere(descriptor)


def _open_streams() -> None:
    """Opens stdout and stderr where the parent closed them (`2>&-`).

    Else the next file to be opened would get their number, and be written to.
    """
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            _to_nowhere(descriptor)
            setattr(sys, name, os.fdopen(descriptor, "w", closefd=False))


def _to_nowhere(descriptor: int) -> None:
    opened = os.open(os.devnull, os.O_WRONLY)
    if opened != descriptor:  # the number itself was free
        os.dup2(opened, descriptor)
        os.close(opened)


def _is_closed(descriptor: int) -> bool:
    """Whether nobody reads what is written there."""
    poll = select.poll()
    poll.register(descriptor, 0)
    return bool(poll.poll(0))
