"""The options of a model, read off the names and shapes of its Detectron blobs."""

from __future__ import annotations

import math
import re
from typing import Any, NamedTuple

from maskx_tf.errors import UserError
from maskx_tf.layers.backbone import STAGES
from maskx_tf.weights.blobs import Blobs
from maskx_tf.weights.caffe2 import BLOCK, count_blocks, fpn_blob

EMBEDDINGS = ("v_glove", "v_randn_0")


class Architecture(NamedTuple):
    """What kind of model a file holds.

    Attributes:
      options: of `Config`, as the blobs tell them; `mode` is stage1_boxes without a mask head.
      embedding: the blob of class embeddings that T takes; "" if it takes class weights.
    """

    options: dict[str, Any]
    embedding: str


def read(blobs: Blobs, embedding: str = "") -> Architecture:
    """The architecture of a model.

    Args:
      blobs: by Detectron's names.
      embedding: the blob of class embeddings, where the file holds several.

    Raises:
      UserError: this is not a ResNet-FPN of a supported kind.
    """
    backbone = _backbone(blobs)
    counts = STAGES[backbone]
    pyramid = fpn_blob(2, counts, inner=False) + "_w"
    if pyramid not in blobs:
        raise UserError(
            f"{blobs.source} has no feature pyramid ({blobs.label(pyramid)}): only FPN models are "
            "supported, no C4, C5 or RetinaNet."
        )
    if "conv_rpn_fpn2_w" not in blobs:
        raise UserError(
            f"{blobs.source} has no RPN ({blobs.label('conv_rpn_fpn2_w')}): a Fast R-CNN, which "
            "needs proposals of another model, cannot be run here."
        )
    if "fc6_w" not in blobs:
        raise UserError(
            f"{blobs.source} has no box head of two fully connected layers "
            f"({blobs.label('fc6_w')}); others are not supported."
        )
    fpn_filters = blobs.shape(pyramid)[0]
    options = {
        "backbone": backbone,
        "backbone_width": blobs.shape("conv1_w")[0],
        "fpn_filters": fpn_filters,
        "rpn_filters": blobs.shape("conv_rpn_fpn2_w")[0],
        "box_fc_units": blobs.shape("fc6_w")[0],
        "box_roi_size": math.isqrt(blobs.shape("fc6_w")[-1] // fpn_filters),
    }
    embedding = _embedding_blob(blobs, embedding)
    return Architecture(options | _mask_options(blobs, embedding), embedding)


def _backbone(blobs: Blobs) -> str:
    counts = count_blocks(blobs.arrays, BLOCK)
    for variant, wanted in STAGES.items():
        if counts == wanted:
            return variant
    if not any(counts):
        names = ", ".join(sorted(map(blobs.label, blobs.arrays))[:5])
        raise UserError(
            f"{blobs.source} holds no ResNet by Detectron's names; it starts with: {names}."
        )
    raise UserError(
        f"{blobs.source} has a ResNet with {counts} blocks in its stages; supported are "
        f"ResNet-50 {STAGES['resnet50']} and ResNet-101 {STAGES['resnet101']}."
    )


def _mask_options(blobs: Blobs, embedding: str) -> dict[str, Any]:
    if "conv5_mask_w" not in blobs:
        return {"mode": "stage1_boxes"}
    convs = sum(bool(re.fullmatch(r"_\[mask\]_fcn\d+_w", name)) for name in blobs.arrays)
    options: dict[str, Any] = {
        "mask_filters": blobs.shape("conv5_mask_w")[1],
        "mask_convs": convs,
        "mask_mlp": "mask_mlp_logits_raw_w" in blobs,
    }
    deeper = [name for name in blobs.arrays if name.startswith("fc_mask_head_mlp_l")]
    if deeper:
        raise UserError(
            f"{blobs.source} has an MLP branch of several layers ({deeper[0]}), as in none of the "
            "published models; only the single layer is supported."
        )
    if options["mask_mlp"]:
        options["mask_roi_size"] = math.isqrt(blobs.shape("mask_mlp_logits_raw_w")[0]) // 2
    if "mask_fcn_logits_w_flat_w" in blobs:
        return options | _transfer_options(blobs, embedding)
    rows, classes = blobs.shape("mask_fcn_logits_w")[0], blobs.shape("cls_score_w")[0]
    if rows not in (1, classes):
        raise UserError(
            f"{blobs.source}: {blobs.label('mask_fcn_logits_w')} has {rows} masks for {classes} "
            "classes and background; it must be 1 or as many."
        )
    options["mask_output"] = "class_agnostic" if rows == 1 else "class_specific"
    return options


def _transfer_options(blobs: Blobs, embedding: str) -> dict[str, Any]:
    hidden = [name for name in ("bbox2mask_mlp_l1_w", "bbox2mask_mlp_l2_w") if name in blobs]
    first = hidden[0] if hidden else "mask_fcn_logits_w_flat_w"
    units = blobs.shape("fc6_w")[0]
    inputs = {units: "cls", 4 * units: "box", 5 * units: "cls+box"}
    return {
        "mask_output": "transfer",
        "transfer_layers": len(hidden) + 1,
        "transfer_units": blobs.shape(first)[0],
        "transfer_input": "embedding" if embedding else inputs[blobs.shape(first)[-1]],
    }


def _embedding_blob(blobs: Blobs, wanted: str) -> str:
    """The blob of class embeddings that T takes; "" if it takes class weights, or there is no T."""
    layers = ("bbox2mask_mlp_l1_w", "mask_fcn_logits_w_flat_w")
    first = next((name for name in layers if name in blobs), "")
    if not first:
        if wanted:
            raise UserError(f"{blobs.source} has no T; leave --embedding={wanted} out.")
        return ""
    inputs, units = blobs.shape(first)[-1], blobs.shape("fc6_w")[0]
    names = [wanted] if wanted else [name for name in EMBEDDINGS if name in blobs]
    if inputs in (units, 4 * units, 5 * units):
        if not wanted:
            return ""
        if wanted not in blobs or blobs.shape(wanted)[-1] != inputs:
            raise UserError(
                f"{blobs.source}: T takes {inputs} inputs per class, its class weights; leave "
                f"--embedding={wanted} out."
            )
    fitting = [name for name in names if blobs.shape(name)[-1] == inputs]
    if len(fitting) != 1:
        raise UserError(
            f"{blobs.source}: T takes {inputs} inputs per class, which are not class weights; name "
            f"the blob of its class embeddings with --embedding. Candidates: "
            f"{', '.join(fitting) or 'none'}."
        )
    return fitting[0]
