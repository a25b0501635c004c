"""Atomic writing of small files, whether files can be written, and locks on directories."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterable, Iterator

from maskx_tf.errors import UserError

try:
    import fcntl
except ImportError:  # Windows: no lock
    fcntl = None  # type: ignore[assignment]


_FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def is_full_disk(error: Exception) -> bool:
    """Whether an error of Python or TensorFlow says that there is no room for a file."""
    texts = [os.strerror(number) for number in _FULL_DISK]
    return getattr(error, "errno", None) in _FULL_DISK or any(text in str(error) for text in texts)


def write_atomically(path: str | os.PathLike[str], data: str | bytes | Iterable[bytes]) -> None:
    """Writes `data` so that `path` holds all of it or what it held before.

    It is bytes, or such in pieces, or text, which becomes UTF-8.
    A kill may leave a part of it, in `path` with `.tmp` added; a failure leaves nothing.

    Raises:
      OSError: it cannot be written; the error names the file.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            data = data.encode() if isinstance(data, str) else data
            file.writelines([data] if isinstance(data, bytes) else data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):  # what it takes of a full disk
            temporary.unlink()
        if isinstance(error, OSError):  # Python names no file where writing fails
            error.filename = error.filename or str(path)
        raise
    sync_directory(path.parent)


def require_writable(directory: str | os.PathLike[str], flag: str) -> None:
    """Refuses a directory that files cannot be written in, before anything is done for them.

    One that does not exist yet is not made: the nearest one above it that does has to be writable.

    Args:
      directory: that a command is going to make, with those above it, and to write in.
      flag: that named it, with its value, for the message.

    Raises:
      UserError: nothing can be written there.
    """
    existing = os.path.abspath(directory)
    while not os.path.exists(existing):
        existing = os.path.dirname(existing)
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise UserError(
            f"{flag} cannot be written: {existing}: {error.strerror}. Choose another place."
        ) from None


def require_writable_file(path: str | os.PathLike[str], flag: str) -> None:
    """`require_writable` of a file: it is not a directory, and its directory can be made."""
    if os.path.isdir(path):
        raise UserError(f"{flag} is a directory; a file in it is needed.")
    require_writable(os.path.dirname(path), flag)


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


def lock(descriptor: int, *, wait: bool = False) -> None:
    """Locks an open file or directory until it is closed or the process ends.

    Does nothing where there are no locks: on Windows and some file systems.

    Raises:
      BlockingIOError: another process holds the lock, and it is not waited for.
    """
    if fcntl is None:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise
    except OSError:
        pass


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
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        try:
            lock(descriptor)
        except BlockingIOError:
            on_busy()
            lock(descriptor, wait=True)
        yield
    finally:
        os.close(descriptor)
