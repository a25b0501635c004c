"""How every entry point starts: flags parsed, user errors printed as one line."""

import difflib
import io
import re
import sys
from collections.abc import Callable, Sequence

from absl import app, flags, logging

from maskx_tf.errors import UserError
from maskx_tf.system import files, flagfiles, usage, verbs
from maskx_tf.system.ending import fail, quietly


def run(main: Callable[[], None]) -> None:
    """Runs `main` under absl: exit 2 and one `error: …` line on what the user can mend.

    That is a UserError, a file that cannot be opened, made or written, or a full disk. `--help`,
    Ctrl-C and output that nobody reads end it without a traceback too.
    """

    def guarded(argv: Sequence[str]) -> None:
        if len(argv) > 1:
            fail(f"unexpected argument {argv[1]!r}; options are written --name=value.")
        logging.set_verbosity(logging.WARNING)
        try:
            main()
        except UserError as error:
            fail(str(error))
        except BrokenPipeError:
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.filename is not None:
                names = [str(name) for name in (error.filename, error.filename2) if name]
                fail(f"{' -> '.join(names)}: {error.strerror}.")
            if files.is_full_disk(error):  # of TensorFlow, or in the middle of a file
                text = " ".join(str(error).split())[:300]
                fail(f"the disk is full ({text}); make room and repeat the command.")
            raise

    if isinstance(sys.stdout, io.TextIOWrapper):  # in a locale without –, a table has ? instead
        sys.stdout.reconfigure(errors="replace")
    with quietly():
        app.run(guarded, flags_parser=_parse)


def first_to_flag(argv: Sequence[str], name: str) -> list[str]:
    """The command line with its first word as --name=WORD, unless that is a flag itself."""
    words = list(argv)
    if words[1:] and not words[1].startswith("-"):
        words[1] = f"--{name}={words[1]}"
    return words


def _note(text: str) -> None:
    print(text, file=sys.stderr)


def _parse(argv: Sequence[str]) -> list[str]:
    """Parses flags; a mistyped flag or flagfile is one line with the remedy, not a usage page."""
    if verbs.asks_for_help(argv[1:]):
        print(usage.text())
        sys.exit()
    try:
        return flags.FLAGS([argv[0], *flagfiles.expand(argv[1:], _note)])
    except SystemExit:  # --helpfull and the like, which absl gives status 1
        sys.exit()
    except UserError as error:
        fail(str(error))
    except flags.UnrecognizedFlagError as error:
        similar = difflib.get_close_matches(error.flagname, list(flags.FLAGS), n=1)
        hint = f" Did you mean --{similar[0]}?" if similar else ""
        fail(f"unknown flag --{error.flagname}.{hint} See --help.")
    except flags.Error as error:
        text = " ".join(str(error).split())
        if missing := re.search(r"Flag --(\w+) must have a value other than None", text):
            fail(f"--{missing[1]}=… is needed; see --help.")
        fail(text)
