"""Passes on what another process writes to stderr, but for noise; started by `maskx_tf.system.cli`.

A process of its own, and not a thread: what a crash (a failed check of TensorFlow, a segmentation
fault) says in the last moment is read from the pipe after the writer's death. Nothing but Python's
standard library is imported, so that it starts in milliseconds.
"""

import contextlib
import os
import signal

# Lines of TensorFlow that are harmless and that no log level silences: one, of a thousand
# characters, for every crop-and-resize whose number of boxes is not static, and its announcement.
NOISE = (b"op_level_cost_estimator.cc", b"All log messages before absl::InitializeLog()")
# Written at the end, which is not seen as such where child processes hold the pipe open.
STOP = b"\0maskx_tf: end of stderr\0"


def pump(source: int, target: int) -> None:
    """Copies between file descriptors until `STOP` or the end; OSError where nobody reads it."""
    held, stopped = b"", False
    while not stopped and (chunk := os.read(source, 1 << 16)):
        stopped = STOP in chunk
        *lines, held = (held + chunk.replace(STOP, b"")).split(b"\n")
        kept = b"".join(line + b"\n" for line in lines if not _is_noise(line))
        # A progress bar's line has no end yet: pass it on at once.
        if held and not held.startswith((b"W0", b"I0", b"E0", b"20")):
            kept, held = kept + held, b""
        _write_all(target, kept)
    _write_all(target, held)


def _is_noise(line: bytes) -> bool:
    return any(text in line for text in NOISE)


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


if __name__ == "__main__":
    # Signals may go to the whole group (systemd, SLURM): this process ends when its writers do.
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(OSError):  # its end is what tells the writers
        pump(0, 1)
