"""detectron2's Mask R-CNN in a narrow configuration: its weights in our layout, and its tensors.

NCHW becomes NHWC, xyxy becomes yxyx, the background moves from the last class to the first.
"""

import functools
import json

import numpy as np
import pytest

STRIDES = ("1x1", "3x3")
YXYX = [1, 0, 3, 2]  # xyxy -> yxyx, and (dx, dy, dw, dh) -> (dy, dx, dh, dw)
CLASSES_FIRST = [20, *range(20)]  # of detectron2's 20 classes and background to ours


@functools.cache
def load(stride: str) -> dict:
    """All arrays of the fixture with stride 2 on the `stride` convolution; skips without it."""
    harness = pytest.importorskip("tests.harness", reason="tests/harness.py finds the test data")
    path = harness.shared_data() / "fixtures" / f"detectron2_stride{stride}.npz"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    arrays = dict(np.load(path))
    return arrays | {"meta": json.loads(str(arrays["meta"]))}


def nhwc(array):
    """[B, C, H, W] -> [B, H, W, C]."""
    return np.moveaxis(array, 1, -1)


def relative_error(ours, theirs) -> float:
    """Largest deviation as a share of the largest value."""
    return float(np.max(np.abs(np.asarray(ours) - theirs)) / np.max(np.abs(theirs)))


def _conv(fixture, name):
    return np.transpose(fixture[f"w/{name}.weight"], (2, 3, 1, 0))


def _conv_bias(fixture, name):
    return [_conv(fixture, name), fixture[f"w/{name}.bias"]]


def _norm(fixture, name):
    parts = ("weight", "bias", "running_mean", "running_var")
    return [fixture[f"w/{name}.norm.{part}"] for part in parts]


def load_backbone(backbone, fixture) -> None:
    """Sets the weights of a built `ResNet("resnet50", 16)`."""
    root = "backbone.bottom_up"
    names = {"stem": f"{root}.stem.conv1"}
    for stage, count in zip((2, 3, 4, 5), (3, 4, 6, 3), strict=True):
        for block in range(count):
            for part in ("conv1", "conv2", "conv3", "shortcut"):
                names[f"res{stage}_{block}/{part}"] = f"{root}.res{stage}.{block}.{part}"
    values = {}
    for ours, theirs in names.items():
        if f"w/{theirs}.weight" in fixture:
            values[f"{ours}/conv/kernel"] = _conv(fixture, theirs)
            norm = ("gamma", "beta", "moving_mean", "moving_variance")
            for part, value in zip(norm, _norm(fixture, theirs), strict=True):
                values[f"{ours}/norm/{part}"] = value
    for variable in backbone.weights:
        name = variable.name.split(":")[0].split("backbone/")[-1]
        variable.assign(values.pop(name))
    assert not values, f"not loaded: {sorted(values)}"


def load_fpn(fpn, fixture) -> None:
    """Sets the weights of a built FPN with 64 channels."""
    for level in (2, 3, 4, 5):
        fpn.laterals[str(level)].set_weights(_conv_bias(fixture, f"backbone.fpn_lateral{level}"))
        fpn.outputs[str(level)].set_weights(_conv_bias(fixture, f"backbone.fpn_output{level}"))


def load_rpn(rpn, fixture) -> None:
    """Sets the weights of a built RPN with 64 channels and 3 anchors."""
    root = "proposal_generator.rpn_head"
    rpn.conv.set_weights(_conv_bias(fixture, f"{root}.conv"))
    rpn.objectness.set_weights(_conv_bias(fixture, f"{root}.objectness_logits"))
    kernel, bias = _conv_bias(fixture, f"{root}.anchor_deltas")
    order = (4 * np.arange(3)[:, None] + YXYX).ravel()
    rpn.deltas.set_weights([kernel[..., order], bias[order]])


def load_box_head(head, fixture) -> None:
    """Sets the weights of a built BoxHead of 20 classes and 128 units."""
    root = "roi_heads.box_head"
    kernel = fixture[f"w/{root}.fc1.weight"].reshape(128, 64, 7, 7)  # of a flattened CHW map
    kernel = np.transpose(kernel, (2, 3, 1, 0)).reshape(7 * 7 * 64, 128)
    head.fc1.set_weights([kernel, fixture[f"w/{root}.fc1.bias"]])
    head.fc2.set_weights([fixture[f"w/{root}.fc2.weight"].T, fixture[f"w/{root}.fc2.bias"]])
    root = "roi_heads.box_predictor"
    head.cls_kernel.assign(fixture[f"w/{root}.cls_score.weight"][CLASSES_FIRST])
    head.cls_bias.assign(fixture[f"w/{root}.cls_score.bias"][CLASSES_FIRST])
    box_kernel = fixture[f"w/{root}.bbox_pred.weight"].reshape(20, 4, 128)[:, YXYX]
    box_bias = fixture[f"w/{root}.bbox_pred.bias"].reshape(20, 4)[:, YXYX]
    head.box_kernel.assign(np.concatenate([np.zeros([1, 4, 128]), box_kernel]))
    head.box_bias.assign(np.concatenate([np.zeros([1, 4]), box_bias]))


def load_mask_head(head, fixture) -> None:
    """Sets the trunk of a built MaskHead with 64 filters and 4 convolutions."""
    root = "roi_heads.mask_head"
    for index, conv in enumerate(head.convs, start=1):
        conv.set_weights(_conv_bias(fixture, f"{root}.mask_fcn{index}"))
    kernel = np.transpose(fixture[f"w/{root}.deconv.weight"], (2, 3, 1, 0))  # [in, out, h, w]
    head.deconv.set_weights([kernel, fixture[f"w/{root}.deconv.bias"]])
