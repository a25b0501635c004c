"""The messages of TensorFlow Serving's `Predict` and `GetModelStatus`, without TensorFlow.

The official classes (tensorflow-serving-api) import TensorFlow. The parts of its messages that a
client needs are described here instead: same names, field numbers and types, hence the same bytes.
They live in a pool of their own, so that they do not meet the official ones in a process that has
both.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

METHOD = "/tensorflow.serving.PredictionService/Predict"
STATUS_METHOD = "/tensorflow.serving.ModelService/GetModelStatus"
_Field = descriptor_pb2.FieldDescriptorProto

# message: {field: (number, type)}; "*" is repeated, "{}" a map from strings.
_TENSORFLOW = {
    "TensorShapeProto": {
        "dim": (2, "*.tensorflow.TensorShapeProto.Dim"),
        "unknown_rank": (3, "bool"),
    },
    "TensorShapeProto.Dim": {"size": (1, "int64"), "name": (2, "string")},
    "TensorProto": {
        "dtype": (1, "int32"),  # an enum there, which has the same bytes
        "tensor_shape": (2, ".tensorflow.TensorShapeProto"),
        "version_number": (3, "int32"),
        "tensor_content": (4, "bytes"),
        "float_val": (5, "*float"),
        "double_val": (6, "*double"),
        "int_val": (7, "*int32"),
        "string_val": (8, "*bytes"),
        "int64_val": (10, "*int64"),
        "bool_val": (11, "*bool"),
    },
}
_SERVING = {
    "ModelSpec": {
        "name": (1, "string"),
        "version": (2, ".google.protobuf.Int64Value"),
        "signature_name": (3, "string"),
        "version_label": (4, "string"),
    },
    "PredictRequest": {
        "model_spec": (1, ".tensorflow.serving.ModelSpec"),
        "inputs": (2, "{}.tensorflow.TensorProto"),
        "output_filter": (3, "*string"),
    },
    "PredictResponse": {
        "outputs": (1, "{}.tensorflow.TensorProto"),
        "model_spec": (2, ".tensorflow.serving.ModelSpec"),
    },
    "GetModelStatusRequest": {"model_spec": (1, ".tensorflow.serving.ModelSpec")},
    "ModelVersionStatus": {
        "version": (1, "int64"),
        "state": (2, "int32"),  # an enum there
    },
    "GetModelStatusResponse": {
        "model_version_status": (1, "*.tensorflow.serving.ModelVersionStatus")
    },
}
_WRAPPERS = {"Int64Value": {"value": (1, "int64")}}


def _add_field(message: Any, name: str, number: int, kind: str, full_name: str) -> None:
    field = message.field.add(name=name, number=number, label=_Field.LABEL_OPTIONAL)
    if kind.startswith("{}"):
        entry = message.nested_type.add(name=f"{name.capitalize()}Entry")
        entry.options.map_entry = True
        _add_field(entry, "key", 1, "string", "")
        _add_field(entry, "value", 2, kind[2:], "")
        kind = f"*{full_name}.{entry.name}"
    if kind.startswith("*"):
        field.label, kind = _Field.LABEL_REPEATED, kind[1:]
    if kind.startswith("."):
        field.type, field.type_name = _Field.TYPE_MESSAGE, kind
    else:
        field.type = getattr(_Field, f"TYPE_{kind.upper()}")


def _file(name: str, package: str, messages: dict, imports: tuple[str, ...] = ()) -> Any:
    file = descriptor_pb2.FileDescriptorProto(
        name=name, package=package, dependency=imports, syntax="proto3"
    )
    made: dict[str, Any] = {}
    for path, fields in messages.items():
        outer, _, inner = path.rpartition(".")
        parent = made[outer].nested_type if outer else file.message_type
        made[path] = parent.add(name=inner)
        for field, (number, kind) in fields.items():
            _add_field(made[path], field, number, kind, f".{package}.{path}")
    return file


def _classes() -> dict[str, Any]:
    pool = descriptor_pool.DescriptorPool()
    pool.Add(_file("wrappers.proto", "google.protobuf", _WRAPPERS))
    pool.Add(_file("tensor.proto", "tensorflow", _TENSORFLOW))
    imports = ("wrappers.proto", "tensor.proto")
    pool.Add(_file("predict.proto", "tensorflow.serving", _SERVING, imports))
    names = ["tensorflow.TensorProto"] + [f"tensorflow.serving.{name}" for name in _SERVING]
    return {
        name.rpartition(".")[2]: message_factory.GetMessageClass(pool.FindMessageTypeByName(name))
        for name in names
    }


_MESSAGES = _classes()
TensorProto = _MESSAGES["TensorProto"]
ModelSpec = _MESSAGES["ModelSpec"]
PredictRequest = _MESSAGES["PredictRequest"]
PredictResponse = _MESSAGES["PredictResponse"]
GetModelStatusRequest = _MESSAGES["GetModelStatusRequest"]
GetModelStatusResponse = _MESSAGES["GetModelStatusResponse"]

START, LOADING = 10, 20  # states of a version
STRING = 7
_DTYPES: dict[int, tuple[type, str]] = {  # number of a type: (NumPy's, field of single values)
    1: (np.float32, "float_val"),
    2: (np.float64, "double_val"),
    3: (np.int32, "int_val"),
    4: (np.uint8, "int_val"),
    5: (np.int16, "int_val"),
    6: (np.int8, "int_val"),
    STRING: (np.object_, "string_val"),
    9: (np.int64, "int64_val"),
    10: (np.bool_, "bool_val"),
}


def to_array(tensor: Any) -> np.ndarray:
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
    if tensor.tensor_content and tensor.dtype != STRING:
        little_endian = np.dtype(dtype).newbyteorder("<")
        return np.frombuffer(tensor.tensor_content, little_endian).astype(dtype).reshape(shape)
    values: np.ndarray = np.array(list(getattr(tensor, field)), dtype)
    if len(values) > size or (size and not len(values)):
        raise ValueError(f"{len(values)} values for a tensor of shape {shape}")
    # Values left out at the end are equal to the last one given.
    return np.pad(values, (0, size - len(values)), "edge" if size else "constant").reshape(shape)
