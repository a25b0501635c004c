"""The one error type that users see."""


class UserError(Exception):
    """Something the user gave is wrong; the message names the thing and the remedy.

    Entry points print it as a single line without a traceback, see `maskx_tf.cli.run`.
    """
