"""SIGTERM and SIGINT end a run where nothing is lost: at once, or between two training steps."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator


class Interrupted(SystemExit):
    """The process was asked to end; its exit status is 128 + signal (SIGTERM 143, SIGINT 130)."""

    def __init__(self, signal_number: int):
        super().__init__(128 + signal_number)
        self.signal_name = signal.Signals(signal_number).name


class Interruption:
    """Receives SIGTERM and SIGINT.

    Inside `handled` they raise `Interrupted` wherever the main thread is; inside `deferred` they
    wait for who asks `received`. A second SIGINT does not wait: Ctrl-C twice ends at once, and
    nothing is saved.
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self._deferred = False

    @contextlib.contextmanager
    def handled(self) -> Iterator[None]:
        """Takes the two signals over; does nothing outside the main thread, which alone can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        signals = (signal.SIGTERM, signal.SIGINT)
        before = {number: signal.signal(number, self._receive) for number in signals}
        try:
            yield
        finally:
            for number, handler in before.items():
                # None: a handler that is not Python's, which cannot be put back.
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Within it, signals wait."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    @property
    def received(self) -> bool:
        """Whether a signal has come."""
        return self._received is not None

    def end(self) -> None:
        """Raises `Interrupted`, as of SIGTERM if the signal came to another process."""
        raise Interrupted(self._received or signal.SIGTERM)

    def _receive(self, number: int, frame: object) -> None:
        del frame
        again, self._received = self._received, number
        if not self._deferred:
            raise Interrupted(number)
        if number == again == signal.SIGINT:
            raise SystemExit(128 + number)
        # Not print: the signal may have come in the middle of one.
        name = signal.Signals(number).name
        os.write(2, f"{name}: ending after this step, with a checkpoint.\n".encode())
