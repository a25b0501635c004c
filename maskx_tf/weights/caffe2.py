"""Names and layouts of Detectron's Caffe2 blobs, as rules for the variables of our model.

Caffe2 stores convolutions as (out, in, h, w), transposed ones as (in, out, h, w), fully connected
layers as (out, in) over inputs flattened as (channel, y, x), boxes as x before y, and batch
normalisation as a fixed scale and shift.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from maskx_tf.config import Config
from maskx_tf.layers.backbone import EPSILON, STAGES
from maskx_tf.weights.blobs import Rule

Rules = dict[str, Rule]

YXYX = [1, 0, 3, 2]  # (x, y, x, y) or (dx, dy, dw, dh) to ours
BLOCK = r"res([2-5])_(\d+)_branch2a_w"  # what each block of the stages 2 to 5 has one of
BRANCHES = {"conv1": "2a", "conv2": "2b", "conv3": "2c", "shortcut": "1"}


def rules(config: Config, embedding: str = "") -> Rules:
    """Rules for all variables of a model, by their names without `maskx_rcnn/`.

    Args:
      config: of the model.
      embedding: the blob that holds T's input, with `transfer_input=embedding`.
    """
    return (
        backbone_rules(config.backbone)
        | _fpn_rules(STAGES[config.backbone])
        | _rpn_rules()
        | _box_head_rules(config)
        | _mask_head_rules(config)
        | _predictor_rules(config, embedding)
    )


def detector_rules(config: Config) -> Rules:
    """Rules for all but the mask head and its predictor, as for a Faster R-CNN."""
    return {
        name: rule
        for name, rule in rules(config).items()
        if not name.startswith(("mask_", "weight_transfer/", "embeddings"))
    }


def hwio(kernel: np.ndarray) -> np.ndarray:
    """(out, in, h, w) to (h, w, in, out), and (in, out, h, w) to (h, w, out, in)."""
    return np.transpose(kernel, (2, 3, 1, 0))


def _same(array: np.ndarray) -> np.ndarray:
    return array


def _layer(ours: str, theirs: str, kernel: Callable = hwio, bias: Callable = _same) -> Rules:
    return {
        f"{ours}/kernel": Rule((f"{theirs}_w",), kernel),
        f"{ours}/bias": Rule((f"{theirs}_b",), bias),
    }


def backbone_rules(variant: str) -> Rules:
    """Rules for a ResNet; `variant` is a key of `backbone.STAGES` with bottlenecks."""
    found = _conv_norm("backbone/stem", "conv1", "res_conv1_bn")
    for stage, block, part in places(variant):
        name = f"res{stage}_{block}_branch{BRANCHES[part]}"
        found |= _conv_norm(f"backbone/res{stage}_{block}/{part}", name, f"{name}_bn")
    return found


def places(variant: str) -> Iterator[tuple[int, int, str]]:
    """(stage, block, part) of every convolution but the stem; part is a key of `BRANCHES`."""
    for stage, count in enumerate(STAGES[variant], start=2):
        for block in range(count):
            for part in BRANCHES:
                if part != "shortcut" or block == 0:
                    yield stage, block, part


def count_blocks(names: Iterable[str], pattern: str, stages: str = "2345") -> tuple[int, ...]:
    """Blocks in each of the stages 2 to 5; `pattern` has stage and block as its groups.

    `stages` is what the names call these stages.
    """
    found = (re.fullmatch(pattern, name) for name in names)
    blocks = {match.groups() for match in found if match}
    return tuple(sum(stage == wanted for stage, _ in blocks) for wanted in stages)


def _conv_norm(ours: str, conv: str, norm: str) -> Rules:
    scale, shift = f"{norm}_s", f"{norm}_b"
    return {
        f"{ours}/conv/kernel": Rule((f"{conv}_w",), hwio),
        f"{ours}/norm/gamma": Rule((scale,), _same),
        f"{ours}/norm/beta": Rule((shift,), _same),
        f"{ours}/norm/moving_mean": Rule((scale,), np.zeros_like),
        f"{ours}/norm/moving_variance": Rule((scale,), lambda s: np.full_like(s, 1 - EPSILON)),
    }


def fpn_blob(level: int, block_counts: tuple[int, ...], inner: bool) -> str:
    """Name, without `_w`, of the lateral (`inner`) or output convolution of a level."""
    block = f"res{level}_{block_counts[level - 2] - 1}_sum"
    if not inner:
        return f"fpn_{block}"
    return f"fpn_inner_{block}" + ("_lateral" if level < 5 else "")


def _fpn_rules(block_counts: tuple[int, ...]) -> Rules:
    found: Rules = {}
    for level in (2, 3, 4, 5):
        found |= _layer(f"fpn/lateral{level}", fpn_blob(level, block_counts, inner=True))
        found |= _layer(f"fpn/output{level}", fpn_blob(level, block_counts, inner=False))
    return found


def _rpn_rules() -> Rules:
    def reorder(rows: np.ndarray) -> np.ndarray:  # [4 A, ...]
        return rows.reshape(-1, 4, *rows.shape[1:])[:, YXYX].reshape(rows.shape)

    return (
        _layer("rpn/conv", "conv_rpn_fpn2")
        | _layer("rpn/objectness", "rpn_cls_logits_fpn2")
        | _layer("rpn/deltas", "rpn_bbox_pred_fpn2", lambda w: hwio(reorder(w)), reorder)
    )


def _from_chw(channels: int, side: int) -> Callable[[np.ndarray], np.ndarray]:
    """(out, channels * side * side) to (side * side * channels, out)."""

    def convert(kernel: np.ndarray) -> np.ndarray:
        kernel = kernel.reshape(-1, channels, side, side)
        return hwio(kernel).reshape(side * side * channels, -1)

    return convert


def _box_head_rules(config: Config) -> Rules:
    def by_class(rows: np.ndarray) -> np.ndarray:  # [4 (K + 1), ...] -> [K + 1, 4, ...]
        return rows.reshape(-1, 4, *rows.shape[1:])[:, YXYX]

    return (
        _layer("box_head/fc1", "fc6", _from_chw(config.fpn_filters, config.box_roi_size))
        | _layer("box_head/fc2", "fc7", np.transpose)
        | {
            "box_head/cls_kernel": Rule(("cls_score_w",), _same),
            "box_head/cls_bias": Rule(("cls_score_b",), _same),
            "box_head/box_kernel": Rule(("bbox_pred_w",), by_class),
            "box_head/box_bias": Rule(("bbox_pred_b",), by_class),
        }
    )


def _mask_head_rules(config: Config) -> Rules:
    found: Rules = {}
    for index in range(1, config.mask_convs + 1):
        found |= _layer(f"mask_head/conv{index}", f"_[mask]_fcn{index}")
    found |= _layer("mask_head/deconv", "conv5_mask")
    if config.mask_mlp:
        convert = _from_chw(config.mask_filters, config.mask_size)
        found |= _layer("mask_head/mlp", "mask_mlp_logits_raw", convert)
    return found


def _predictor_rules(config: Config, embedding: str) -> Rules:
    if config.mask_output != "transfer":
        return {
            "mask_weights/kernel": Rule(("mask_fcn_logits_w",), lambda w: w[:, :, 0, 0]),
            "mask_weights/bias": Rule(("mask_fcn_logits_b",), _same),
        }
    names = transfer_blobs(config.transfer_layers)
    found = _layer("weight_transfer/fc1", names[0], _first_transfer_kernel(config))
    for index, name in enumerate(names[1:], start=2):
        found |= _layer(f"weight_transfer/fc{index}", name, np.transpose)
    if config.transfer_input == "embedding":
        found["embeddings"] = Rule((embedding,), _same)
    return found


def transfer_blobs(layers: int) -> tuple[str, ...]:
    """Names, without `_w`, of T's layers; the last has the name of what it predicts."""
    hidden = ("bbox2mask_mlp_l1", "bbox2mask_mlp_l2")[: layers - 1]
    return (*hidden, "mask_fcn_logits_w_flat")


def _first_transfer_kernel(config: Config) -> Callable[[np.ndarray], np.ndarray]:
    """(units, inputs) to (inputs, units), the box blocks dx, dy, dw, dh to ours."""

    def convert(kernel: np.ndarray) -> np.ndarray:
        kernel = kernel.T
        if config.transfer_input in ("box", "cls+box"):
            units = config.box_fc_units
            start = units if config.transfer_input == "cls+box" else 0
            blocks = kernel[start:].reshape(4, units, -1)[YXYX]
            kernel = np.concatenate([kernel[:start], blocks.reshape(4 * units, -1)])
        return kernel

    return convert
