"""SIGTERM, SIGINT and SIGHUP end a run where nothing is lost: at once, or between two steps."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

from maskx_tf.system import ending


class Interrupted(SystemExit):
    """The process was asked to end; its exit status is 128 + signal (SIGTERM 143)."""

    def __init__(self, signal_number: int):
        super().__init__(128 + signal_number)
        self.signal_name = signal.Signals(signal_number).name


class Interruption:
    """Receives SIGTERM, SIGINT and SIGHUP, which comes when the terminal or ssh is gone.

    Inside `handled` they raise `Interrupted` wherever the main thread is; inside `deferred` they
    wait for who asks `received`. A second SIGINT does not wait: Ctrl-C twice ends at once, and
    nothing is saved.
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self._deferred = False

    @contextlib.contextmanager
    def handled(self) -> Iterator[None]:
        """Takes the signals over; does nothing outside the main thread, which alone can.

        SIGHUP stays ignored where it was, by nohup.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        signals = [signal.SIGTERM, signal.SIGINT]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            signals.append(signal.SIGHUP)
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
        if number == signal.SIGHUP:
            ending.leave_lost_terminal()
        if not self._deferred:
            raise Interrupted(number)
        if number == again == signal.SIGINT:
            raise SystemExit(128 + number)
        # Not print: the signal may have come in the middle of one.
        name = signal.Signals(number).name
        with contextlib.suppress(OSError):
            os.write(2, f"{name}: ending after this step, with a checkpoint.\n".encode())
