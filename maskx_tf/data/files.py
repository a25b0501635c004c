"""Atomic writing of small files, and locks on directories."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Callable, Iterator

try:
    import fcntl
except ImportError:  # Windows: no lock
    fcntl = None  # type: ignore[assignment]


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


@contextlib.contextmanager
def locked(
    directory: str | os.PathLike[str], on_busy: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Makes the directory and keeps other processes that lock it out; a killed one leaves no lock.

    Args:
      directory: which one.
      on_busy: called where another process holds the lock; waits for it unless this raises.
    """
    os.makedirs(directory, exist_ok=True)
    if fcntl is None:
        yield
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_busy()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(descriptor)
