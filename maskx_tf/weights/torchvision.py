"""Imports torchvision's Mask R-CNN and Faster R-CNN with ResNet-50-FPN.

Example:
  maskx weights torchvision --weights=maskrcnn_resnet50_fpn.pth --output_dir=runs/imported

Files of `maskrcnn_resnet50_fpn` and `fasterrcnn_resnet50_fpn`, by the names that layers have
now and had before torchvision 0.13; trained on COCO or further on classes of one's own. The model
runs in torchvision's conventions (docs/weights.md).
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import flags

from maskx_tf.system import cli
from maskx_tf.weights import importing, torch_files
from maskx_tf.weights.blobs import Blobs
from maskx_tf.weights.caffe2 import BRANCHES, count_blocks, fpn_blob
from maskx_tf.weights.imagenet import OPTIONS as BACKBONES
from maskx_tf.weights.importing import Imported

OPTIONS = {
    **BACKBONES["torchvision"],
    "conventions": "torchvision",
    "anchor_offset": 0.0,
    "nms_candidates": 10_000,  # torchvision has no such limit
}
# Rows of COCO's models are category ids, up to 90; these have no category.
_NO_CATEGORY = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
_COCO_ROWS = 91
_NORM = ("weight", "bias", "running_mean", "running_var")
_BODY = "backbone.body."
_BLOCK = r"layer([1-4])\.(\d+)\.conv3\.weight"
# Layers by torchvision's names now and before 0.13, and by Detectron's.
_LAYERS = {
    r"rpn\.head\.conv(?:\.0\.0)?": "conv_rpn_fpn2",
    r"rpn\.head\.cls_logits": "rpn_cls_logits_fpn2",
    r"rpn\.head\.bbox_pred": "rpn_bbox_pred_fpn2",
    r"roi_heads\.box_head\.(fc[67])": r"\1",
    r"roi_heads\.box_predictor\.(cls_score|bbox_pred)": r"\1",
    r"roi_heads\.mask_head\.mask_fcn(\d+)": r"_[mask]_fcn\1",
    r"roi_heads\.mask_predictor\.(conv5_mask|mask_fcn_logits)": r"\1",
}


def load(
    path: str, overrides: Mapping[str, Any] | None = None, *, norm_epsilon: float = 0.0
) -> Imported:
    """The model of a state_dict.

    Args:
      path: a .pth or .safetensors, see `torch_files.read`.
      overrides: options of `Config`, such as vocabulary.
      norm_epsilon: of the backbone's batch norm. torchvision has 0 where its weights for COCO are
        asked for by name, also if they are trained further, and 1e-5 otherwise.

    Raises:
      UserError: the file cannot be read, or is not a model of a supported kind.
    """
    arrays = torch_files.read(path)
    renamed, labels = _rename(arrays, norm_epsilon)
    _drop_rows_without_category(renamed)
    blobs = Blobs(renamed, path, labels)
    return importing.build(blobs, OPTIONS, overrides or {}, stale=_stale)


def _rename(
    arrays: Mapping[str, Any], norm_epsilon: float
) -> tuple[dict[str, Any], dict[str, str]]:
    """The arrays by Detectron's names, and from these names to torchvision's."""
    layers, norms = _layer_names(arrays)
    renamed: dict[str, Any] = {}
    labels: dict[str, str] = {}
    for name, value in arrays.items():
        layer, _, kind = name.rpartition(".")
        if layer in norms and kind in _NORM:
            continue
        new = f"{layers[layer]}_{kind[0]}" if layer in layers else name
        renamed[new], labels[new] = value, name
    for norm, new in norms.items():
        parts = [arrays.get(f"{norm}.{part}") for part in _NORM]
        if all(isinstance(part, np.ndarray) for part in parts):
            gamma, beta, mean, variance = map(np.asarray, parts)
            scale = gamma / np.sqrt(variance + norm_epsilon)
            renamed |= {f"{new}_s": scale, f"{new}_b": beta - mean * scale}
            labels |= {f"{new}_{part}": norm for part in "sb"}
    return renamed, labels


def _layer_names(arrays: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """From torchvision's layers to Detectron's: convolutions and heads, and batch norms."""
    layers = {f"{_BODY}conv1": "conv1"}
    norms = {f"{_BODY}bn1": "res_conv1_bn"}
    counts = count_blocks((name.removeprefix(_BODY) for name in arrays), _BLOCK, "1234")
    for stage, count in enumerate(counts, start=2):
        for block, part in itertools.product(range(count), BRANCHES):
            theirs = f"{_BODY}layer{stage - 1}.{block}"
            new = f"res{stage}_{block}_branch{BRANCHES[part]}"
            is_shortcut = part == "shortcut"
            layers[f"{theirs}.{'downsample.0' if is_shortcut else part}"] = new
            norms[f"{theirs}.{'downsample.1' if is_shortcut else f'bn{part[-1]}'}"] = f"{new}_bn"
    for level in (2, 3, 4, 5):
        for theirs, inner in (("inner", True), ("layer", False)):
            name = f"backbone.fpn.{theirs}_blocks.{level - 2}"
            layers |= dict.fromkeys((name, f"{name}.0"), fpn_blob(level, counts, inner))
    for name in {name.rpartition(".")[0] for name in arrays}:
        for pattern, new in _LAYERS.items():
            if match := re.fullmatch(pattern, name):
                layers[name] = match.expand(new)
        if match := re.fullmatch(r"roi_heads\.mask_head\.(\d+)\.0", name):
            layers[name] = f"_[mask]_fcn{int(match[1]) + 1}"
    return layers, norms


def _drop_rows_without_category(blobs: dict[str, Any]) -> None:
    """Leaves the rows of COCO's 80 classes and the background in the class layers of its models."""
    if len(blobs.get("cls_score_b", ())) != _COCO_ROWS:
        return
    for name, rows in (("cls_score", 1), ("bbox_pred", 4), ("mask_fcn_logits", 1)):
        for part in (f"{name}_w", f"{name}_b"):
            if part in blobs and len(blobs[part]) == rows * _COCO_ROWS:
                by_row = blobs[part].reshape(_COCO_ROWS, rows, *blobs[part].shape[1:])
                left = np.delete(by_row, _NO_CATEGORY, axis=0)
                blobs[part] = left.reshape(-1, *blobs[part].shape[1:])


def _stale(name: str) -> str:
    return "counters of batch normalisation" if name.endswith(".num_batches_tracked") else ""


def define_flags() -> None:
    """Defines this command's flags."""
    importing.define_flags()
    flags.DEFINE_float(
        "norm_epsilon",
        0.0,
        "Epsilon of the backbone's batch norm: 0 of torchvision's weights for COCO, also if "
        "trained further; 1e-5 of models whose training began with weights of the backbone alone.",
        lower_bound=0.0,
    )


def main() -> None:
    """Imports, prints the report."""
    importing.run(functools.partial(load, norm_epsilon=flags.FLAGS.norm_epsilon))


if __name__ == "__main__":
    define_flags()
    cli.run(main)
