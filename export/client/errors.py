"""What can go wrong with a request: of all images, or for the moment.

What concerns one image is a `maskx_tf.errors.ImageError`.
"""

from __future__ import annotations

from maskx_tf.errors import UserError


class ServerError(UserError):
    """The server, or the model on it, cannot be used: no image will get an answer."""


class UnavailableError(Exception):
    """The server cannot be reached, is too busy or still loads; the request may be repeated."""
