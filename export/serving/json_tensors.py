"""Tensors of REST requests: TensorFlow Serving's row and column JSON to NumPy."""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from export.serving import errors

_KINDS = {
    b"\xff\xd8\xff": "a JPEG file",
    b"\x89PNG\r\n": "a PNG file",
    b"RIFF": "a WebP file",
    b"GIF8": "a GIF file",
    b"data:": "a data: URL",
}
# How base64 of such files begins.
_BASE64_KINDS = ("/9j/", "iVBORw0KGgo", "UklGR", "R0lGOD")
_REMEDY = 'send {"instances": [{"image_bytes": {"b64": "…"}}]}, the file in base64'
# Lists and objects in one body: each takes 60 bytes and more in memory, and 2 in the body.
MAX_CONTAINERS = 3_000_000


def parse(body: bytes) -> dict[str, Any]:
    """The JSON object of a request body; NaN and Infinity are numbers, as in TensorFlow Serving.

    Raises:
      ServingError: INVALID_ARGUMENT, also for nesting or containers beyond reason.
    """
    if not body:
        raise errors.invalid("JSON Parse error: The document is empty")
    if body.count(b"[") + body.count(b"{") > MAX_CONTAINERS:
        raise errors.invalid(
            f"more than {MAX_CONTAINERS} JSON lists; send the encoded file, or use gRPC"
        )
    if kind := _kind_of(body):
        raise errors.invalid(f"the body is {kind}, not JSON; {_REMEDY}")
    try:
        document = json.loads(body)
    except RecursionError:
        raise errors.invalid("JSON Parse error: nested too deeply") from None
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise errors.invalid(f"JSON Parse error: {error}") from None
    if not isinstance(document, dict):
        raise errors.invalid(f"JSON Value: {_brief(document)} Is not object")
    return document


def _kind_of(body: bytes) -> str:
    """What a body is that clients send in place of JSON; empty if it is none of these."""
    for start, kind in _KINDS.items():
        if body.startswith(start):
            return kind
    if body.startswith(b"--") and b"Content-Disposition" in body[:1000]:
        return "a form with parts (multipart)"
    return ""


def signature_name(document: dict[str, Any]) -> str:
    """The request's `signature_name`; empty for the default."""
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise errors.invalid("'signature_name' key must be a string value.")
    return name


def inputs(
    document: dict[str, Any], signature: Mapping[str, Any]
) -> tuple[dict[str, np.ndarray], bool]:
    """The input arrays of a request, and whether it is in row format.

    Args:
      document: of `parse`.
      signature: TensorInfo by input name, as in a SignatureDef.

    Raises:
      ServingError: INVALID_ARGUMENT.
    """
    by_row = "instances" in document
    if by_row == ("inputs" in document):
        if by_row:
            raise errors.invalid("expecting only one of 'inputs' or 'instances' keys to exist")
        example = ", ".join(f'"{name}": …' for name in sorted(signature))
        raise errors.invalid(
            f"Missing 'inputs' or 'instances' key; send {{\"instances\": [{{{example}}}]}}"
        )
    columns = _rows(document["instances"], signature) if by_row else _columns(document, signature)
    return {name: to_array(name, value, signature[name]) for name, value in columns.items()}, by_row


def _rows(instances: Any, signature: Mapping[str, Any]) -> dict[str, list]:
    if not isinstance(instances, list) or not instances:
        raise errors.invalid("'instances' must be a list with at least one element")
    named = {isinstance(item, dict) and not _is_base64(item) for item in instances}
    if len(named) > 1:
        raise errors.invalid("'instances' mixes objects with plain values")
    if named == {False}:
        return {_only(signature, "instances"): instances}
    names = sorted(signature)
    for index, item in enumerate(instances):
        if sorted(item) != names:
            raise errors.invalid(
                f"Failed to process element: {index} of 'instances' list. JSON object: "
                f"{_brief(item)} keys must be equal to: {','.join(names)}"
            )
    return {name: [item[name] for item in instances] for name in names}


def _columns(document: dict[str, Any], signature: Mapping[str, Any]) -> dict[str, Any]:
    value = document["inputs"]
    if not isinstance(value, dict) or _is_base64(value):
        return {_only(signature, "inputs"): value}
    if missing := sorted(signature.keys() - value.keys()):
        raise errors.invalid(f"Missing named input: {missing[0]} in 'inputs' object.")
    return {name: value[name] for name in signature}  # others are ignored, as there


def _only(signature: Mapping[str, Any], key: str) -> str:
    if len(signature) != 1:
        names = ", ".join(sorted(signature))
        raise errors.invalid(f"{key} is a plain value/list, but the signature's inputs are {names}")
    return next(iter(signature))


def to_array(name: str, value: Any, info) -> np.ndarray:
    """The array that nested lists spell out, of the dtype of a TensorInfo."""
    shape, level = [], [value]
    while (kinds := set(map(type, level))) == {list}:
        lengths = set(map(len, level))
        if len(lengths) > 1:
            raise errors.invalid(
                f"input {name}: lists of lengths {sorted(lengths)[:4]} at one level"
            )
        shape.append(lengths.pop())
        level = list(itertools.chain.from_iterable(level))
    if list in kinds:
        raise errors.invalid(f"input {name}: lists and values at level {len(shape)}")
    dtype = tf.as_dtype(info.dtype)
    if len(shape) > 32:
        raise errors.invalid(f"input {name}: lists nested {len(shape)} deep")
    return _leaves(name, level, kinds, dtype).reshape(shape)


def _leaves(name: str, values: list, kinds: set[type], dtype: tf.DType) -> np.ndarray:
    """Values of one dtype, flat. JSON's types must match: a boolean is no number."""
    if dtype == tf.string and kinds <= {str, dict}:
        array = np.empty(len(values), object)
        array[:] = [_to_bytes(name, value) for value in values]
        return array
    if dtype == tf.bool and kinds <= {bool}:
        return np.array(values, bool)
    kind = dtype.as_numpy_dtype
    if dtype.is_floating and kinds <= {int, float}:
        return _floats(name, values, kind)
    if dtype.is_integer and kinds <= {int}:
        limits = np.iinfo(kind)
        if values and not limits.min <= min(values) <= max(values) <= limits.max:
            raise errors.invalid(f"input {name}: values beyond the range of {dtype.name}")
        return np.array(values, kind)
    found = ", ".join(sorted(_JSON_TYPES[kind] for kind in kinds))
    raise errors.invalid(f"input {name}: JSON type {found} is not of expected type: {dtype.name}")


_JSON_TYPES = {
    str: "String", dict: "Object", bool: "Boolean", int: "Number (integer)",
    float: "Number (decimal)", type(None): "Null",
}  # fmt: skip


def _floats(name: str, values: list, kind: type) -> np.ndarray:
    try:
        doubles = np.array(values, np.float64)
    except OverflowError:
        raise errors.invalid(f"input {name}: an integer too large for a decimal") from None
    with np.errstate(over="ignore"):  # too large for it is infinite, as in TensorFlow Serving
        return doubles.astype(kind)


def _is_base64(value: Any) -> bool:
    return isinstance(value, dict) and len(value) == 1 and isinstance(value.get("b64"), str)


def _to_bytes(name: str, value: str | dict) -> bytes:
    try:
        if isinstance(value, str):
            _refuse_image_text(name, value)
            return value.encode()
        if not _is_base64(value):
            raise errors.invalid(
                f"input {name}: JSON Value: {_brief(value)} not formatted correctly for base64 "
                'data, {"b64": "…"}'
            )
        text = "".join(value["b64"].split())
        if text.startswith("data:"):
            raise errors.invalid(
                f"input {name}: a data: URL in b64; send only what follows its comma"
            )
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except UnicodeEncodeError:
        raise errors.invalid(f"input {name}: a string with half a surrogate pair") from None
    except ValueError:
        raise errors.invalid(f"input {name}: Unable to base64 decode") from None


def _refuse_image_text(name: str, text: str) -> None:
    """Refuses an image as text: what it is meant for would get the text in place of the image."""
    if text.startswith("data:image/"):
        raise errors.invalid(
            f'input {name}: a data: URL; send {{"b64": "…"}} with what follows its comma'
        )
    if text.startswith(_BASE64_KINDS):
        raise errors.invalid(
            f'input {name}: an image in base64 has to be marked so: {{"b64": "…"}}, not plain text'
        )


def _brief(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 100 else text[:99] + "…"
