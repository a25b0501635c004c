"""How every entry point starts: flags parsed, user errors printed as one line, noise left out."""

import atexit
import contextlib
import difflib
import os
import sys
import threading
from collections.abc import Callable, Sequence
from typing import NoReturn

from absl import app, flags, logging

from maskx_tf.errors import UserError

# Lines of TensorFlow that are harmless and that no log level silences: one, of a thousand
# characters, for every crop-and-resize whose number of boxes is not static, and its announcement.
_NOISE = (b"op_level_cost_estimator.cc", b"All log messages before absl::InitializeLog()")
_STOP = b"\0maskx_tf: end of stderr\0"
_PACKAGES = ("maskx_tf", "tf_records", "export", "benchmarks")


def run(main: Callable[[], None]) -> None:
    """Runs `main` under absl: exit 2 and one `error: …` line on what the user can mend.

    That is a UserError, or a file that cannot be opened, made or written.
    """

    def guarded(argv: Sequence[str]) -> None:
        if len(argv) > 1:
            _fail(f"unexpected argument {argv[1]!r}; options are written --name=value.")
        logging.set_verbosity(logging.WARNING)
        try:
            main()
        except UserError as error:
            _fail(str(error))
        except OSError as error:
            if error.filename is None:
                raise
            names = [str(name) for name in (error.filename, error.filename2) if name is not None]
            _fail(f"{' -> '.join(names)}: {error.strerror}.")

    _filter_stderr()
    app.run(guarded, flags_parser=_parse)


def _parse(argv: Sequence[str]) -> list[str]:
    """Parses flags; a mistyped flag or flagfile is one line with the remedy, not a usage page."""
    _show_all_in_help()
    try:
        return flags.FLAGS(list(argv))
    except flags.UnrecognizedFlagError as error:
        similar = difflib.get_close_matches(error.flagname, list(flags.FLAGS), n=1)
        hint = f" Did you mean --{similar[0]}?" if similar else ""
        _fail(f"unknown flag --{error.flagname}.{hint} See --help.")
    except flags.CantOpenFlagFileError as error:
        reason = str(error).removeprefix("ERROR:: Unable to open flagfile: ")
        _fail(f"flagfile: {reason}; its path is relative to the working directory.")
    except flags.Error as error:
        _fail(" ".join(str(error).split()))


def _show_all_in_help() -> None:
    """Has --help list what the command's modules define; by itself absl lists the main one's."""
    values = flags.FLAGS
    for module, defined in values.flags_by_module_dict().items():
        if module.split(".")[0] in _PACKAGES:
            for flag in defined:
                values.register_key_flag_for_module(sys.argv[0], flag)


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def _filter_stderr() -> None:
    """Passes everything written to file descriptor 2 on, but for lines of `_NOISE`."""
    original = os.dup(2)
    read_end, write_end = os.pipe()
    os.dup2(write_end, 2)
    os.close(write_end)

    def pump() -> None:
        try:
            pass_on()
        except OSError:  # nobody reads it, or its disk is full: let writers find out by themselves
            os.dup2(original, 2)
            os.close(read_end)

    def pass_on() -> None:
        held, stopped = b"", False
        while not stopped and (chunk := os.read(read_end, 1 << 16)):
            stopped = _STOP in chunk
            *lines, held = (held + chunk.replace(_STOP, b"")).split(b"\n")
            kept = b"".join(line + b"\n" for line in lines if not _is_noise(line))
            # A progress bar's line has no end yet: pass it on at once.
            if held and not held.startswith((b"W0", b"I0", b"E0", b"20")):
                kept, held = kept + held, b""
            _write_all(original, kept)
        _write_all(original, held)

    thread = threading.Thread(target=pump, daemon=True)
    thread.start()

    def restore() -> None:
        with contextlib.suppress(OSError):
            sys.stderr.flush()
            # Child processes may hold the pipe open, so that its end is not seen as such.
            if thread.is_alive():
                os.write(2, _STOP)
        os.dup2(original, 2)
        thread.join(timeout=2)

    atexit.register(restore)


def _is_noise(line: bytes) -> bool:
    return any(text in line for text in _NOISE)


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
