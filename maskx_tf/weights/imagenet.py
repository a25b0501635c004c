"""ImageNet initialisation of the backbone: what --backbone_weights names, checked and set."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from maskx_tf.config import Config
from maskx_tf.errors import UserError
from maskx_tf.layers.backbone import STAGES
from maskx_tf.model import MaskXRCNN, variable_key
from maskx_tf.weights import blobs
from maskx_tf.weights.imagenet_files import (
    ImageNetResNet,
    download_keras,
    read_detectron,
    read_keras,
    read_torchvision,
)
from maskx_tf.weights.model_garden import read_model_garden
from maskx_tf.weights.onnx_resnet import read_onnx

DOWNLOAD = "keras"  # the value of --backbone_weights that is not a path
TITLES = {
    "keras": "tf_keras.applications",
    "model_garden": "Model Garden",
    "torchvision": "torchvision",
    "detectron": "Detectron",
    "onnx": "an ONNX file",
}
_READERS = {
    "download": download_keras,
    "keras": read_keras,
    "model_garden": read_model_garden,
    "torchvision": read_torchvision,
    "detectron": read_detectron,
    "onnx": read_onnx,
}
_SOURCES = {
    ".h5": "keras",
    ".hdf5": "keras",
    ".pkl": "detectron",
    ".pth": "torchvision",
    ".pt": "torchvision",
    ".safetensors": "torchvision",
    ".onnx": "onnx",
}
WIDTH = 64  # filters of stage 2 and of the stem, where the file does not tell
# What the weights of each source were trained with. Features are theirs only with these options.
# (A file of ONNX tells its strides, padding and widths, but not the network's input.)
OPTIONS: dict[str, dict[str, Any]] = {
    "keras": {
        "channel_order": "bgr",
        "pixel_mean": (103.939, 116.779, 123.68),
        "pixel_std": (1.0, 1.0, 1.0),
        "stride_on": "1x1",
        "backbone_padding": "symmetric",
    },
    "model_garden": {
        "channel_order": "rgb",
        "pixel_mean": (123.675, 116.28, 103.53),
        "pixel_std": (58.395, 57.12, 57.375),
        "stride_on": "3x3",
        "backbone_padding": "same",
    },
    "torchvision": {
        "channel_order": "rgb",
        "pixel_mean": (123.675, 116.28, 103.53),
        "pixel_std": (58.395, 57.12, 57.375),
        "stride_on": "3x3",
        "backbone_padding": "symmetric",
    },
    "detectron": {
        "channel_order": "bgr",
        "pixel_mean": (102.9801, 115.9465, 122.7717),
        "pixel_std": (1.0, 1.0, 1.0),
        "stride_on": "1x1",
        "backbone_padding": "symmetric",
    },
}


def load_backbone(model: MaskXRCNN, config: Config) -> str:
    """Sets the backbone's variables from config.backbone_weights: all of them, or on error none.

    Biases of the source's convolutions go into the moving means, and the difference between its
    epsilon and ours goes into the moving variances, so that the features are those of the source.

    Args:
      model: built.
      config: its options.

    Returns:
      What was set and what of the file was not used, in one line.

    Raises:
      UserError: the file is none of the known kinds, damaged or incomplete, its ResNet has another
        depth, or the options are not those that the weights were trained with.
    """
    path = config.backbone_weights
    if config.init_checkpoint:
        raise UserError(
            f"--backbone_weights={path} and --init_checkpoint={config.init_checkpoint} are both "
            "given, but a checkpoint has a backbone of its own; clear one (--backbone_weights=)."
        )
    source = source_of(path)
    _check_options(config, source)
    content = _READERS["download" if path == DOWNLOAD else source](path, config.backbone)
    _check_depth(config, content)
    _check_same(config, source, content.options)
    variables = {variable_key(variable): variable for variable in model.backbone.weights}
    blobs.assign(variables, content.rules, content.blobs)
    return _report(config, source, content, len(variables))


def source_of(path: str) -> str:
    """A key of `OPTIONS`, or `onnx`, by the name; UserError if there is no such file."""
    if path == DOWNLOAD:
        return "keras"
    source = _SOURCES.get(pathlib.Path(path).suffix)
    if source and pathlib.Path(path).is_file():
        return source
    if not source and (tf.io.gfile.exists(f"{path}.index") or tf.io.gfile.isdir(path)):
        return "model_garden"
    raise UserError(
        f"--backbone_weights={path}: there is no such file; give `keras`, a .h5 file of "
        "tf_keras.applications, a .pth or .safetensors file of torchvision or timm, a Detectron "
        ".pkl file, an .onnx file, or a Model Garden checkpoint (a directory, or its path without "
        ".index)."
    )


def _check_options(config: Config, source: str) -> None:
    path = config.backbone_weights
    widths = {config.backbone_width, config.backbone_stem_width or WIDTH}
    tells = source in ("onnx", "torchvision")
    if config.backbone == "small" or (widths != {WIDTH} and not tells):
        raise UserError(
            f"--backbone_weights={path} needs --backbone=resnet50 or resnet101 with "
            f"--backbone_width={WIDTH}, not {config.backbone} with {config.backbone_width}."
        )
    if config.normalization == "group_norm":
        raise UserError(
            f"--backbone_weights={path} has batch normalisation; --normalization=group_norm "
            "cannot take it over: use frozen_batch_norm, batch_norm or sync_batch_norm."
        )
    _check_same(config, source, OPTIONS.get(source, {}))


def _check_same(config: Config, source: str, wanted: Mapping[str, Any]) -> None:
    """UserError that names the options of `wanted` that are others in `config`."""
    actual = {name: getattr(config, name) for name in wanted}
    if "backbone_stem_width" in actual:
        actual["backbone_stem_width"] = config.backbone_stem_width or config.backbone_width
    wrong = [
        f"--{name}={_text(value)} (not {_text(actual[name])})"
        for name, value in wanted.items()
        if not _same(actual[name], value)
    ]
    if wrong:
        remedy = "add them"
        if source in OPTIONS and wanted.keys() <= OPTIONS[source].keys():
            remedy = f"add --flagfile=configs/backbones/{source}.flags after the other flagfiles"
        raise UserError(
            f"--backbone_weights={config.backbone_weights}, from {TITLES[source]}, needs "
            f"{', '.join(wrong)}; {remedy}."
        )


def _check_depth(config: Config, content: ImageNetResNet) -> None:
    wanted = STAGES[config.backbone]
    other = [name for name, blocks in STAGES.items() if blocks == content.blocks]
    deeper = any(a > b for a, b in zip(content.blocks, wanted, strict=True))
    if content.blocks != wanted and (other or deeper):
        raise UserError(
            f"--backbone_weights={config.backbone_weights} is {' or '.join(other) or 'a ResNet'} "
            f"with {content.blocks} blocks, --backbone={config.backbone} has {wanted}; they have "
            "to be the same."
        )


def _report(config: Config, source: str, content: ImageNetResNet, count: int) -> str:
    unused = sorted(content.blobs.unexpected)
    more = f" and {len(unused) - 4} more" if len(unused) > 4 else ""
    line = (
        f"Backbone from {config.backbone_weights} ({TITLES[source]}): {count} variables set; "
        f"not used: {', '.join(unused[:4]) or 'none'}{more}."
    )
    if source == "onnx":
        line += (
            f" The file does not tell its input; it is taken for --channel_order="
            f"{config.channel_order} --pixel_mean={_text(config.pixel_mean)} "
            f"--pixel_std={_text(config.pixel_std)}."
        )
    if content.is_folded and config.normalization != "frozen_batch_norm":
        line += (
            f" Its batch statistics are folded into scale and offset: in training, "
            f"--normalization={config.normalization} starts from other features."
        )
    return line


def _same(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, str | int):
        return value == wanted
    return len(value) == len(wanted) and np.allclose(value, wanted, rtol=0, atol=1e-3)


def _text(value: Any) -> str:
    return str(value) if isinstance(value, str | int) else ",".join(f"{item:g}" for item in value)
