"""The one error a client sees: a canonical code and a message, the same over REST and gRPC."""

from __future__ import annotations

import re
from http import HTTPStatus

from grpc import StatusCode as Code

# gRPC's trailing metadata is limited to some 8 kB; a message echoing input must not exceed it.
MAX_MESSAGE_CHARS = 1000

_HTTP = {
    Code.CANCELLED: 499,
    Code.INVALID_ARGUMENT: HTTPStatus.BAD_REQUEST,
    Code.FAILED_PRECONDITION: HTTPStatus.BAD_REQUEST,
    Code.OUT_OF_RANGE: HTTPStatus.BAD_REQUEST,
    Code.UNAUTHENTICATED: HTTPStatus.UNAUTHORIZED,
    Code.PERMISSION_DENIED: HTTPStatus.FORBIDDEN,
    Code.NOT_FOUND: HTTPStatus.NOT_FOUND,
    Code.ALREADY_EXISTS: HTTPStatus.CONFLICT,
    Code.ABORTED: HTTPStatus.CONFLICT,
    Code.RESOURCE_EXHAUSTED: HTTPStatus.TOO_MANY_REQUESTS,
    Code.UNIMPLEMENTED: HTTPStatus.NOT_IMPLEMENTED,
    Code.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    Code.DEADLINE_EXCEEDED: HTTPStatus.GATEWAY_TIMEOUT,
}
_BY_NUMBER = {code.value[0]: code for code in Code}
# What TensorFlow's session puts around the message of a failed operation.
_PREFIX = "Graph execution error:"
_PLACE = re.compile(r"\s*\[\[.*?\]\]")  # [[{{node …}}]]
_TRACE = re.compile(r"\s*(Original stack trace for|Errors may have originated).*", re.DOTALL)


class ServingError(Exception):
    """A request that is refused.

    Attributes:
      code: a `grpc.StatusCode`, never OK.
      message: for the client, at most `MAX_MESSAGE_CHARS` characters.
      http_status: what TensorFlow Serving maps the code to, 500 where it names none; unless
        HTTP has a status for just this.
    """

    def __init__(self, code: Code, message: str, http_status: int = 0):
        if len(message) > MAX_MESSAGE_CHARS:
            message = message[: MAX_MESSAGE_CHARS - 1] + "…"
        super().__init__(message)
        self.code = code
        self.message = message
        self.http_status = http_status or int(_HTTP.get(code, HTTPStatus.INTERNAL_SERVER_ERROR))


def invalid(message: str) -> ServingError:
    """The request itself is wrong."""
    return ServingError(Code.INVALID_ARGUMENT, message)


def from_tensorflow(error) -> ServingError:
    """A `tf.errors.OpError` with its code, without the operation's place in the graph."""
    message = _PLACE.sub("", _TRACE.sub("", error.message.removeprefix(_PREFIX))).strip()
    noise = ("Detected at node", "Node: ")
    kept = [line for line in message.splitlines() if not line.startswith(noise)]
    code = _BY_NUMBER.get(error.error_code, Code.UNKNOWN)
    if code is Code.DEADLINE_EXCEEDED:  # TensorFlow's words: Timed out waiting for notification
        kept = ["the deadline passed while the model ran"]
    return ServingError(code, "\n".join(kept).strip() or type(error).__name__)
