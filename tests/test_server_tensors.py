"""TensorProtos of strangers, and what becomes of TensorFlow's errors."""

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st

from export.serving import errors, tensors
from export.serving.errors import Code, ServingError

LIMIT = 1 << 20


def proto(dtype=tf.float32, shape=(2,), **values):
    made = tf.make_tensor_proto(0.0)
    made.Clear()
    made.dtype = tf.as_dtype(dtype).as_datatype_enum
    for size in shape:
        made.tensor_shape.dim.add(size=size)
    for name, value in values.items():
        if name == "tensor_content":
            made.tensor_content = value
        else:
            getattr(made, name).extend(value)
    return made


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.arange(6, dtype=np.uint8),
        np.array([[True, False]]),
        np.array([b"a", b"\xff\x00"], object),
        np.zeros([0, 3], np.int64),
        np.array(7, np.int32),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_round_trip(array):
    found = tensors.from_proto("x", tensors.to_proto(array), LIMIT)
    np.testing.assert_array_equal(found, array)
    assert found.dtype == array.dtype


def test_one_value_fills_a_shape():
    found = tensors.from_proto("x", proto(shape=(2, 2), float_val=[3.0]), LIMIT)
    np.testing.assert_array_equal(found, np.full([2, 2], 3.0))


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (proto(shape=(1 << 20, 1 << 20), float_val=[1.0]), "exceeds 1048576 bytes"),
        (proto(shape=(1 << 62, 1 << 62), float_val=[1.0]), "exceeds 1048576 bytes"),
        (proto(shape=(-1,), float_val=[1.0]), "not fully defined"),
        (proto(shape=(2,), float_val=[1.0, 2.0, 3.0]), "malformed TensorProto"),
        (proto(shape=(2,), tensor_content=b"abc"), "malformed TensorProto"),
        (proto(shape=(2,), tensor_content=b"abcd"), "malformed TensorProto"),
        (proto(tf.string, (1000,), string_val=[b"x" * 1000]), "1 string_val for shape"),
        (proto(tf.string, (1,)), "0 string_val for shape"),
        (proto(tf.variant, (1,)), "malformed TensorProto"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_malformed(made, text):
    with pytest.raises(ServingError, match=text) as caught:
        tensors.from_proto("x", made, LIMIT)
    assert caught.value.code is Code.INVALID_ARGUMENT


def test_unknown_dtype_and_rank():
    made = proto(float_val=[1.0])
    made.dtype = 999
    with pytest.raises(ServingError, match="unknown dtype 999"):
        tensors.from_proto("x", made, LIMIT)
    made = proto(float_val=[1.0], shape=())
    made.tensor_shape.unknown_rank = True
    with pytest.raises(ServingError, match="not fully defined"):
        tensors.from_proto("x", made, LIMIT)


@hypothesis.given(st.binary(max_size=60))
@hypothesis.settings(max_examples=300, deadline=None)
def test_any_bytes_are_an_array_or_a_clear_refusal(data):
    made = tf.make_tensor_proto(0.0)
    try:
        made.ParseFromString(data)
    except Exception:
        return
    try:
        assert isinstance(tensors.from_proto("x", made, LIMIT), np.ndarray)
    except ServingError as error:
        assert error.code is Code.INVALID_ARGUMENT


def test_tensorflow_errors_keep_their_code_and_lose_their_place():
    message = (
        "Graph execution error:\n\nDetected at node 'map/x' defined at (most recent call last):\n"
        "Node: 'map/x'\nUnknown image.\n\t [[{{node map/x}}]]\n\nOriginal stack trace for 'x':\n a"
    )
    error = errors.from_tensorflow(tf.errors.InvalidArgumentError(None, None, message))
    assert (error.code, error.message, error.http_status) == (
        Code.INVALID_ARGUMENT,
        "Unknown image.",
        400,
    )
    for kind, code, status in (
        (tf.errors.DeadlineExceededError, Code.DEADLINE_EXCEEDED, 504),
        (tf.errors.ResourceExhaustedError, Code.RESOURCE_EXHAUSTED, 429),
        (tf.errors.InternalError, Code.INTERNAL, 500),
    ):
        error = errors.from_tensorflow(kind(None, None, "m"))
        assert (error.code, error.http_status) == (code, status)


def test_long_messages_are_cut():
    assert len(errors.invalid("x" * 10_000).message) == errors.MAX_MESSAGE_CHARS
