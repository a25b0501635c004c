"""Imports detectron2's Mask R-CNN and Faster R-CNN.

Example:
  maskx weights detectron2 --weights=model_final_f10217.pkl --output_dir=runs/imported

Its weights are those of Detectron under other names and with the background last; they are renamed
and then follow the same rules. The model runs in our own conventions, which are detectron2's, with
the anchors at the corners of their cells.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from maskx_tf.errors import UserError
from maskx_tf.layers.backbone import EPSILON
from maskx_tf.system import cli
from maskx_tf.weights import importing, pickles
from maskx_tf.weights.blobs import Blobs
from maskx_tf.weights.caffe2 import BRANCHES, count_blocks, fpn_blob
from maskx_tf.weights.importing import Imported

OPTIONS = {
    "conventions": "aligned",
    "anchor_offset": 0.0,
    "pixel_mean": (103.53, 116.28, 123.675),
    "nms_candidates": 10_000,  # detectron2 has no such limit
}
_NORM = ("weight", "bias", "running_mean", "running_var")
_FIXED = {
    "backbone.bottom_up.stem.conv1": "conv1",
    "proposal_generator.rpn_head.conv": "conv_rpn_fpn2",
    "proposal_generator.rpn_head.objectness_logits": "rpn_cls_logits_fpn2",
    "proposal_generator.rpn_head.anchor_deltas": "rpn_bbox_pred_fpn2",
    "roi_heads.box_head.fc1": "fc6",
    "roi_heads.box_head.fc2": "fc7",
    "roi_heads.box_predictor.cls_score": "cls_score",
    "roi_heads.box_predictor.bbox_pred": "bbox_pred",
    "roi_heads.mask_head.deconv": "conv5_mask",
    "roi_heads.mask_head.predictor": "mask_fcn_logits",
}


def load(path: str, overrides: Mapping[str, Any] | None = None) -> Imported:
    """The model of a detectron2 file.

    Args:
      path: a .pkl of the model zoo (`{"model": {name: array}}`), or an .npz of the same names, with
        or without `w/` before them; its array `meta` (json), if there is one, brings settings.
      overrides: options of `Config`, such as vocabulary, stride_on or anchor_size.

    Raises:
      UserError: the file cannot be read, or is not a model of a supported kind.
    """
    arrays, options = _read(path)
    settings = {name: arrays[name] for name in ("pixel_mean", "pixel_std") if name in arrays}
    options |= {name: tuple(map(float, np.ravel(values))) for name, values in settings.items()}
    renamed, labels = _rename(arrays)
    _background_first(renamed)
    blobs = Blobs(renamed, path, labels)
    return importing.build(blobs, OPTIONS | options, overrides or {}, stale=_stale)


def _read(path: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arrays by detectron2's names, and the options that the file states."""
    if not path.endswith(".npz"):
        content = pickles.load(path)
        arrays = content.get("model", content)
        if not isinstance(arrays, dict):
            raise UserError(
                f"{path}: 'model' is not a dict of arrays; this is not a detectron2 file."
            )
        return dict(arrays), {}
    try:
        with np.load(path) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read as an .npz of arrays: {error}.") from None
    options = _options_of(json.loads(str(arrays.pop("meta")))) if "meta" in arrays else {}
    weights = {name[2:]: value for name, value in arrays.items() if name.startswith("w/")}
    return weights or arrays, options


def _options_of(meta: Mapping[str, Any]) -> dict[str, Any]:
    anchors, rpn, box = meta["anchors"], meta["rpn"], meta["box"]
    return {
        "stride_on": meta["stride_in"],
        "pixel_mean": tuple(map(float, meta["pixel_mean_bgr"])),
        "anchor_size": anchors["sizes"][0] / anchors["strides"][0],
        "anchor_ratios": tuple(map(float, anchors["ratios_h_over_w"])),
        "anchor_offset": float(anchors["offset"]),
        "rpn_pre_nms_test": rpn["pre_nms_per_level"],
        "rpn_post_nms_test": rpn["post_nms"],
        "rpn_nms_iou": rpn["nms"],
        "nms_iou": box["nms"],
        "score_threshold": box["score_thresh"],
        "max_detections": box["topk"],
    }


def _rename(arrays: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The arrays by Detectron's names, and from these names to detectron2's."""
    layers = _layer_names(arrays)
    renamed: dict[str, Any] = {}
    labels = {
        f"{new}_{kind[0]}": f"{layer}.{kind}"
        for layer, new in layers.items()
        for kind in ("weight", "bias")
    }
    for name, value in arrays.items():
        layer, _, kind = name.rpartition(".")
        if layer in layers and kind in ("weight", "bias"):
            new = f"{layers[layer]}_{kind[0]}"
        elif layer.endswith(".norm") and layer.removesuffix(".norm") in layers and kind in _NORM:
            continue
        else:
            new = name
        renamed[new] = value
    for layer, new in layers.items():
        norm = [arrays.get(f"{layer}.norm.{part}") for part in _NORM]
        if all(isinstance(part, np.ndarray) for part in norm):
            gamma, beta, mean, variance = map(np.asarray, norm)
            prefix = "res_conv1_bn" if new == "conv1" else f"{new}_bn"
            scale = gamma / np.sqrt(variance + EPSILON)
            renamed |= {f"{prefix}_s": scale, f"{prefix}_b": beta - mean * scale}
            labels |= {f"{prefix}_{part}": f"{layer}.norm" for part in "sb"}
    return renamed, labels


def _layer_names(arrays: Mapping[str, Any]) -> dict[str, str]:
    """From detectron2's layer names to Detectron's, for the layers that the file has."""
    blocks = re.compile(r"backbone\.bottom_up\.res([2-5])\.(\d+)\.(conv[123]|shortcut)\.weight")
    counts = count_blocks(arrays, r"backbone\.bottom_up\.res([2-5])\.(\d+)\.conv1\.weight")
    names = dict(_FIXED)
    for name in arrays:
        if match := blocks.fullmatch(name):
            layer = name.removesuffix(".weight")
            names[layer] = f"res{match[1]}_{match[2]}_branch{BRANCHES[match[3]]}"
    for level in (2, 3, 4, 5):
        names[f"backbone.fpn_lateral{level}"] = fpn_blob(level, counts, inner=True)
        names[f"backbone.fpn_output{level}"] = fpn_blob(level, counts, inner=False)
    for name in arrays:
        if match := re.fullmatch(r"(roi_heads\.mask_head\.mask_fcn(\d+))\.weight", name):
            names[match[1]] = f"_[mask]_fcn{match[2]}"
    return names


def _background_first(blobs: dict[str, Any]) -> None:
    """Moves the background row of the classes to the front, and gives it one where it has none."""
    for name in ("cls_score_w", "cls_score_b"):
        if name in blobs:
            blobs[name] = np.roll(blobs[name], 1, axis=0)
    classes = len(blobs["cls_score_b"]) - 1 if "cls_score_b" in blobs else 0
    for part in ("bbox_pred_w", "bbox_pred_b"):
        if part in blobs and len(blobs[part]) == 4:  # the same regression for all classes
            blobs[part] = np.concatenate([blobs[part]] * classes)
    for name, rows in (("bbox_pred", 4), ("mask_fcn_logits", 1)):
        for part in (f"{name}_w", f"{name}_b"):
            if part in blobs and len(blobs[part]) == rows * classes:
                blobs[part] = np.pad(blobs[part], [[rows, 0]] + [[0, 0]] * (blobs[part].ndim - 1))


def _stale(name: str) -> str:
    if ".anchor_generator.cell_anchors." in name:
        return "anchors, which follow from the options"
    if name in ("pixel_mean", "pixel_std"):
        return "pixel statistics, taken over as options"
    if name.endswith(".num_batches_tracked"):
        return "counters of batch normalisation"
    return ""


def define_flags() -> None:
    """Defines this command's flags."""
    importing.define_flags()


def main() -> None:
    """Imports, prints the report."""
    importing.run(load)


if __name__ == "__main__":
    define_flags()
    cli.run(main)
