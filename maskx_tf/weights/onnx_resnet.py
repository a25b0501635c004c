"""Reads the ResNet at the beginning of an ONNX graph, whatever its tensors are called.

The graph is followed from its input: the stem, max-pooling, then bottleneck blocks for as long as
there are any. Batch normalisation may be folded into the convolutions or stand behind them.
"""

from __future__ import annotations

import collections
from typing import Any, NamedTuple

import numpy as np

from maskx_tf.errors import UserError
from maskx_tf.weights import caffe2
from maskx_tf.weights.blobs import Blobs
from maskx_tf.weights.imagenet_files import ImageNetResNet

_BEFORE_THE_STEM = ("Transpose", "Identity", "Cast")
# --backbone_padding by how strided convolutions and pooling pad.
_PADDINGS = {
    ("symmetric", "symmetric"): "symmetric",
    ("symmetric", "same"): "caffe",
    ("same", "same"): "same",
}


class _Conv(NamedTuple):
    """A convolution and the batch normalisation behind it."""

    kernel: str  # name of the initializer, (out, in, h, w)
    scale: np.ndarray  # [out]
    shift: np.ndarray  # [out]
    used: tuple[str, ...]  # the other initializers in it
    stride: int
    padding: str  # `symmetric` or `same`; `symmetric` where the two are equal
    output: str


class _Block(NamedTuple):
    convs: dict[str, _Conv]  # by a key of caffe2.BRANCHES
    output: str


def read_onnx(path: str, backbone: str) -> ImageNetResNet:
    """Reads the ResNet-50 or -101 of a classifier, whose head is left out.

    The options of the result are what the graph tells: widths, the place of strides, padding.

    Args:
      path: the file.
      backbone: `resnet50` or `resnet101`, ours.

    Raises:
      UserError: onnx is not installed, the file is damaged, or no such network begins its graph.
    """
    graph = _Graph(path, _load(path))
    stem, x, pool_padding = graph.stem()
    stages: list[list[_Block]] = []
    while block := graph.block(x):
        if "shortcut" in block.convs:
            stages.append([])
        if not stages:
            raise graph.refusal("has no projection in its first block")
        stages[-1].append(block)
        x = block.output
    if len(stages) != 4:
        raise graph.refusal(f"has {len(stages)} stages of bottleneck blocks, not 4")
    convs = {"conv1": stem}
    for number, stage in enumerate(stages, start=2):
        for index, block in enumerate(stage):
            for part, conv in block.convs.items():
                convs[f"res{number}_{index}_branch{caffe2.BRANCHES[part]}"] = conv
    return ImageNetResNet(
        _blobs(graph, convs),
        tuple(map(len, stages)),
        caffe2.backbone_rules(backbone),
        options=_options(graph, stem, stages, pool_padding),
        is_folded=True,
    )


def _load(path: str) -> Any:
    try:
        import onnx
    except ImportError:
        raise UserError(
            f"--backbone_weights={path} needs the package onnx: "
            "pip install -c requirements.lock onnx."
        ) from None
    try:
        return onnx.load(path).graph
    except Exception as error:  # protobuf's DecodeError, an external file that is missing, …
        raise UserError(
            f"--backbone_weights={path} cannot be read as ONNX ({' '.join(str(error).split())}); "
            "download it again."
        ) from None


def _blobs(graph: _Graph, convs: dict[str, _Conv]) -> Blobs:
    """The convolutions' arrays by Detectron's names; other initializers by their own."""
    arrays: dict[str, np.ndarray] = {}
    labels: dict[str, str] = {}
    for name, conv in convs.items():
        norm = "res_conv1_bn" if name == "conv1" else f"{name}_bn"
        arrays[f"{name}_w"] = graph.arrays[conv.kernel]
        arrays |= {f"{norm}_s": conv.scale, f"{norm}_b": conv.shift}
        labels |= dict.fromkeys((f"{name}_w", f"{norm}_s", f"{norm}_b"), conv.kernel)
    used = {name for conv in convs.values() for name in (conv.kernel, *conv.used)}
    others = {name: value for name, value in graph.arrays.items() if name not in used}
    return Blobs(arrays | others, graph.source, labels)


def _options(
    graph: _Graph, stem: _Conv, stages: list[list[_Block]], pool_padding: str
) -> dict[str, Any]:
    firsts = [stage[0].convs for stage in stages]
    strides = {(first["conv1"].stride, first["conv2"].stride) for first in firsts[1:]}
    if strides not in ({(2, 1)}, {(1, 2)}) or firsts[0]["conv2"].stride != 1:
        raise graph.refusal(f"has strides {sorted(strides)} in the stages 3 to 5")
    layers = (stem, *(first["conv2"] for first in firsts[1:]))
    paddings = {conv.padding for conv in layers if conv.stride == 2}
    padding = _PADDINGS.get(("".join(paddings), pool_padding))
    if padding is None:
        raise graph.refusal("pads its convolutions and its pooling in ways that do not go together")
    return {
        "backbone_width": len(firsts[0]["conv1"].scale),
        "backbone_stem_width": len(stem.scale),
        "stride_on": "1x1" if strides == {(2, 1)} else "3x3",
        "backbone_padding": padding,
    }


class _Graph:
    """An ONNX graph by its tensors."""

    def __init__(self, path: str, graph: Any):
        from onnx import numpy_helper

        self.source = f"--backbone_weights={path}"
        self.nodes = list(graph.node)
        self.arrays = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        for node in self.nodes:
            if node.op_type == "Constant" and "value" in (found := _attributes(node)):
                self.arrays[node.output[0]] = numpy_helper.to_array(found["value"])
        self._makers = {name: node for node in self.nodes for name in node.output}
        self._users = collections.defaultdict(list)
        for node in self.nodes:
            for name in node.input:
                self._users[name].append(node)

    def refusal(self, problem: str) -> UserError:
        """The error of a graph that begins with another network."""
        return UserError(
            f"{self.source} {problem}: only ResNet-50 and ResNet-101 with bottlenecks, a 7x7 stem "
            "and max-pooling are read from ONNX."
        )

    def stem(self) -> tuple[_Conv, str, str]:
        """The first convolution, what max-pooling makes of it, and how that pads."""
        node = next((node for node in self.nodes if node.op_type == "Conv"), None)
        if node is None:
            raise self.refusal("has no convolution")
        name = node.input[0]
        while before := self._makers.get(name):
            if before.op_type not in _BEFORE_THE_STEM:
                raise UserError(
                    f"{self.source} has {before.op_type} before its first convolution: "
                    "normalisation belongs into --pixel_mean and --pixel_std; export the file "
                    "without it."
                )
            name = before.input[0]
        conv = self._conv(node)
        if self._size(conv) != 7 or conv.stride != 2:
            raise self.refusal(f"has a stem of {self._size(conv)}x{self._size(conv)}")
        pool = self._only(self._after_relu(conv), "MaxPool")
        attributes = _attributes(pool)
        if attributes.get("kernel_shape") != [3, 3] or attributes.get("strides") != [2, 2]:
            raise self.refusal("has max-pooling other than 3x3 with stride 2")
        if attributes.get("ceil_mode") and not any(attributes.get("pads", [0])):
            return conv, pool.output[0], "same"
        return conv, pool.output[0], self._padding(attributes, 3, 2)

    def block(self, x: str) -> _Block | None:
        """The bottleneck block that takes a tensor; None if something else does."""
        convs = [self._conv(node) for node in self._users[x] if node.op_type == "Conv"]
        ends = [conv for conv in convs if self._is_added(conv.output)]
        begins = [conv for conv in convs if not self._is_added(conv.output)]
        if not begins:
            return None
        if len(begins) != 1 or len(ends) > 1:
            raise self.refusal(f"branches into {len(convs)} convolutions behind {x}")
        first = begins[0]
        second = self._conv(self._only(self._after_relu(first), "Conv"))
        if self._is_added(second.output):
            raise self.refusal("has basic blocks of two convolutions")
        third = self._conv(self._only(self._after_relu(second), "Conv"))
        addition = self._only(third.output, "Add")
        shortcut = ends[0].output if ends else x
        if set(addition.input) != {third.output, shortcut}:
            raise self.refusal(f"has no plain residual block behind {x}")
        parts = {"conv1": first, "conv2": second, "conv3": third}
        parts |= {"shortcut": ends[0]} if ends else {}
        sizes = {part: self._size(conv) for part, conv in parts.items()}
        if sizes != {part: 3 if part == "conv2" else 1 for part in parts}:
            raise self.refusal(f"has convolutions of other sizes in the block behind {x}")
        return _Block(parts, self._only(addition.output[0], "Relu").output[0])

    def _is_added(self, name: str) -> bool:
        return [node.op_type for node in self._users[name]] == ["Add"]

    def _after_relu(self, conv: _Conv) -> str:
        return self._only(conv.output, "Relu").output[0]

    def _only(self, name: str, kind: str) -> Any:
        """The one node of a kind that takes a tensor."""
        users = self._users[name]
        if [user.op_type for user in users] == [kind]:
            return users[0]
        raise self.refusal(
            f"has {', '.join(sorted({n.op_type for n in users})) or 'nothing'} behind {name}, not "
            f"{kind}"
        )

    def _size(self, conv: _Conv) -> int:
        return self.arrays[conv.kernel].shape[-1]

    def _conv(self, node: Any) -> _Conv:
        """A convolution with what is folded into it, and the batch normalisation behind it."""
        attributes, names = _attributes(node), list(node.input[1:])
        if any(name not in self.arrays for name in names):
            raise self.refusal(f"computes {', '.join(names)}; it may be quantised")
        kernel = self.arrays[names[0]]
        strides, dilations = attributes.get("strides", [1, 1]), attributes.get("dilations", [1, 1])
        if (
            kernel.ndim != 4
            or kernel.shape[2] != kernel.shape[3]
            or strides[0] != strides[1]
            or dilations != [1, 1]
            or attributes.get("group", 1) != 1
        ):
            raise self.refusal(f"has a grouped, dilated or uneven convolution ({names[0]})")
        padding = self._padding(attributes, kernel.shape[2], strides[0])
        bias = self.arrays[names[1]] if len(names) > 1 else np.zeros(len(kernel), kernel.dtype)
        scale, output = np.ones_like(bias), node.output[0]
        if [user.op_type for user in self._users[output]] == ["BatchNormalization"]:
            norm = self._users[output][0]
            gamma, beta, mean, variance = (self.arrays[name] for name in norm.input[1:])
            scale = gamma / np.sqrt(variance + _attributes(norm).get("epsilon", 1e-5))
            bias = beta + (bias - mean) * scale
            names, output = [*names, *norm.input[1:]], norm.output[0]
        return _Conv(names[0], scale, bias, tuple(names[1:]), strides[0], padding, output)

    def _padding(self, attributes: dict[str, Any], size: int, stride: int) -> str:
        """`symmetric` or `same`, see `_Conv`."""
        pads = attributes.get("pads", [0, 0, 0, 0])
        auto = attributes.get("auto_pad", b"NOTSET")
        extra = size - stride  # of "same", where the stride divides the input
        before, after = max(extra, 0) // 2, (max(extra, 0) + 1) // 2
        if auto == b"NOTSET" and pads == [size // 2] * 4:
            return "symmetric"
        if auto == b"SAME_UPPER" and (size == 1 or stride == 1):
            return "symmetric"
        if auto == b"SAME_UPPER" or (auto == b"NOTSET" and pads == [before] * 2 + [after] * 2):
            return "same"
        raise self.refusal(f"has a layer of {size}x{size} with padding {pads} ({auto.decode()})")


def _attributes(node: Any) -> dict[str, Any]:
    from onnx import helper

    return {item.name: helper.get_attribute_value(item) for item in node.attribute}
