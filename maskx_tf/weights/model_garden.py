"""Reads the ResNet out of a Model Garden checkpoint, of a classifier, a detector or alone."""

import os
import re

import numpy as np
import tensorflow as tf
from official.modeling import hyperparams

from maskx_tf import checkpoints
from maskx_tf.errors import UserError
from maskx_tf.system.literal_paths import literal
from maskx_tf.weights import caffe2
from maskx_tf.weights.blobs import Blobs
from maskx_tf.weights.imagenet_files import ImageNetResNet, keras_rules

EPSILON = 1e-5  # of Model Garden's experiment `resnet_imagenet`
_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"  # how a checkpoint marks a variable's value


def read_model_garden(path: str, backbone: str) -> ImageNetResNet:
    """Reads a checkpoint, or the latest of a directory.

    Args:
      path: directory, or the checkpoint's path without `.index`.
      backbone: `resnet50` or `resnet101`, ours.

    Raises:
      UserError: it is damaged, or its ResNet is of a kind that this project has not.
    """
    checkpoint = checkpoints.latest_checkpoint(path)
    blobs = Blobs(_checkpoint_arrays(checkpoint), f"--backbone_weights={checkpoint}")
    root = _root(blobs)
    total = sum(bool(re.fullmatch(rf"{root}\d+/_conv1/kernel", name)) for name in blobs.arrays)
    # Layers 0 and 1 are the stem; the first block of a stage has a shortcut with its own norm.
    starts = [n for n in range(2, 2 + total) if f"{root}{n}/_norm0/gamma" in blobs]
    _check_variant(blobs, root, starts)
    ends = [*starts[1:], 2 + total]
    epsilon = _epsilon(checkpoint)
    rules = keras_rules("stem", f"{root}0", f"{root}1", blobs, epsilon)
    for stage, block, part in caffe2.places(backbone):
        layer = f"{root}{starts[stage - 2] + block}"
        norm = f"{layer}/_norm{0 if part == 'shortcut' else part[-1]}"
        rules |= keras_rules(f"res{stage}_{block}/{part}", f"{layer}/_{part}", norm, blobs, epsilon)
    blocks = tuple(end - start for start, end in zip(starts, ends, strict=True))
    return ImageNetResNet(blobs, blocks, rules)


def _checkpoint_arrays(checkpoint: str) -> dict[str, np.ndarray]:
    try:
        reader = tf.train.load_checkpoint(literal(checkpoint))
        names = [n for n in reader.get_variable_to_shape_map() if n.endswith(_VALUE)]
        return {
            name.removesuffix(_VALUE): np.asarray(reader.get_tensor(name))
            for name in names
            if ".OPTIMIZER_SLOT" not in name
        }
    except (tf.errors.OpError, IndexError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"--backbone_weights={checkpoint} cannot be read ({reason}); copy it again."
        ) from None


def _root(blobs: Blobs) -> str:
    """What the names of the backbone's layers start with, up to their number."""
    found = (re.fullmatch(r"(.*layer_with_weights-)\d+/_conv3/kernel", n) for n in blobs.arrays)
    roots = sorted({match[1] for match in found if match}, key=lambda r: ("backbone" not in r, r))
    if not roots:
        raise UserError(
            f"{blobs.source} holds no bottleneck ResNet of Model Garden; a checkpoint of this "
            "project is given as --init_checkpoint."
        )
    return roots[0]


def _check_variant(blobs: Blobs, root: str, starts: list[int]) -> None:
    """UserError if the backbone is one of Model Garden's variants that ours has not."""
    kernel = blobs.arrays.get(f"{root}0/kernel")
    names = [name for name in blobs.arrays if name.startswith(root)]
    found = {
        "a stem other than v0": kernel is None or kernel.shape[:2] != (7, 7),
        "a convolution in place of the stem's max-pooling": f"{root}2/kernel" in blobs,
        "ResNet-D shortcuts": any("/_shortcut1/" in name for name in names),
        "squeeze-and-excitation": any("/_squeeze_excitation/" in name for name in names),
    }
    wrong = [variant for variant, present in found.items() if present]
    if not wrong and (len(starts) != 4 or starts[0] != 2):
        wrong = [f"{len(starts)} stages after the stem"]
    if wrong:
        raise UserError(
            f"{blobs.source} has {', '.join(wrong)}; only the plain ResNet-50 and "
            "ResNet-101 of Model Garden (stem_type v0, no se_ratio, no resnetd_shortcut) fit."
        )


def _epsilon(checkpoint: str) -> float:
    """The epsilon that params.yaml beside the checkpoint names; without it, `resnet_imagenet`'s."""
    path = os.path.join(os.path.dirname(checkpoint), "params.yaml")
    if not tf.io.gfile.exists(path):
        return EPSILON
    params = hyperparams.read_yaml_to_params_dict(path).as_dict()
    for key in ("task", "model", "norm_activation"):
        params = params.get(key) or {}
    if params.get("activation", "relu") != "relu":
        raise UserError(
            f"{path}: the network was trained with activation {params['activation']}; this "
            "project's ResNet has relu."
        )
    return float(params.get("norm_epsilon", EPSILON))
