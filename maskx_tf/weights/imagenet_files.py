"""Reads the ImageNet ResNets of tf_keras.applications, torchvision, timm and Detectron."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import h5py
import numpy as np
import tf_keras

from maskx_tf.errors import UserError
from maskx_tf.layers.backbone import EPSILON
from maskx_tf.weights import caffe2, pickles, torch_files
from maskx_tf.weights.blobs import Blobs, Rule

KERAS_EPSILON = 1.001e-5
_KERAS_URL = "https://storage.googleapis.com/tensorflow/keras-applications/resnet"


class ImageNetResNet(NamedTuple):
    """What a file holds of a bottleneck ResNet.

    Attributes:
      blobs: its arrays.
      blocks: how many blocks it has in each of the stages 2 to 5.
      rules: for all variables of our backbone; where the depths differ they name absent blobs.
      options: of `Config` that it needs, as far as the file itself tells.
      is_folded: whether batch statistics are part of scale and offset.
    """

    blobs: Blobs
    blocks: tuple[int, ...]
    rules: caffe2.Rules
    options: Mapping[str, Any] = MappingProxyType({})
    is_folded: bool = False


def read_keras(path: str, backbone: str) -> ImageNetResNet:
    """Reads a weights file (.h5) of tf_keras.applications, with or without the top.

    Args:
      path: the file.
      backbone: `resnet50` or `resnet101`, ours.

    Raises:
      UserError: the file is damaged or holds something else.
    """
    return _keras_resnet(path, _hdf5_arrays(path), backbone)


def download_keras(path: str, backbone: str) -> ImageNetResNet:
    """As `read_keras`, of what tf_keras downloads; UserError if it cannot. `path` is for errors."""
    build = {
        "resnet50": tf_keras.applications.ResNet50,
        "resnet101": tf_keras.applications.ResNet101,
    }
    try:
        network = build[backbone](weights="imagenet", include_top=False)
    except Exception as error:  # tf_keras raises a bare Exception where the download fails
        name = f"{backbone}_weights_tf_dim_ordering_tf_kernels_notop.h5"
        raise UserError(
            f"--backbone_weights={path}: {' '.join(str(error).split())}; fetch "
            f"{_KERAS_URL}/{name} elsewhere and give the file as --backbone_weights={name}."
        ) from None
    arrays = {
        f"{layer.name}/{_last(variable.name)}": variable.numpy()
        for layer in network.layers
        for variable in layer.weights
    }
    return _keras_resnet(path, arrays, backbone)


def read_detectron(path: str, backbone: str) -> ImageNetResNet:
    """Reads a pickle of Caffe2 blobs, flat or under `model`: Detectron's R-50.pkl and R-101.pkl.

    The convolution biases that such a file has are left over from Caffe: Detectron has none.

    Args:
      path: the file.
      backbone: `resnet50` or `resnet101`, ours.

    Raises:
      UserError: the file is damaged or holds something else.
    """
    content = pickles.load(path)
    if "blobs" in content:
        raise UserError(
            f"--backbone_weights={path} holds a whole detector; convert it with "
            "`maskx weights detectron` and give that as --init_checkpoint."
        )
    content = content.get("model", content)
    blobs = Blobs(content if isinstance(content, dict) else {}, f"--backbone_weights={path}")
    blocks = _blocks(blobs, caffe2.BLOCK, "conv1_w")
    return ImageNetResNet(blobs, blocks, caffe2.backbone_rules(backbone), is_folded=True)


def read_torchvision(path: str, backbone: str) -> ImageNetResNet:
    """Reads the state_dict of a ResNet of torchvision or timm, see `torch_files.read`.

    Args:
      path: the file.
      backbone: `resnet50` or `resnet101`, ours.

    Raises:
      UserError: the file is damaged or holds something else.
    """
    blobs = Blobs(torch_files.read(path), f"--backbone_weights={path}")
    blocks = _blocks(blobs, r"layer([1-4])\.(\d+)\.conv3\.weight", "conv1.weight", "1234")
    rules = torch_rules("", backbone)
    widths = {
        "backbone_width": blobs.shape("layer1.0.conv1.weight")[0],
        "backbone_stem_width": blobs.shape("conv1.weight")[0],
    }
    return ImageNetResNet(blobs, blocks, rules, options=widths)


def torch_rules(prefix: str, backbone: str) -> caffe2.Rules:
    """Rules for torchvision's ResNet, whose names begin with `prefix`; its epsilon is ours."""
    rules: caffe2.Rules = {}
    names = {"stem": ("conv1", "bn1")}
    for stage, block, part in caffe2.places(backbone):
        layer = f"layer{stage - 1}.{block}"
        names[f"res{stage}_{block}/{part}"] = (
            (f"{layer}.downsample.0", f"{layer}.downsample.1")
            if part == "shortcut"
            else (f"{layer}.{part}", f"{layer}.bn{part[-1]}")
        )
    for ours, (conv, norm) in names.items():
        rules |= {f"backbone/{ours}/conv/kernel": Rule((f"{prefix}{conv}.weight",), caffe2.hwio)}
        rules |= {
            f"backbone/{ours}/norm/{name}": Rule((f"{prefix}{norm}.{theirs}",), np.asarray)
            for name, theirs in {
                "gamma": "weight",
                "beta": "bias",
                "moving_mean": "running_mean",
                "moving_variance": "running_var",
            }.items()
        }
    return rules


def keras_rules(ours: str, conv: str, norm: str, blobs: Blobs, epsilon: float) -> caffe2.Rules:
    """Rules for a convolution and its batch normalisation, stored as Keras layers.

    A bias, which our convolutions have not, goes into the moving mean; the difference between
    `epsilon` and ours goes into the moving variance.
    """
    mean = Rule((f"{norm}/moving_mean",), np.asarray)
    if f"{conv}/bias" in blobs:
        mean = Rule((f"{norm}/moving_mean", f"{conv}/bias"), np.subtract)
    return {
        f"backbone/{ours}/conv/kernel": Rule((f"{conv}/kernel",), np.asarray),
        f"backbone/{ours}/norm/gamma": Rule((f"{norm}/gamma",), np.asarray),
        f"backbone/{ours}/norm/beta": Rule((f"{norm}/beta",), np.asarray),
        f"backbone/{ours}/norm/moving_mean": mean,
        f"backbone/{ours}/norm/moving_variance": Rule(
            (f"{norm}/moving_variance",), lambda variance: variance + (epsilon - EPSILON)
        ),
    }


def _keras_resnet(path: str, arrays: dict[str, np.ndarray], backbone: str) -> ImageNetResNet:
    blobs = Blobs(arrays, f"--backbone_weights={path}")
    blocks = _blocks(blobs, r"conv([2-5])_block(\d+)_1_conv/kernel", "conv1_conv/kernel")
    rules = keras_rules("stem", "conv1_conv", "conv1_bn", blobs, KERAS_EPSILON)
    for stage, block, part in caffe2.places(backbone):
        number = 0 if part == "shortcut" else part[-1]
        name = f"conv{stage}_block{block + 1}_{number}"
        ours = f"res{stage}_{block}/{part}"
        rules |= keras_rules(ours, f"{name}_conv", f"{name}_bn", blobs, KERAS_EPSILON)
    return ImageNetResNet(blobs, blocks, rules)


def _hdf5_arrays(path: str) -> dict[str, np.ndarray]:
    """{layer/weight: array} of a weights file, or of a whole model in one."""
    arrays: dict[str, np.ndarray] = {}

    def collect(name: str, item: h5py.HLObject) -> None:
        if isinstance(item, h5py.Dataset):
            arrays[f"{name.split('/')[0]}/{_last(name)}"] = item[()]

    try:
        with h5py.File(path, "r") as file:
            file.get("model_weights", file).visititems(collect)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"--backbone_weights={path} cannot be read as HDF5 ({error}); download it again."
        ) from None
    return arrays


def _last(name: str) -> str:
    """`conv1_conv/kernel:0` -> `kernel`."""
    return name.split("/")[-1].split(":")[0]


def _blocks(blobs: Blobs, pattern: str, stem: str, stages: str = "2345") -> tuple[int, ...]:
    """Blocks of each stage, see `caffe2.count_blocks`; UserError that names `stem` without any."""
    counts = caffe2.count_blocks(blobs.arrays, pattern, stages)
    if not any(counts):
        raise UserError(
            f"{blobs.source} has no resnet50 or resnet101 under the expected names ({stem}, …); it "
            f"has {', '.join(sorted(blobs.arrays)[:4]) or 'no arrays'}."
        )
    return counts
