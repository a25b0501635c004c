"""TensorProto to NumPy and back, without TensorFlow."""

from __future__ import annotations

import numpy as np

from export import predict_pb2

_DTYPES: dict[int, tuple[type, str]] = {  # (NumPy's type, the field of single values)
    predict_pb2.DT_FLOAT: (np.float32, "float_val"),
    predict_pb2.DT_DOUBLE: (np.float64, "double_val"),
    predict_pb2.DT_INT32: (np.int32, "int_val"),
    predict_pb2.DT_UINT8: (np.uint8, "int_val"),
    predict_pb2.DT_INT16: (np.int16, "int_val"),
    predict_pb2.DT_INT8: (np.int8, "int_val"),
    predict_pb2.DT_STRING: (np.object_, "string_val"),
    predict_pb2.DT_INT64: (np.int64, "int64_val"),
    predict_pb2.DT_BOOL: (np.bool_, "bool_val"),
}


_NUMBERS = {np.dtype(np.float32): predict_pb2.DT_FLOAT, np.dtype(np.int32): predict_pb2.DT_INT32}


def fill(tensor: predict_pb2.TensorProto, array: np.ndarray) -> None:
    """Writes an array of float32, int32, or of str or bytes objects into a new TensorProto."""
    for size in array.shape:
        tensor.tensor_shape.dim.add(size=size)
    if array.dtype == object:
        tensor.dtype = predict_pb2.DT_STRING
        values = array.ravel().tolist()
        tensor.string_val.extend(v if isinstance(v, bytes) else v.encode() for v in values)
    else:
        tensor.dtype = _NUMBERS[array.dtype]
        tensor.tensor_content = array.astype(array.dtype.newbyteorder("<")).tobytes()


def to_array(tensor: predict_pb2.TensorProto) -> np.ndarray:
    """The array of a TensorProto; strings as bytes objects.

    Raises:
      ValueError: its type is none that models of this project have, or its values do not fill
        its shape.
    """
    if tensor.dtype not in _DTYPES:
        raise ValueError(f"a tensor of type number {tensor.dtype}")
    dtype, field = _DTYPES[tensor.dtype]
    shape = tuple(dim.size for dim in tensor.tensor_shape.dim)
    size = int(np.prod(shape))
    if tensor.tensor_content and tensor.dtype != predict_pb2.DT_STRING:
        little_endian = np.dtype(dtype).newbyteorder("<")
        return np.frombuffer(tensor.tensor_content, little_endian).astype(dtype).reshape(shape)
    values: np.ndarray = np.array(list(getattr(tensor, field)), dtype)
    if len(values) > size or (size and not len(values)):
        raise ValueError(f"{len(values)} values for a tensor of shape {shape}")
    # Values left out at the end are equal to the last one given.
    return np.pad(values, (0, size - len(values)), "edge" if size else "constant").reshape(shape)
