"""What is already labelled, kept beside the output while the command runs."""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any

from maskx_tf.errors import UserError
from maskx_tf.system.files import write_atomically
from maskx_tf.system.locks import open_locked

_SYNC_LINES = 50  # lines between two writes that a power cut cannot undo


class Journal:
    """A file of json lines: what was asked for, then one result for each finished image.

    Args:
      path: of the file; it is read if it is there and was written for the same `task`, otherwise
        begun anew.
      task: all that results depend on; what json can hold.

    Raises:
      UserError: another process has it open.
    """

    def __init__(self, path: pathlib.Path, task: dict[str, Any]):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock_path = path.with_name(path.name + ".lock")
        try:
            self._lock = open_locked(self._lock_path)
        except BlockingIOError:
            raise UserError(
                f"{path} is in use: another process labels for the same --output; wait for it or "
                "choose another."
            ) from None
        lines = _whole_lines(path)
        self.results: list[dict[str, Any]] = []
        if lines and json.loads(lines[0]) == task:
            self.results = [json.loads(line) for line in lines[1:]]
        kept = [json.dumps(task), *lines[1:]] if self.results else [json.dumps(task)]
        # Without a line that was cut off.
        write_atomically(path, "".join(f"{line}\n" for line in kept))
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115
        self._unsynced = 0

    def add(self, result: dict[str, Any]) -> None:
        """Keeps the result of an image."""
        self.results.append(result)
        self._file.write(json.dumps(result) + "\n")
        self._file.flush()
        self._unsynced += 1
        if self._unsynced >= _SYNC_LINES:
            os.fsync(self._file.fileno())
            self._unsynced = 0

    def close(self, remove: bool = False) -> None:
        """Closes the file, and removes it once its content is kept elsewhere."""
        self._file.close()
        if self._lock.closed:
            return
        if remove:
            self.path.unlink(missing_ok=True)
        self._lock_path.unlink(missing_ok=True)  # only who holds the lock may
        self._lock.close()


def _whole_lines(path: pathlib.Path) -> list[str]:
    """The lines of a file up to the first that is cut off or no json object."""
    try:
        text = path.read_bytes().decode("utf-8", "replace")
    except FileNotFoundError:
        return []
    kept = []
    for line in text.split("\n")[:-1]:
        try:
            if not isinstance(json.loads(line), dict):
                break
        except ValueError:
            break
        kept.append(line)
    return kept
