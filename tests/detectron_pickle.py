"""Weight files as Detectron left them: names and shapes of the blobs, random values, pickles.

Everything follows from the published layout of the files; nothing here knows the TensorFlow model.
"""

from __future__ import annotations

import io
import math
import pickle
import struct
import zlib
from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar

import numpy as np

Shapes = dict[str, tuple[int, ...]]
BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
MASK_SIZE = 28
BACKUP = "_jcvbackup"  # what the conversion of a 3002-row detector to 81 rows appends


def blob_shapes(
    depth: int = 50,
    rows: int = 81,
    mask: str | None = "transfer",
    transfer_input: str = "cls+box",
    transfer_layers: int = 2,
    mlp: int = True,
    embedding_dim: int = 300,
    width: int = 64,
    fpn: int = 256,
    fc: int = 1024,
    mask_filters: int = 256,
    hidden: int = 256,
    momentum: bool = False,
    preserved: bool = False,
    rpn: bool = True,
    backup_rows: int | None = None,
) -> Shapes:
    """Name -> shape of every blob of a file.

    Args:
      depth: 50 or 101.
      rows: classes and background.
      mask: transfer, class_specific, class_agnostic, or None: a Faster R-CNN.
      transfer_input: cls, box, cls+box, v_glove or v_randn_0.
      transfer_layers: 1 to 3.
      mlp: number of layers of the MLP branch; the published models have one. Hidden units: `fc`.
      embedding_dim: of v_glove or v_randn_0.
      width: channels of the stem; 64 in the published models.
      fpn: channels of the pyramid.
      fc: units of the box head.
      mask_filters: channels of the mask trunk.
      hidden: units of T's hidden layers.
      momentum: also the `_momentum` twins of end-to-end training.
      preserved: also what a file inherits from the ImageNet classifier, and nothing uses.
      rpn: whether the file has an RPN.
      backup_rows: rows of the `_jcvbackup` copies of the class and box layers; None: no copies.
    """
    shapes, tops = _backbone(depth, width)
    shapes |= _fpn(tops, fpn)
    if rpn:
        shapes |= _layer("conv_rpn_fpn2", fpn, fpn, 3, 3)
        shapes |= _layer("rpn_cls_logits_fpn2", 3, fpn, 1, 1)
        shapes |= _layer("rpn_bbox_pred_fpn2", 12, fpn, 1, 1)
    shapes |= _layer("fc6", fc, fpn * 7 * 7) | _layer("fc7", fc, fc)
    shapes |= _predictor(rows, fc)
    if mask:
        shapes |= _mask_trunk(fpn, mask_filters)
        if mask == "transfer":
            sizes = {"cls": fc, "box": 4 * fc, "cls+box": 5 * fc}
            dim = sizes.get(transfer_input, embedding_dim)
            shapes |= _transfer(dim, hidden, mask_filters, transfer_layers)
        else:
            outputs = {"class_specific": rows, "class_agnostic": 1}[mask]
            shapes |= _layer("mask_fcn_logits", outputs, mask_filters, 1, 1)
        shapes |= _mlp(mask_filters, fc, mlp)
    if momentum:
        shapes |= {f"{name}_momentum": s for name, s in shapes.items() if _is_trained(name)}
    if mask == "transfer" and transfer_input.startswith("v_"):
        shapes[transfer_input] = (rows, embedding_dim)
    if preserved:
        shapes |= _preserved(shapes, 32 * width)
    if backup_rows:
        shapes |= {name + BACKUP: s for name, s in _predictor(backup_rows, fc).items()}
    return shapes


def _layer(name: str, *weight: int, bias: int | None = None) -> Shapes:
    return {f"{name}_w": weight, f"{name}_b": (weight[0] if bias is None else bias,)}


def _backbone(depth: int, width: int) -> tuple[Shapes, list[tuple[str, int]]]:
    """The shapes, and (name, channels) of the last block of each stage, coarsest first."""
    shapes: Shapes = {"conv1_w": (width, 3, 7, 7)}
    shapes |= {f"res_conv1_bn_{part}": (width,) for part in "sb"}
    tops, last = [], width
    for stage, count in zip((2, 3, 4, 5), BLOCKS[depth], strict=True):
        inner = width * 2 ** (stage - 2)
        outer = 4 * inner
        for block in range(count):
            convs = {"2a": (inner, last, 1), "2b": (inner, inner, 3), "2c": (outer, inner, 1)}
            if block == 0:
                convs["1"] = (outer, last, 1)
            for branch, (out, channels, size) in convs.items():
                name = f"res{stage}_{block}_branch{branch}"
                shapes[f"{name}_w"] = (out, channels, size, size)
                shapes |= {f"{name}_bn_{part}": (out,) for part in "sb"}
            last = outer
        tops.insert(0, (f"res{stage}_{count - 1}_sum", outer))
    return shapes, tops


def _fpn(tops: list[tuple[str, int]], channels: int) -> Shapes:
    shapes: Shapes = {}
    for index, (top, inputs) in enumerate(tops):
        suffix = "_lateral" if index else ""  # the coarsest has nothing to be lateral to
        shapes |= _layer(f"fpn_inner_{top}{suffix}", channels, inputs, 1, 1)
    for top, _ in tops:
        shapes |= _layer(f"fpn_{top}", channels, channels, 3, 3)
    return shapes


def _predictor(rows: int, fc: int) -> Shapes:
    return _layer("cls_score", rows, fc) | _layer("bbox_pred", 4 * rows, fc)


def _mask_trunk(fpn: int, filters: int) -> Shapes:
    shapes: Shapes = {}
    for index in (1, 2, 3, 4):
        inputs = fpn if index == 1 else filters
        shapes |= _layer(f"_[mask]_fcn{index}", filters, inputs, 3, 3)
    return shapes | _layer("conv5_mask", filters, filters, 2, 2)  # in, out, height, width


def _transfer(inputs: int, hidden: int, outputs: int, layers: int) -> Shapes:
    shapes: Shapes = {}
    for index in range(1, layers):
        shapes |= _layer(f"bbox2mask_mlp_l{index}", hidden, inputs)
        inputs = hidden
    return shapes | _layer("mask_fcn_logits_w_flat", outputs, inputs)


def _mlp(filters: int, hidden: int, layers: int) -> Shapes:
    shapes: Shapes = {}
    inputs = filters * MASK_SIZE**2
    for index in range(1, layers):
        shapes |= _layer(f"fc_mask_head_mlp_l{index}", hidden, inputs)
        inputs = hidden
    return shapes | (_layer("mask_mlp_logits_raw", MASK_SIZE**2, inputs) if layers else {})


def _is_trained(name: str) -> bool:
    """Conv1, res2 and every affine layer are frozen in end-to-end training."""
    return "_bn_" not in name and not name.startswith(("conv1_", "res2_"))


def _preserved(shapes: Shapes, features: int) -> Shapes:
    """The classifier, and the zero bias that the ImageNet file has for every convolution."""
    convs = [n for n in shapes if n == "conv1_w" or ("_branch" in n and n.endswith("_w"))]
    biases = {f"{name.removesuffix('_w')}_b": shapes[name][:1] for name in convs}
    return _layer("fc1000", 1000, features) | biases


# Standard deviation of weights times sqrt(fan-in), by the first part that is in the name.
GAINS = {
    "conv1": 0.02,  # its input has a range of about ±128
    "_branch1": 2.1,
    "_branch": 2.1,  # the affine layer takes a fifth away, ReLU two thirds of the variance
    "fpn_inner": 1.2,
    "fpn_res5": 2.0,  # P5 and P6 have few anchors: else none is among the best of all levels
    "fpn_res4": 1.4,
    "fpn_res": 0.9,
    "rpn_cls": 1.5,
    "rpn_bbox": 0.2,
    "cls_score": 2.0,
    "bbox_pred": 0.7,
    "mask_fcn_logits_w_flat": 1.2,
    "mask_fcn_logits": 1.2,
    "mask_mlp": 1.2,
}
EMBEDDING_STD = 0.38  # of the GloVe vectors


def random_blobs(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """float32 values whose forward pass neither explodes nor dies, and detects something.

    Each blob has its own stream: what else is in the file does not change it.
    """
    return {name: _random_blob(name, shapes, seed) for name in shapes}


def _random_blob(name: str, shapes: Mapping[str, tuple[int, ...]], seed: int) -> np.ndarray:
    shape = shapes[name]
    random = np.random.default_rng([seed, zlib.crc32(name.encode())])
    if name.endswith("_bn_s"):
        low, high = (0.15, 0.35) if "_branch2c" in name else (0.6, 1.0)
        return random.uniform(low, high, shape).astype(np.float32)
    values = random.standard_normal(shape, np.float32)
    if name.endswith("_momentum"):
        values *= np.float32(0.01)
    elif name.startswith("v_"):
        values *= np.float32(EMBEDDING_STD)
        values[0] = 0  # background
    elif len(shape) == 1:
        values *= np.float32(0.1)
    else:
        rows = values.reshape(shape[0], -1)
        fan_in = shape[0] if name.startswith("conv5_mask") else rows.shape[1]
        rows -= rows.mean(axis=1, keepdims=True)  # else the mean of a ReLU drowns what differs
        rows *= np.float32(_gain(name, shapes) / math.sqrt(fan_in))
    return values


def _gain(name: str, shapes: Mapping[str, tuple[int, ...]]) -> float:
    gain = next((gain for part, gain in GAINS.items() if part in name), 1.7)
    if "logits_w_flat" in name:  # T's output: a kernel of that many inputs
        gain /= math.sqrt(shapes[name][0])
    first = "bbox2mask_mlp_l1_w" if "bbox2mask_mlp_l1_w" in shapes else "mask_fcn_logits_w_flat_w"
    if name == first:  # reads the rows of the detector, or embeddings
        embedded = any(other.startswith("v_") for other in shapes)
        fc = shapes["cls_score_w"][1]
        gain /= EMBEDDING_STD if embedded else GAINS["cls_score"] / math.sqrt(fc)
    return gain


class _Global:
    """A module-level name that Python 2's pickles refer to."""

    def __init__(self, module: str, name: str):
        self.line = f"{module}\n{name}\n".encode("ascii")


RECONSTRUCT = _Global("numpy.core.multiarray", "_reconstruct")
NDARRAY = _Global("numpy", "ndarray")
DTYPE = _Global("numpy", "dtype")


class _Python2Pickler(pickle._Pickler):
    """Writes what Python 2 with NumPy 1 wrote: `str` and array data are strings of bytes."""

    dispatch: ClassVar[dict[type, Callable[..., None]]] = dict(pickle._Pickler.dispatch)

    def __init__(self, file: io.BytesIO, protocol: int, unicode: Collection[str]):
        super().__init__(file, protocol)
        self.unicode = unicode

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if isinstance(obj, np.ndarray | np.dtype) and id(obj) not in self.memo:
            self._save_numpy(obj)
        else:
            super().save(obj, save_persistent_id)

    def _save_numpy(self, obj: np.ndarray | np.dtype) -> None:
        state: tuple
        if isinstance(obj, np.ndarray):
            array = np.ascontiguousarray(obj)
            call = RECONSTRUCT, (NDARRAY, (0,), "b")
            state = (1, obj.shape, obj.dtype, False, memoryview(array.reshape(-1)).cast("B"))
        else:
            order, kind = obj.str[0], obj.str[1:]
            call = DTYPE, (kind, 0, 1)
            state = (3, order, None, None, None, -1, -1, 0)
        for part in call:
            self.save(part)
        self.write(pickle.REDUCE)
        self.memoize(obj)
        self.save(state)
        self.write(pickle.BUILD)

    def _save_global(self, obj: _Global) -> None:
        self.write(pickle.GLOBAL + obj.line)
        self.memoize(obj)

    def _save_text(self, obj: str) -> None:
        if obj in self.unicode:
            self.save_str(obj)
        else:
            self._save_string(obj, obj.encode("latin1"))

    def _save_string(self, obj: Any, data: bytes | memoryview | None = None) -> None:
        data = obj if data is None else data
        if self.proto == 0:
            self.write(pickle.STRING + repr(bytes(data))[1:].encode("ascii") + b"\n")
        else:
            short = len(data) < 256
            self.write(pickle.SHORT_BINSTRING if short else pickle.BINSTRING)
            self.write(struct.pack("<B" if short else "<i", len(data)))
            self.write(data)
        self.memoize(obj)

    dispatch[_Global] = _save_global
    dispatch[str] = _save_text
    dispatch[bytes] = dispatch[memoryview] = _save_string


def dump(obj: Any, protocol: int, py2_unicode: Collection[str] = ()) -> bytes:
    """The pickle that Python 2 would have written of dicts, arrays, strings and numbers.

    Args:
      obj: arrays of numbers or booleans; text has no character beyond latin-1.
      protocol: 0 (text) or 2.
      py2_unicode: the strings, keys for instance, that were `unicode` there and not `str`.
    """
    if protocol not in (0, 2):
        raise ValueError(f"protocol {protocol}: Detectron wrote 0 and 2")
    file = io.BytesIO()
    _Python2Pickler(file, protocol, py2_unicode).dump(obj)
    return file.getvalue()
