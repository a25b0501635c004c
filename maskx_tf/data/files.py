"""Atomic writing of small files, and whether they can be written."""

from __future__ import annotations

import os
import pathlib
import tempfile

from maskx_tf.errors import UserError


def check_writable(path: str | os.PathLike[str]) -> None:
    """UserError if a file could not be written there later; makes its directory.

    For commands whose work takes long and whose output comes last.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a directory; name a file to write.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}.") from None


def write_atomically(path: str | os.PathLike[str], data: str | bytes) -> None:
    """Writes `data` (text as UTF-8) so that `path` holds all of it or what it held before."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        file.write(data.encode() if isinstance(data, str) else data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_directory(path.parent)


def sync_directory(directory: str | os.PathLike[str]) -> None:
    """Makes renames inside `directory` durable; does nothing where directories cannot be synced."""
    try:
        descriptor = os.open(directory, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)
