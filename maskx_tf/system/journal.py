"""What is already done, kept beside an output while the command runs."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator
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
      keep: what of a result stays in memory; all of it if nothing is said.

    Attributes:
      results: what is kept of each.

    Raises:
      UserError: another process has it open.
    """

    def __init__(
        self,
        path: pathlib.Path,
        task: dict[str, Any],
        keep: Callable[[dict[str, Any]], Any] = lambda result: result,
    ):
        self.path, self._keep = path, keep
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock_path = path.with_name(path.name + ".lock")
        try:
            self._lock = open_locked(self._lock_path)
        except BlockingIOError:
            raise UserError(
                f"{path} is in use: another process writes the same output; wait for it or choose "
                "another."
            ) from None
        self.results: list[Any] = []
        size = 0
        for content, end in _whole_lines(path):
            if not size and content != task:
                break
            if size:
                self.results.append(keep(content))
            size = end
        if size:
            os.truncate(path, size)  # without a line that was cut off
        else:
            write_atomically(path, json.dumps(task) + "\n")
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115
        self._unsynced = 0

    def add(self, result: dict[str, Any]) -> None:
        """Keeps the result of an image."""
        self.results.append(self._keep(result))
        self._file.write(json.dumps(result) + "\n")
        self._file.flush()
        self._unsynced += 1
        if self._unsynced >= _SYNC_LINES:
            os.fsync(self._file.fileno())
            self._unsynced = 0

    def stored(self) -> Iterator[dict[str, Any]]:
        """All results, read from the file one at a time."""
        lines = _whole_lines(self.path)
        next(lines, None)  # the task
        yield from (content for content, _ in lines)

    def close(self, remove: bool = False) -> None:
        """Closes the file, and removes it once its content is kept elsewhere."""
        with contextlib.suppress(OSError):  # of what a full disk did not take
            self._file.close()
        if self._lock.closed:
            return
        if remove:
            self.path.unlink(missing_ok=True)
        self._lock_path.unlink(missing_ok=True)  # only who holds the lock may
        self._lock.close()


def _whole_lines(path: pathlib.Path) -> Iterator[tuple[dict[str, Any], int]]:
    """(content, position of its end) of the lines before the first that is no json object."""
    end = 0
    try:
        file = open(path, "rb")  # noqa: SIM115
    except FileNotFoundError:
        return
    with file:
        for line in file:
            try:
                content = json.loads(line)
            except ValueError:
                return
            if not isinstance(content, dict) or not line.endswith(b"\n"):
                return
            end += len(line)
            yield content, end
