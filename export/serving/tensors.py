"""Tensors of gRPC requests and responses: TensorProto ↔ NumPy, without trusting the sender."""

from __future__ import annotations

import math

import numpy as np
import tensorflow as tf

from export.serving import errors


def from_proto(name: str, proto, limit_bytes: int) -> np.ndarray:
    """The array in a TensorProto; strings as an object array of bytes.

    A proto of a few bytes may claim any shape and have its one value repeated, so the size is
    checked before anything is allocated.

    Args:
      name: the input, for messages.
      proto: `TensorProto` from a client.
      limit_bytes: largest array accepted.

    Raises:
      ServingError: INVALID_ARGUMENT.
    """
    try:
        dtype = tf.as_dtype(proto.dtype)
        shape = [int(dim.size) for dim in proto.tensor_shape.dim]
    except TypeError:
        raise errors.invalid(f"input {name}: unknown dtype {proto.dtype}") from None
    if proto.tensor_shape.unknown_rank or any(size < 0 for size in shape):
        raise errors.invalid(f"input {name}: the shape {shape} is not fully defined")
    count = math.prod(shape)
    if count * max(dtype.size or 0, 1) > limit_bytes:
        raise errors.invalid(f"input {name}: shape {shape} exceeds {limit_bytes} bytes")
    if dtype == tf.string and len(proto.string_val) != count:
        found = len(proto.string_val)
        raise errors.invalid(f"input {name}: {found} string_val for shape {shape}")
    try:
        return tf.make_ndarray(proto).reshape(shape)
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise errors.invalid(f"input {name}: malformed TensorProto: {error}") from None


def to_proto(array: np.ndarray):
    """A TensorProto of an array."""
    return tf.make_tensor_proto(array)
