"""An append-only store of arrays on disk: `RowStore`."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO, NamedTuple

import numpy as np

from maskx_tf.errors import UserError
from maskx_tf.system import files

_INDEX = "entries.json"
_COMMIT_INTERVAL = 25  # entries


@dataclasses.dataclass(frozen=True)
class Array:
    """An array of a `RowStore`: its name, the type it is kept in, and the shape of a row."""

    name: str
    dtype: str
    shape: tuple[int, ...] = ()


class RowStore:
    """Entries of several arrays each, any number of rows of each, in one flat file an array.

    `entries.json` counts the rows of each entry that is safely there; what a killed process wrote
    beyond them is cut off by the next one. Entries that are there never change: a process may read
    while another adds.

    Args:
      directory: made if absent.
      arrays: what an entry consists of.
    """

    def __init__(self, directory: pathlib.Path, arrays: Sequence[Array]):
        self._directory, self._arrays = directory, tuple(arrays)
        directory.mkdir(parents=True, exist_ok=True)
        self._rows: list[list[int]] = []
        self._mapped: _Mapped | None = None
        self._read_index()

    def _read_index(self) -> None:
        index = self._directory / _INDEX
        self._rows = json.loads(index.read_text()) if index.is_file() else []
        self._mapped = None

    @contextlib.contextmanager
    def filling(self) -> Iterator[None]:
        """Waits until no other process fills the store, and has the entries that others added."""

        def say() -> None:
            print(f"Waiting for another process that fills {self._directory}", file=sys.stderr)

        with files.locked(self._directory, say), _full_disk(self._directory):
            self._read_index()
            yield

    def __len__(self) -> int:
        return len(self._rows)

    def total(self, name: str) -> int:
        """The rows of an array over all entries."""
        column = [array.name for array in self._arrays].index(name)
        return sum(rows[column] for rows in self._rows)

    def append(self, entries: Iterable[Sequence[np.ndarray]]) -> None:
        """Adds entries, inside `filling`: of each one array [rows, …] for each of the store's."""
        self._mapped = None
        paths = [self._directory / f"{array.name}.bin" for array in self._arrays]
        counts = np.sum(self._rows, axis=0, dtype=int) if self._rows else [0] * len(paths)
        opened = [open(path, "ab") for path in paths]  # noqa: SIM115
        try:
            for file, array, count in zip(opened, self._arrays, counts, strict=True):
                file.truncate(int(count) * _row_bytes(array))
            for number, entry in enumerate(entries, start=1):
                for file, array, values in zip(opened, self._arrays, entry, strict=True):
                    file.write(np.ascontiguousarray(values, array.dtype).tobytes())
                self._rows.append([len(values) for values in entry])
                if number % _COMMIT_INTERVAL == 0:
                    self._commit(opened)
            self._commit(opened)
        finally:
            for file in opened:
                file.close()

    def _commit(self, opened: Sequence[BinaryIO]) -> None:
        for file in opened:
            file.flush()
            os.fsync(file.fileno())  # before the index names the rows
        files.write_atomically(self._directory / _INDEX, json.dumps(self._rows))

    def read(self, entry: int) -> list[np.ndarray]:
        """The arrays of an entry, read-only views of the files; several threads may read."""
        # Set once whole, so that no thread sees half of it; two that map at once do no harm.
        mapped = self._mapped = self._mapped or self._map()
        last = mapped.ends[entry]
        first = last - self._rows[entry]
        return [rows[a:b] for rows, a, b in zip(mapped.arrays, first, last, strict=True)]

    def _map(self) -> _Mapped:
        ends = np.cumsum(self._rows, axis=0, dtype=np.int64)
        arrays: list[np.ndarray] = []
        for array, count in zip(self._arrays, ends[-1], strict=True):
            path, shape = self._directory / f"{array.name}.bin", (int(count), *array.shape)
            if count:
                arrays.append(np.memmap(path, np.dtype(array.dtype), "r", shape=shape))
            else:
                arrays.append(np.zeros(shape, array.dtype))
        return _Mapped(ends, arrays)


class _Mapped(NamedTuple):
    """The files as arrays; `ends` int64 [entries, arrays] bounds the entries' rows."""

    ends: np.ndarray
    arrays: list[np.ndarray]


@contextlib.contextmanager
def _full_disk(directory: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if not files.is_full_disk(error):
            raise
        free = shutil.disk_usage(directory).free / 1e6
        raise UserError(
            f"--feature_cache: {directory} takes no more files: the disk is full ({free:,.1f} MB "
            "are free). Make room, name another disk, or leave the flag out; then repeat "
            "the command to resume."
        ) from None


def _row_bytes(array: Array) -> int:
    return int(np.prod(array.shape)) * np.dtype(array.dtype).itemsize
