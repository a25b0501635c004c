"""What can go wrong with a request, by what it concerns: all images, one image, this moment."""

from __future__ import annotations

from maskx_tf.errors import UserError


class ServerError(UserError):
    """The server, or the model on it, cannot be used: no image will get an answer."""


class ImageError(UserError):
    """One image could not be read, was refused or got no answer in time; others may succeed."""


class UnavailableError(Exception):
    """The server cannot be reached, is too busy or still loads; the request may be repeated."""
