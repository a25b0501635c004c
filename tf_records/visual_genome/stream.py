"""Streams the json lists of Visual Genome, of which objects.json has up to a gigabyte."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from maskx_tf.data.coco.json_stream import JsonStream
from maskx_tf.errors import UserError


class JsonList:
    """The values of a json file that holds a list; iterate once, `sha256` is set afterwards.

    Args:
      path: of the file.
      flag: the flag that named it, for messages.

    Iterating raises UserError where the file cannot be read or is not a json list.
    """

    def __init__(self, path: str, flag: str) -> None:
        self._path, self._flag = path, flag
        self.sha256 = ""

    def __iter__(self) -> Iterator[Any]:
        with open_json(self._path, self._flag) as file:
            stream = JsonStream(file, self._path, os.path.getsize(self._path))
            yield from stream.values()
            self.sha256 = stream.sha256


def open_json(path: str, flag: str) -> Any:
    """The file, opened for reading bytes; UserError that names the flag if that fails."""
    try:
        return open(path, "rb")
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"--{flag}={path} cannot be read: {reason}.") from None
