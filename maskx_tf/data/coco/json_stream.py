"""Reads a json file entry by entry, so that one of gigabytes takes little memory.

Python's own decoder reads each entry: streaming parsers refuse the NaN that `json` writes.
"""

from __future__ import annotations

import codecs
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator
from typing import Any, BinaryIO

import tqdm

from maskx_tf.errors import UserError

_CHUNK_BYTES = 1 << 22
_LONGEST_ENTRY = 1 << 27  # characters; beyond it the file is broken, not long
_LONGEST_TOKEN = 16  # characters of -Infinity or an escape, cut off at the end of the window
_CUT_NUMBER = 2  # characters after a number that may go on in the next piece: "1" of 1e-5
_SPACE = " \t\n\r"


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """A value of the top-level object, or one item of such a list.

    Attributes:
      key: of the top-level object.
      index: in the list; None for what is no list, and for the start of one (value []).
      value: as `json` gives it.
      text: as it stands in the file.
    """

    key: str
    index: int | None
    value: Any
    text: str


class JsonStream:
    """The entries of a json file; `sha256` (hex) is that of the file once all are taken.

    Args:
      file: UTF-8, 16 or 32.
      path: names the file in messages.
      size: bytes, for the progress bar, shown where reading takes more than a second.
    """

    def __init__(self, file: BinaryIO, path: str, size: int | None = None) -> None:
        self._file, self._path = file, path
        self._digest = hashlib.sha256()
        self._decoder: codecs.IncrementalDecoder | None = None
        self._scan = json.JSONDecoder().raw_decode
        self._text, self._position, self._at_end = "", 0, False
        self._bytes = self._chars = self._lines = 0  # before the window
        self._column = 0  # of the window's first character
        self._bar = tqdm.tqdm(
            total=size,
            desc=os.path.basename(path),
            unit="B",
            unit_scale=True,
            delay=1,
            dynamic_ncols=True,
        )

    @property
    def sha256(self) -> str:
        """Of what was read so far."""
        return self._digest.hexdigest()

    def values(self) -> Iterator[Any]:
        """The values of the list at the top.

        Raises:
          UserError: the file is not json, or holds something else at the top.
        """
        with self._bar:
            if self._next() != "[":
                raise UserError(f"{self._path} holds no json list at its top level.")
            for value, _ in self._items():
                yield value
            if self._next():
                raise self._error("Extra data")

    def entries(self) -> Iterator[Entry]:
        """The entries of the object at the top; of another value nothing, though it is read.

        Raises:
          UserError: the file is not json; names line and column.
        """
        with self._bar:
            symbol = self._next()
            if symbol == "{":
                yield from self._members()
            elif symbol == "[":
                for _ in self._items():
                    pass
            else:
                self._value()
            if self._next():
                raise self._error("Extra data")

    def is_object(self) -> bool:
        """Whether an object is at the top; to be asked first."""
        return self._next() == "{"

    def _members(self) -> Iterator[Entry]:
        self._position += 1
        if self._next() == "}":
            self._position += 1
            return
        while True:
            if self._next() != '"':
                raise self._error("Expecting property name enclosed in double quotes")
            key, _ = self._value()
            self._take(":", "Expecting ':' delimiter")
            if self._next() == "[":
                yield Entry(key, None, [], "[")
                for index, (value, text) in enumerate(self._items()):
                    yield Entry(key, index, value, text)
            else:
                yield Entry(key, None, *self._value())
            if self._take(",}", "Expecting ',' delimiter") == "}":
                return

    def _items(self) -> Iterator[tuple[Any, str]]:
        self._position += 1
        if self._next() == "]":
            self._position += 1
            return
        while True:
            self._next()
            yield self._value()
            if self._take(",]", "Expecting ',' delimiter") == "]":
                return

    def _take(self, symbols: str, otherwise: str) -> str:
        symbol = self._next()
        if not symbol or symbol not in symbols:
            raise self._error(otherwise)
        self._position += 1
        return symbol

    def _next(self) -> str:
        """The next character that is no space, or "" at the end; it is not taken."""
        while True:
            while self._position < len(self._text):
                if (symbol := self._text[self._position]) not in _SPACE:
                    return symbol
                self._position += 1
            if not self._grow():
                return ""

    def _value(self) -> tuple[Any, str]:
        """The value that starts here, and its text."""
        while True:
            start = self._position
            try:
                value, end = self._scan(self._text, start)
                if len(self._text) - end > _CUT_NUMBER or not self._grow():
                    end += self._position - start
                    text = self._text[self._position : end]
                    self._position = end
                    return value, text
            except json.JSONDecodeError as error:
                open_end = error.msg.startswith("Unterminated string")
                open_end |= error.pos >= len(self._text) - _LONGEST_TOKEN
                length = len(self._text) - start
                if not open_end or length > _LONGEST_ENTRY or not self._grow():
                    raise self._error(error.msg, error.pos - start) from None
            except (ValueError, RecursionError) as error:  # a number or a nesting without end
                raise self._error(str(error)) from None

    def _grow(self) -> bool:
        """Reads on, further each time an entry does not end; False at the end of the file."""
        if self._at_end:
            return False
        data = self._file.read(max(_CHUNK_BYTES, len(self._text) - self._position))
        self._digest.update(data)
        self._bar.update(len(data))
        self._at_end = not data
        if self._decoder is None:
            encoding = json.detect_encoding(data)
            self._decoder = codecs.getincrementaldecoder(encoding)("surrogatepass")
        pending = len(self._decoder.getstate()[0])
        try:
            text = self._decoder.decode(data, final=self._at_end)
        except UnicodeDecodeError as error:
            place = self._bytes - pending + error.start
            raise UserError(f"{self._path} is not json: {error.reason} at byte {place}.") from None
        self._bytes += len(data)
        self._move()
        self._text += text
        return not self._at_end

    def _move(self) -> None:
        """Lets the window start at the position."""
        passed = self._text[: self._position]
        self._chars += len(passed)
        if newlines := passed.count("\n"):
            self._lines += newlines
            self._column = len(passed) - passed.rindex("\n") - 1
        else:
            self._column += len(passed)
        self._text, self._position = self._text[self._position :], 0

    def _error(self, message: str, ahead: int = 0) -> UserError:
        self._position = max(self._position + ahead, 0)
        self._move()
        hint = ""
        if message == "Extra data":
            hint = " Is it one json after the other (jsonl)? Take one json with all."
        elif message.startswith("Expecting") and self._text[:1] in ("]", "}"):
            hint = " Is there a comma before a closing bracket? Remove it."
        elif message.startswith("Unterminated") or not self._text.strip():
            hint = " Was the file cut off? Fetch or write it again."
        return UserError(
            f"{self._path} is not json: {message}: line {self._lines + 1} column "
            f"{self._column + 1} (char {self._chars}).{hint}"
        )
