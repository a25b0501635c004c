"""JSON tensors: round trips, TensorFlow Serving's two formats, and a clear refusal of the rest."""

import json
import re

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from export.serving import json_outputs, json_tensors
from export.serving.errors import Code, ServingError


class Info:
    """What `to_array` reads of a TensorInfo."""

    def __init__(self, dtype):
        self.dtype = tf.as_dtype(dtype).as_datatype_enum


def refused(function, *arguments):
    with pytest.raises(ServingError) as caught:
        function(*arguments)
    assert caught.value.code is Code.INVALID_ARGUMENT
    return caught.value.message


DTYPES = [np.float32, np.float64, np.int32, np.int64, np.uint8, np.uint64, np.bool_]


@hypothesis.given(
    st.sampled_from(DTYPES).flatmap(
        lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=1, max_dims=4, min_side=0))
    )
)
@hypothesis.settings(max_examples=60, deadline=None)
def test_numbers_survive_both_directions(array):
    """Bit for bit, NaN and infinities included, but for the shape behind an empty axis."""
    body = json_outputs.encode({"y": array}, by_row=True)
    value = json.loads(body)["predictions"]
    found = json_tensors.to_array("y", value, Info(array.dtype))
    assert found.dtype == array.dtype
    if array.size:
        np.testing.assert_array_equal(found, array)
    else:
        assert found.size == 0


@hypothesis.given(st.lists(st.binary(max_size=20), min_size=1, max_size=5))
@hypothesis.settings(max_examples=50, deadline=None)
def test_bytes_survive_both_directions(values):
    array = np.empty(len(values), object)
    array[:] = values
    value = json.loads(json_outputs.encode({"y_bytes": array}, by_row=False))["outputs"]
    assert json_tensors.to_array("y", value, Info(tf.string)).tolist() == values


def test_base64_may_lack_its_padding_and_hold_line_breaks():
    for text in ("aGVsbG8=", "aGVsbG8", "aGVs\nbG8=\n"):
        found = json_tensors.to_array("y", [{"b64": text}], Info(tf.string))
        assert found.tolist() == [b"hello"]


def test_strings_are_base64_only_where_the_name_ends_in_bytes():
    array = np.array([b"\xff", b"ok"], object)
    outputs = {"name": array, "name_bytes": array}
    rows = json.loads(json_outputs.encode(outputs, by_row=True))["predictions"]
    assert rows[1] == {"name": "ok", "name_bytes": {"b64": "b2s="}}
    assert rows[0] == {"name": "\ufffd", "name_bytes": {"b64": "/w=="}}


def test_one_output_has_no_name():
    outputs = {"y": np.array([[1], [2]])}
    assert json.loads(json_outputs.encode(outputs, by_row=True)) == {"predictions": [[1], [2]]}
    assert json.loads(json_outputs.encode(outputs, by_row=False)) == {"outputs": [[1], [2]]}


def test_row_format_needs_a_common_batch():
    outputs = {"y": np.zeros([2]), "total": np.zeros([])}
    assert "inconsistent batch sizes" in refused(json_outputs.encode, outputs, True)
    assert json.loads(json_outputs.encode(outputs, False)) == {
        "outputs": {"y": [0.0, 0.0], "total": 0.0}
    }


TWO = {"a": Info(tf.int32), "b": Info(tf.string)}


def test_rows_and_columns_are_the_same_request():
    rows = {"instances": [{"a": 1, "b": "x"}, {"b": {"b64": "eQ=="}, "a": 2}]}
    columns = {"inputs": {"a": [1, 2], "b": ["x", "y"]}}
    for document, by_row in ((rows, True), (columns, False)):
        arrays, found_by_row = json_tensors.inputs(document, TWO)
        assert found_by_row is by_row
        assert {k: v.tolist() for k, v in arrays.items()} == {"a": [1, 2], "b": [b"x", b"y"]}


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ({}, "Missing 'inputs' or 'instances'"),
        ({"instances": [], "inputs": []}, "only one of"),
        ({"instances": []}, "at least one element"),
        ({"instances": {"a": 1}}, "must be a list"),
        ({"instances": [1]}, "plain value/list, but the signature's inputs are a, b"),
        ({"inputs": [1]}, "plain value/list, but the signature's inputs are a, b"),
        ({"instances": [{"a": 1, "b": "x"}, 3]}, "mixes"),
        ({"instances": [{"a": 1}]}, "element: 0 .* keys must be equal to: a,b"),
        ({"instances": [{"a": 1, "b": "x", "c": 2}]}, "keys must be equal to"),
        ({"inputs": {"a": 1}}, "Missing named input: b"),
        ({"inputs": {"a": [1, [2]], "b": ["x"]}}, "lists and values at level 1"),
        ({"inputs": {"a": [[1], [2, 3]], "b": ["x"]}}, "lists of lengths"),
        ({"inputs": {"a": [True], "b": ["x"]}}, "JSON type Boolean is not .*int32"),
        ({"inputs": {"a": [1.5], "b": ["x"]}}, "JSON type Number .decimal. is not .*int32"),
        ({"inputs": {"a": [None], "b": ["x"]}}, "JSON type Null is not .*int32"),
        ({"inputs": {"a": ["1"], "b": ["x"]}}, "JSON type String is not .*int32"),
        ({"inputs": {"a": [{"b64": "eQ=="}], "b": ["x"]}}, "JSON type Object is not"),
        ({"inputs": {"a": [2**31], "b": ["x"]}}, "beyond the range of int32"),
        ({"inputs": {"a": [10**400], "b": ["x"]}}, "beyond the range of int32"),
        ({"inputs": {"a": [1], "b": [1]}}, "JSON type Number .integer. is not .*string"),
        ({"inputs": {"a": [1], "b": [{"b64": "a"}]}}, "Unable to base64 decode"),
        ({"inputs": {"a": [1], "b": [{"b64": "héllo"}]}}, "Unable to base64 decode"),
        ({"inputs": {"a": [1], "b": [{"b64": 1}]}}, "not formatted correctly for base64"),
        ({"inputs": {"a": [1], "b": [{"b64": "eQ==", "c": 1}]}}, "not formatted correctly"),
        ({"inputs": {"a": [1], "b": ["\ud800"]}}, "half a surrogate pair"),
        ({"a": 1, "b": "x"}, r'send \{"instances": \[\{"a": …, "b": …\}\]\}'),
        ({"inputs": {"a": [1], "b": ["/9j/4AAQSkZJRg"]}}, r'image in base64 .*\{"b64": "…"\}'),
        ({"inputs": {"a": [1], "b": ["data:image/png;base64,iVB"]}}, "data: URL; send .*b64"),
        ({"inputs": {"a": [1], "b": [{"b64": "data:image/png;base64,iVB"}]}}, "follows its comma"),
    ],
)
def test_wrong_inputs(document, text):
    assert re.search(text, refused(json_tensors.inputs, document, TWO))


@pytest.mark.parametrize("value", [1e39, -1e39, 10**60, 1.79769e308])
def test_floats_out_of_range_are_infinite(value):
    found = json_tensors.to_array("y", [value], Info(tf.float32))
    assert found.tolist() == [np.copysign(np.inf, value)]


def test_an_integer_beyond_decimals():
    assert "too large" in refused(json_tensors.to_array, "y", [10**400], Info(tf.float32))


def test_inputs_that_the_signature_lacks_are_ignored_in_columns():
    found, _ = json_tensors.inputs({"inputs": {"a": [1], "b": ["x"], "c": 0}}, TWO)
    assert {name: array.tolist() for name, array in found.items()} == {"a": [1], "b": [b"x"]}


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "document is empty"),
        (b"{", "JSON Parse error"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", 'is a JPEG file, not JSON; send {"instances": [{"image_by'),
        (b"\x89PNG\r\n\x1a\n\0", "is a PNG file, not JSON; send"),
        (b"data:image/png;base64,iVBORw0KGgo=", "is a data: URL, not JSON; send"),
        (b'--x\r\nContent-Disposition: form-data; name="f"\r\n\r\n', "multipart"),
        (b"[]", "Is not object"),
        (b"\xff\xfe{", "JSON Parse error"),
        (b'{"a": ' + b"[" * 200_000, "nested too deeply"),
        (b'{"a": ' + b"1" * 5000 + b"}", "JSON Parse error"),
        (b"[" + b"{}," * (json_tensors.MAX_CONTAINERS + 1), "JSON lists; send the encoded file"),
    ],
    ids=[
        "empty",
        "open",
        "jpeg",
        "png",
        "url",
        "multipart",
        "list",
        "utf16",
        "deep",
        "digits",
        "containers",
    ],
)
def test_wrong_json(body, text):
    assert text in refused(json_tensors.parse, body)


def test_nan_is_a_number():
    document = json_tensors.parse(b'{"inputs": [NaN, -Infinity, 1]}')
    arrays, _ = json_tensors.inputs(document, {"y": Info(tf.float32)})
    np.testing.assert_array_equal(arrays["y"], np.float32([np.nan, -np.inf, 1]))


def test_signature_name():
    assert json_tensors.signature_name({}) == ""
    assert json_tensors.signature_name({"signature_name": "x"}) == "x"
    assert "must be a string" in refused(json_tensors.signature_name, {"signature_name": 3})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["a", "b", "b64", "instances", "inputs"]), inner)
    ),
    max_leaves=20,
)


@hypothesis.given(JSON, st.sampled_from([tf.string, tf.uint8, tf.float32, tf.bool, tf.int64]))
@hypothesis.settings(max_examples=150, deadline=None)
def test_any_json_is_an_array_or_a_clear_refusal(value, dtype):
    for document in ({"inputs": value}, {"instances": value}, value):
        try:
            document = json_tensors.parse(json.dumps(document).encode())
            arrays, _ = json_tensors.inputs(document, {"a": Info(dtype)})
        except ServingError as error:
            assert error.code is Code.INVALID_ARGUMENT and error.message
        else:
            assert {array.dtype for array in arrays.values()} == {np.dtype(dtype.as_numpy_dtype)}
