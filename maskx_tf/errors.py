"""The one error type that users see, and what its messages are made of."""

from collections.abc import Sequence


class UserError(Exception):
    """Something the user gave is wrong; the message names the thing and the remedy.

    Entry points print it as a single line without a traceback, see `maskx_tf.system.cli.run`.
    """


class ImageError(UserError):
    """One image could not be read, was refused or got no answer in time; others may succeed."""


def first_of(names: Sequence[str], most: int = 8) -> str:
    """The first `most` names, for a message; an ellipsis stands for the others."""
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")
