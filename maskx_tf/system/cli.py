"""How every entry point starts: flags parsed, user errors printed as one line."""

import difflib
import io
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from absl import app, flags, logging

from maskx_tf.errors import UserError
from maskx_tf.system import files, flagfiles

_PACKAGES = ("maskx_tf", "tf_records", "export", "benchmarks")


def run(main: Callable[[], None]) -> None:
    """Runs `main` under absl: exit 2 and one `error: …` line on what the user can mend.

    That is a UserError, a file that cannot be opened, made or written, or a full disk.
    """

    def guarded(argv: Sequence[str]) -> None:
        if len(argv) > 1:
            _fail(f"unexpected argument {argv[1]!r}; options are written --name=value.")
        logging.set_verbosity(logging.WARNING)
        try:
            main()
        except UserError as error:
            _fail(str(error))
        except Exception as error:
            if isinstance(error, OSError) and error.filename is not None:
                names = [str(name) for name in (error.filename, error.filename2) if name]
                _fail(f"{' -> '.join(names)}: {error.strerror}.")
            if files.is_full_disk(error):  # of TensorFlow, or in the middle of a file
                text = " ".join(str(error).split())[:300]
                _fail(f"the disk is full ({text}); make room and repeat the command.")
            raise

    if isinstance(sys.stdout, io.TextIOWrapper):  # in a locale without –, a table has ? instead
        sys.stdout.reconfigure(errors="replace")
    app.run(guarded, flags_parser=_parse)


def _parse(argv: Sequence[str]) -> list[str]:
    """Parses flags; a mistyped flag or flagfile is one line with the remedy, not a usage page."""
    _show_all_in_help()
    try:
        return flags.FLAGS([argv[0], *flagfiles.expand(argv[1:])])
    except UserError as error:
        _fail(str(error))
    except flags.UnrecognizedFlagError as error:
        similar = difflib.get_close_matches(error.flagname, list(flags.FLAGS), n=1)
        hint = f" Did you mean --{similar[0]}?" if similar else ""
        _fail(f"unknown flag --{error.flagname}.{hint} See --help.")
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
