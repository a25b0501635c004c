"""A lock on a file, which a killed process does not leave locked."""

from __future__ import annotations

import contextlib
import os
import pathlib
from typing import BinaryIO

from maskx_tf.system import files


def open_locked(path: pathlib.Path) -> BinaryIO:
    """Makes the file and locks it; the lock goes when the file is closed or the process ends.

    Raises:
      BlockingIOError: another process holds the lock.
      OSError: the file cannot be made.
    """
    while True:
        file = open(path, "ab")  # noqa: SIM115  (stays open as long as the lock is held)
        try:
            files.lock(file.fileno())
        except BlockingIOError:
            file.close()
            raise
        # The process that held the lock until now may have removed the file.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file
        file.close()
