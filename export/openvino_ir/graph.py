"""An OpenVINO graph out of TensorFlow functions and of OpenVINO's own operations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import openvino as ov
import tensorflow as tf
from openvino import opset15 as ops

_DTYPES = {"f32": tf.float32, "i32": tf.int32, "u8": tf.uint8, "boolean": tf.bool}


def constant(value: Any, dtype: type) -> ov.Output:
    """A constant of NumPy's dtype."""
    return ops.constant(np.array(value, dtype)).output(0)


def apply(name: str, function: Callable[..., Any], *inputs: ov.Output) -> list[ov.Output]:
    """Adds what a TensorFlow function computes to the graph that its inputs belong to.

    Args:
      name: prefix of the names of the operations that are added.
      function: of tensors to a tensor or a list of them; constants must not be among them.
      *inputs: its arguments; dimensions that are not known here are not known to it.

    Returns:
      An output for each tensor that it returns.
    """
    taken = [f"argument_{i}" for i in range(len(inputs))]
    specs = [
        tf.TensorSpec(_shape(value), _DTYPES[value.element_type.to_string()], argument)
        for value, argument in zip(inputs, taken, strict=True)
    ]
    unchanged: dict[int, int] = {}  # results that are arguments, which conversion leaves nameless

    def named(*tensors):
        values = function(*tensors)
        values = values if isinstance(values, list | tuple) else [values]
        for j, tensor in enumerate(tensors):
            unchanged.update({i: j for i, value in enumerate(values) if value is tensor})
        return {f"result_{i:03d}": tf.identity(v) for i, v in enumerate(values)}

    concrete = tf.function(named, autograph=False, input_signature=specs).get_concrete_function()
    # Shared weights would be those of variables that are gone once the model is.
    part = ov.convert_model(concrete, share_weights=False)
    for operation in part.get_ordered_ops():
        operation.set_friendly_name(f"{name}/{operation.get_friendly_name()}")
    ends = _ends(part)
    by_name = {tensor: p for p in part.get_parameters() for tensor in p.output(0).names}
    for key, value in zip(taken, inputs, strict=True):
        parameter = next((p for n, p in by_name.items() if n.split(":")[0] == key), None)
        for target in parameter.output(0).get_target_inputs() if parameter else ():
            target.replace_source_output(value)
    return [
        inputs[unchanged[i]] if i in unchanged else ends[i].input_value(0)
        for i in range(len(concrete.structured_outputs))
    ]


def _shape(value: ov.Output) -> list[int | None]:
    return [d.get_length() if d.is_static else None for d in value.partial_shape]


def _ends(part: ov.Model) -> dict[int, ov.Node]:
    """The results of a converted function by their numbers."""
    return {
        int(name.split(":")[0].removeprefix("result_")): output.get_node()
        for output in part.outputs
        for name in output.names
        if name.startswith("result_")
    }


def last_products(value: ov.Output) -> list[str]:
    """Names of the convolutions and matrix products that a value follows from without another."""
    found, waiting, seen = [], [value.get_node()], set()
    while waiting:
        node = waiting.pop()
        if node.get_friendly_name() in seen:
            continue
        seen.add(node.get_friendly_name())
        if node.get_type_name() in ("Convolution", "MatMul"):
            found.append(node.get_friendly_name())
        else:
            waiting += [one.get_source_output().get_node() for one in node.inputs()]
    return found


def model(results: dict[str, ov.Output], parameters: Sequence[ov.Node], name: str) -> ov.Model:
    """The model with results of the given names."""
    ended = [ops.result(value, name=key) for key, value in results.items()]
    built = ov.Model(ended, list(parameters), name)
    for operation in built.get_ordered_ops():
        for output in operation.outputs():
            output.get_tensor().set_names(set())
    for end, key in zip(ended, results, strict=True):
        end.output(0).get_tensor().set_names({key})
    for parameter in parameters:
        parameter.output(0).get_tensor().set_names({parameter.get_friendly_name()})
    built.validate_nodes_and_infer_types()
    return built
