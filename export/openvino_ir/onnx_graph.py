"""An OpenVINO graph written in the operations of ONNX.

Most operations of the two are the same but for the type of their indices, which is int64 in ONNX.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import openvino as ov
from onnx import TensorProto, helper, numpy_helper

from maskx_tf.errors import UserError

OPSET, IR_VERSION = 18, 9  # ONNX Runtime 1.15 and later read them
_DTYPES = {
    "f32": TensorProto.FLOAT,
    "f64": TensorProto.DOUBLE,
    "i32": TensorProto.INT32,
    "i64": TensorProto.INT64,
    "u8": TensorProto.UINT8,
    "boolean": TensorProto.BOOL,
}
_END = np.iinfo(np.int64).max

# Operations that differ in their name only.
_SAME = {
    "Abs": "Abs",
    "Add": "Add",
    "Ceiling": "Ceil",
    "Divide": "Div",  # of whole numbers towards 0, as OpenVINO on CPUs
    "Equal": "Equal",
    "Exp": "Exp",
    "Floor": "Floor",
    "FloorMod": "Mod",
    "Greater": "Greater",
    "GreaterEqual": "GreaterOrEqual",
    "Less": "Less",
    "LessEqual": "LessOrEqual",
    "Log": "Log",
    "LogicalAnd": "And",
    "LogicalNot": "Not",
    "LogicalOr": "Or",
    "LogicalXor": "Xor",
    "Maximum": "Max",
    "Minimum": "Min",
    "Multiply": "Mul",
    "Negative": "Neg",
    "Power": "Pow",
    "Relu": "Relu",
    "Select": "Where",
    "Sigmoid": "Sigmoid",
    "Sqrt": "Sqrt",
    "Subtract": "Sub",
    "Tanh": "Tanh",
}


class _Writer:
    """The nodes of an ONNX graph as they are added."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._names: dict[tuple[int, int], str] = {}  # (operation, output): name
        self._count = 0

    def __call__(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        """Adds a node; the name of its first output; others have `.1`, `.2`, … behind it."""
        self._count += 1
        name = f"{kind}_{self._count}"
        names = [name] + [f"{name}.{i}" for i in range(1, outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, name, **attributes))
        return name

    def constant(self, value: Any, dtype: type = np.int64) -> str:
        self._count += 1
        name = f"constant_{self._count}"
        self.weights.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def cast(self, name: str, dtype: str) -> str:
        return self("Cast", name, to=_DTYPES[dtype])

    def set(self, output: ov.Output, name: str) -> None:
        self._names[output.get_node().get_instance_id(), output.get_index()] = name

    def get(self, output: ov.Output) -> str:
        return self._names[output.get_node().get_instance_id(), output.get_index()]

    def inputs(self, node: ov.Node) -> list[str]:
        return [self.get(one.get_source_output()) for one in node.inputs()]

    def index(self, node: ov.Node, number: int) -> str:
        """An input as int64."""
        source = node.input(number).get_source_output()
        if source.element_type == ov.Type.i64:
            return self.get(source)
        value = _value(node, number)
        return self.cast(self.get(source), "i64") if value is None else self.constant(value)


def convert(model: ov.Model) -> onnx.ModelProto:
    """The graph of a model, with the names of its inputs and outputs.

    Raises:
      UserError: it has an operation that is not known here.
    """
    write = _Writer()
    inputs, outputs = [], []
    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        if kind == "Parameter":
            name = node.output(0).any_name
            inputs.append(_info(name, node.output(0)))
            write.set(node.output(0), name)
        elif kind == "Result":
            name = node.output(0).any_name
            source = write.get(node.input(0).get_source_output())
            write.nodes.append(helper.make_node("Identity", [source], [name], f"{name}/result"))
            outputs.append(_info(name, node.output(0)))
        else:
            _add(write, node, kind)
    read = {name for node in write.nodes for name in node.input}
    weights = [weight for weight in write.weights if weight.name in read]
    graph = helper.make_graph(write.nodes, model.friendly_name, inputs, outputs, weights)
    opsets = [helper.make_opsetid("", OPSET)]
    made = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    onnx.checker.check_model(made)
    return made


def _add(write: _Writer, node: ov.Node, kind: str) -> None:
    if kind == "Constant":
        write.set(node.output(0), write.constant(node.data, node.data.dtype.type))
        return
    if kind in _SAME:
        names: str | tuple[str, ...] = write(_SAME[kind], *write.inputs(node))
    elif kind in _WRITTEN:
        names = _WRITTEN[kind](write, node, node.get_attributes())
    else:
        raise UserError(f"The model has an operation {kind}, which cannot be written in ONNX yet.")
    names = (names,) if isinstance(names, str) else names
    for name, output in zip(names, node.outputs(), strict=False):  # a second of MaxPool is unused
        write.set(output, name)


def _info(name: str, output: ov.Output) -> onnx.ValueInfoProto:
    shape = [
        d.get_length() if d.is_static else f"{name}_{i}" for i, d in enumerate(output.partial_shape)
    ]
    return helper.make_tensor_value_info(name, _DTYPES[output.element_type.to_string()], shape)


def _value(node: ov.Node, number: int) -> np.ndarray | None:
    source = node.input(number).get_source_output().get_node()
    return source.data if source.get_type_name() == "Constant" else None


def _fixed(node: ov.Node, number: int) -> list[int]:
    """An input whose values have to be known."""
    value = _value(node, number)
    if value is None:
        raise UserError(f"{node.get_friendly_name()} needs what is known only at run time.")
    return np.atleast_1d(value).tolist()


def _typed(write: _Writer, node: ov.Node, name: str, number: int = 0) -> str:
    """What ONNX gives as int64 in the type that it has in the graph."""
    dtype = node.output(number).element_type.to_string()
    return name if dtype == "i64" else write.cast(name, dtype)


def _flat(write: _Writer, name: str) -> str:
    return write("Reshape", name, write.constant([-1]))


def _mod(write: _Writer, node: ov.Node, attributes: dict) -> str:
    return write("Mod", *write.inputs(node), fmod=1)


def _not_equal(write: _Writer, node: ov.Node, attributes: dict) -> str:
    return write("Not", write("Equal", *write.inputs(node)))


def _squared_difference(write: _Writer, node: ov.Node, attributes: dict) -> str:
    difference = write("Sub", *write.inputs(node))
    return write("Mul", difference, difference)


def _clamp(write: _Writer, node: ov.Node, attributes: dict) -> str:
    dtype = np.dtype(node.output(0).element_type.to_dtype()).type
    limits = (write.constant(attributes[key], dtype) for key in ("min", "max"))
    return write("Clip", *write.inputs(node), *limits)


def _convert(write: _Writer, node: ov.Node, attributes: dict) -> str:
    (data,) = write.inputs(node)
    return write.cast(data, node.output(0).element_type.to_string())


def _round(write: _Writer, node: ov.Node, attributes: dict) -> str:
    assert attributes["mode"] == "half_to_even"
    return write("Round", *write.inputs(node))


def _softmax(write: _Writer, node: ov.Node, attributes: dict) -> str:
    return write("Softmax", *write.inputs(node), axis=attributes["axis"])


def _padding(attributes: dict) -> dict[str, Any]:
    if attributes["auto_pad"] in ("same_upper", "same_lower", "valid"):
        return {"auto_pad": attributes["auto_pad"].upper()}
    return {"pads": [*attributes["pads_begin"], *attributes["pads_end"]]}


def _convolution(write: _Writer, node: ov.Node, attributes: dict) -> str:
    return write(
        "Conv",
        *write.inputs(node),
        strides=list(attributes["strides"]),
        dilations=list(attributes["dilations"]),
        **_padding(attributes),
    )


def _max_pool(write: _Writer, node: ov.Node, attributes: dict) -> str:
    return write(
        "MaxPool",
        *write.inputs(node),
        kernel_shape=list(attributes["kernel"]),
        strides=list(attributes["strides"]),
        ceil_mode=int(attributes["rounding_type"] != "floor"),
        **_padding(attributes),
    )


def _mat_mul(write: _Writer, node: ov.Node, attributes: dict) -> str:
    names = write.inputs(node)
    for number, key in enumerate(("transpose_a", "transpose_b")):
        if attributes[key]:
            rank = node.input(number).get_partial_shape().rank.get_length()
            order = [*range(rank - 2), rank - 1, rank - 2]
            names[number] = write("Transpose", names[number], perm=order)
    return write("MatMul", *names)


def _reshape(write: _Writer, node: ov.Node, attributes: dict) -> str:
    shape = _value(node, 1)
    keeps_zeros = not attributes["special_zero"] and (shape is None or 0 in shape)
    names = write.inputs(node)[0], write.index(node, 1)
    return write("Reshape", *names, allowzero=int(keeps_zeros))


def _transpose(write: _Writer, node: ov.Node, attributes: dict) -> str:
    return write("Transpose", write.inputs(node)[0], perm=_fixed(node, 1))


def _with_axes(kind: str) -> Callable[[_Writer, ov.Node, dict], str]:
    def add(write: _Writer, node: ov.Node, attributes: dict) -> str:
        data, *axes = write.inputs(node)
        if not axes:
            return write(kind, data)
        return write(kind, data, write.constant(_fixed(node, 1)))

    return add


def _reduce(kind: str) -> Callable[[_Writer, ov.Node, dict], str]:
    def add(write: _Writer, node: ov.Node, attributes: dict) -> str:
        axes = write.constant(_fixed(node, 1))
        return write(kind, write.inputs(node)[0], axes, keepdims=int(attributes["keep_dims"]))

    return add


def _reduce_logical(kind: str) -> Callable[[_Writer, ov.Node, dict], str]:
    def add(write: _Writer, node: ov.Node, attributes: dict) -> str:
        axes, number = write.constant(_fixed(node, 1)), write.cast(write.inputs(node)[0], "i32")
        reduced = write(kind, number, axes, keepdims=int(attributes["keep_dims"]))
        return write.cast(reduced, "boolean")

    return add


def _einsum(write: _Writer, node: ov.Node, attributes: dict) -> str:
    return write("Einsum", *write.inputs(node), equation=attributes["equation"])


def _concat(write: _Writer, node: ov.Node, attributes: dict) -> str:
    return write("Concat", *write.inputs(node), axis=attributes["axis"])


def _split(write: _Writer, node: ov.Node, attributes: dict) -> tuple[str, ...]:
    count, (axis,) = node.get_output_size(), _fixed(node, 1)
    data = write.inputs(node)[0]
    if node.get_type_name() == "Split":
        name = write("Split", data, outputs=count, axis=axis, num_outputs=count)
    else:
        name = write("Split", data, write.index(node, 2), outputs=count, axis=axis)
    return (name, *(f"{name}.{i}" for i in range(1, count)))


def _strided_slice(write: _Writer, node: ov.Node, attributes: dict) -> str:
    masks = {
        key: list(attributes[f"{key}_mask"])
        for key in ("begin", "end", "new_axis", "shrink_axis", "ellipsis")
    }
    given = node.input(1).get_partial_shape()[0].get_length()
    masks = {key: (mask + [0] * given)[:given] for key, mask in masks.items()}
    rank = node.input(0).get_partial_shape().rank.get_length()
    strides = (_fixed(node, 3) if node.get_input_size() > 3 else []) or [1] * given
    skipped = rank - sum(
        not (a or b) for a, b in zip(masks["new_axis"], masks["ellipsis"], strict=True)
    )
    places, axes, new, shrunk, axis, out = [], [], [], [], 0, 0
    for place in range(given):
        if masks["ellipsis"][place]:
            axis, out = axis + skipped, out + skipped
        elif masks["new_axis"][place]:
            new.append(out)
            out += 1
        else:
            if masks["shrink_axis"][place]:
                shrunk.append(axis)
            else:
                out += 1
            is_whole = masks["begin"][place] and masks["end"][place] and strides[place] == 1
            if masks["shrink_axis"][place] or not is_whole:
                places.append(place)
                axes.append(axis)
            axis += 1
    (name, *_) = write.inputs(node)
    if places:
        bounds = [_bound(write, node, number, places, masks, strides) for number in (1, 2)]
        steps = write.constant([strides[place] for place in places])
        name = write("Slice", name, *bounds, write.constant(axes), steps)
    if shrunk:
        name = write("Squeeze", name, write.constant(shrunk))
    if new:
        name = write("Unsqueeze", name, write.constant(new))
    return name if places or shrunk or new else write("Identity", name)


def _bound(
    write: _Writer,
    node: ov.Node,
    number: int,
    places: Sequence[int],
    masks: dict[str, list[int]],
    strides: Sequence[int],
) -> str:
    """Where slices of these places begin (number 1) or end (2)."""
    is_end = number == 2
    open_value = [
        (_END if strides[place] > 0 else -_END) if is_end else (0 if strides[place] > 0 else _END)
        for place in places
    ]
    shrinks = [masks["shrink_axis"][place] for place in places]
    is_open = [
        masks["end" if is_end else "begin"][place] and not shrink
        for place, shrink in zip(places, shrinks, strict=True)
    ]
    if is_end and any(shrinks):  # one place: up to the next, and from the last place to the end
        starts = _chosen(write, node, 1, places)
        one = write.constant([1] * len(places))
        after = write("Add", starts, one)
        is_last = write("Equal", after, write.constant([0] * len(places)))
        after = write("Where", is_last, write.constant([_END] * len(places)), after)
        ends = _chosen(write, node, 2, places)
        name = write("Where", write.constant(shrinks, bool), after, ends)
    else:
        name = _chosen(write, node, number, places)
    if not any(is_open):
        return name
    return write("Where", write.constant(is_open, bool), write.constant(open_value), name)


def _chosen(write: _Writer, node: ov.Node, number: int, places: Sequence[int]) -> str:
    value = _value(node, number)
    if value is not None:
        return write.constant(value[list(places)])
    return write("Gather", write.index(node, number), write.constant(list(places)), axis=0)


def _gather(write: _Writer, node: ov.Node, attributes: dict) -> str:
    data, places, _ = write.inputs(node)
    (axis,) = _fixed(node, 2)
    if not attributes["batch_dims"]:
        return write("Gather", data, places, axis=axis)
    assert axis == attributes["batch_dims"]
    places = write("Unsqueeze", write.index(node, 1), write.constant([-1]))
    return write("GatherND", data, places, batch_dims=axis)


def _gather_nd(write: _Writer, node: ov.Node, attributes: dict) -> str:
    places = write.index(node, 1)
    return write("GatherND", write.inputs(node)[0], places, batch_dims=attributes["batch_dims"])


def _scatter_nd(write: _Writer, node: ov.Node, attributes: dict) -> str:
    data, _, updates = write.inputs(node)
    return write("ScatterND", data, write.index(node, 1), updates)


def _scatter_elements(write: _Writer, node: ov.Node, attributes: dict) -> str:
    data, places, updates, _ = write.inputs(node)
    (axis,) = _fixed(node, 3)
    return write("ScatterElements", data, places, updates, axis=axis)


def _shape_of(write: _Writer, node: ov.Node, attributes: dict) -> str:
    return _typed(write, node, write("Shape", *write.inputs(node)))


def _range(write: _Writer, node: ov.Node, attributes: dict) -> str:
    dtype = node.output(0).element_type.to_string()
    return write("Range", *(write.cast(name, dtype) for name in write.inputs(node)))


def _broadcast(write: _Writer, node: ov.Node, attributes: dict) -> str:
    return write("Expand", write.inputs(node)[0], write.index(node, 1))


def _tile(write: _Writer, node: ov.Node, attributes: dict) -> str:
    return write("Tile", write.inputs(node)[0], write.index(node, 1))


def _pad(write: _Writer, node: ov.Node, attributes: dict) -> str:
    assert attributes["pad_mode"] == "constant"
    pads = write("Concat", write.index(node, 1), write.index(node, 2), axis=0)
    names = write.inputs(node)
    return write("Pad", names[0], pads, *names[3:])


def _top_k(write: _Writer, node: ov.Node, attributes: dict) -> tuple[str, str]:
    name = write(
        "TopK",
        write.inputs(node)[0],
        _flat(write, write.index(node, 1)),
        outputs=2,
        axis=attributes["axis"],
        largest=int(attributes["mode"] == "max"),
    )
    return name, _typed(write, node, f"{name}.1", 1)


def _cum_sum(write: _Writer, node: ov.Node, attributes: dict) -> str:
    return write(
        "CumSum",
        *write.inputs(node),
        exclusive=int(attributes["exclusive"]),
        reverse=int(attributes["reverse"]),
    )


def _non_zero(write: _Writer, node: ov.Node, attributes: dict) -> str:
    return _typed(write, node, write("NonZero", *write.inputs(node)))


def _nms(write: _Writer, node: ov.Node, attributes: dict) -> str:
    assert attributes["box_encoding"] == "corner"
    boxes, scores, _, iou, least, *_ = write.inputs(node)
    most = _flat(write, write.index(node, 2))
    limits = (_flat(write, name) for name in (iou, least))
    return _typed(write, node, write("NonMaxSuppression", boxes, scores, most, *limits))


def _roi_align(write: _Writer, node: ov.Node, attributes: dict) -> str:
    features, boxes, _ = write.inputs(node)
    mode = attributes["aligned_mode"]
    assert mode in ("asymmetric", "half_pixel_for_nn")
    return write(
        "RoiAlign",
        features,
        boxes,
        write.index(node, 2),
        mode=attributes["mode"],
        output_height=attributes["pooled_h"],
        output_width=attributes["pooled_w"],
        sampling_ratio=attributes["sampling_ratio"],
        spatial_scale=attributes["spatial_scale"],
        coordinate_transformation_mode=(
            "output_half_pixel" if mode == "asymmetric" else "half_pixel"
        ),
    )


def _interpolate(write: _Writer, node: ov.Node, attributes: dict) -> str:
    assert attributes["mode"].startswith("linear") and not attributes["antialias"]
    assert attributes["shape_calculation_mode"] == "sizes"
    return write(
        "Resize",
        write.inputs(node)[0],
        "",
        "",
        write.index(node, 1),
        axes=_fixed(node, 2),
        mode="linear",
        coordinate_transformation_mode=attributes["coordinate_transformation_mode"],
    )


_WRITTEN: dict[str, Callable[[_Writer, ov.Node, dict], str | tuple[str, ...]]] = {
    "Broadcast": _broadcast,
    "Clamp": _clamp,
    "Concat": _concat,
    "Convert": _convert,
    "Convolution": _convolution,
    "CumSum": _cum_sum,
    "Einsum": _einsum,
    "Gather": _gather,
    "GatherND": _gather_nd,
    "Interpolate": _interpolate,
    "MatMul": _mat_mul,
    "MaxPool": _max_pool,
    "Mod": _mod,
    "NonMaxSuppression": _nms,
    "NonZero": _non_zero,
    "NotEqual": _not_equal,
    "Pad": _pad,
    "ROIAlign": _roi_align,
    "Range": _range,
    "ReduceLogicalAnd": _reduce_logical("ReduceMin"),
    "ReduceLogicalOr": _reduce_logical("ReduceMax"),
    "ReduceMax": _reduce("ReduceMax"),
    "ReduceMean": _reduce("ReduceMean"),
    "ReduceMin": _reduce("ReduceMin"),
    "ReduceProd": _reduce("ReduceProd"),
    "ReduceSum": _reduce("ReduceSum"),
    "Reshape": _reshape,
    "Round": _round,
    "ScatterElementsUpdate": _scatter_elements,
    "ScatterNDUpdate": _scatter_nd,
    "ShapeOf": _shape_of,
    "Softmax": _softmax,
    "Split": _split,
    "SquaredDifference": _squared_difference,
    "Squeeze": _with_axes("Squeeze"),
    "StridedSlice": _strided_slice,
    "Tile": _tile,
    "TopK": _top_k,
    "Transpose": _transpose,
    "Unsqueeze": _with_axes("Unsqueeze"),
    "VariadicSplit": _split,
}
