"""Tensors of REST responses: NumPy to TensorFlow Serving's row and column JSON."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from export.serving import errors

_BYTES_SUFFIX = "_bytes"


def encode(outputs: Mapping[str, np.ndarray], by_row: bool) -> bytes:
    """The response body: `predictions` in row format, `outputs` in column format.

    Strings of outputs whose name ends in `_bytes` become {"b64": …}.

    Raises:
      ServingError: INVALID_ARGUMENT, where row format is asked of outputs without a common batch.
    """
    if by_row:
        sizes = {name: array.shape[0] if array.ndim else None for name, array in outputs.items()}
        if None in sizes.values() or len(set(sizes.values())) != 1:
            raise errors.invalid(f"outputs have inconsistent batch sizes: {sizes}; use 'inputs'")
    columns = {name: _to_json(name, array) for name, array in outputs.items()}
    if len(columns) == 1:
        (value,) = columns.values()
    elif by_row:
        rows = zip(*columns.values(), strict=True)
        value = [dict(zip(columns, row, strict=True)) for row in rows]
    else:
        value = columns
    return json.dumps({"predictions" if by_row else "outputs": value}).encode()


def _to_json(name: str, array: np.ndarray) -> Any:
    if array.dtype == object:
        values = [_string(name, value) for value in array.ravel()]
        return _nest(values, array.shape)
    if array.dtype == np.float32:  # shortest decimals that give the same float32
        array = array.astype("U").astype(np.float64)
    return array.tolist()


def _string(name: str, value: bytes) -> Any:
    if name.endswith(_BYTES_SUFFIX):
        return {"b64": base64.b64encode(value).decode()}
    return value.decode(errors="replace")


def _nest(values: list, shape: tuple[int, ...]) -> Any:
    array = np.empty(len(values), object)
    array[:] = values
    return array.reshape(shape).tolist()
