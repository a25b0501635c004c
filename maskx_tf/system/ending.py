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
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
        sys.exit(141)


def _is_closed(descriptor: int) -> bool:
    """Whether nobody reads what is written there."""
    poll = select.poll()
    poll.register(descriptor, 0)
    return bool(poll.poll(0))
