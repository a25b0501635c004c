"""Imports the authors' Caffe2 models.

Example:
  maskx weights detectron --weights=model_final.pkl --output_dir=runs/imported

Mask R-CNN and Faster R-CNN with FPN, class-agnostic or not, and Mask^X R-CNN with any T, for any
number of classes. The model runs in Detectron's conventions (docs/weights.md).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import flags

from maskx_tf.errors import UserError
from maskx_tf.layers.box_head import DELTA_WEIGHTS
from maskx_tf.system import cli
from maskx_tf.weights import importing, pickles
from maskx_tf.weights.architecture import EMBEDDINGS
from maskx_tf.weights.blobs import Blobs
from maskx_tf.weights.caffe2 import YXYX
from maskx_tf.weights.importing import Imported

OPTIONS = {
    "conventions": "detectron",
    "nms_candidates": 10_000,  # Detectron has no such limit
}
BACKUP = "_jcvbackup"  # suffix of the rows of all classes in a file cut to COCO's for stage 2


def load(
    path: str,
    overrides: Mapping[str, Any] | None = None,
    *,
    embedding: str = "",
    restore_classes: bool = False,
) -> Imported:
    """The model of a pickle.

    Args:
      path: `{"blobs": {name: array}, "cfg": text}`, or the blobs alone.
      overrides: options of `Config`, such as vocabulary, mask_classes or transfer_activation.
      embedding: the blob of T's class embeddings, where the file holds several.
      restore_classes: take the box head's rows from the backup that the file holds, as after
        stage 2 of a model whose detector was cut to COCO's classes.

    Raises:
      UserError: the file is not a pickle of arrays, or not a model of a supported kind.
    """
    content = pickles.load(path)
    arrays = content.get("blobs", content)
    if not isinstance(arrays, dict):
        raise UserError(f"{path}: 'blobs' is not a dict of arrays; this is not a Detectron file.")
    blobs = Blobs(arrays, path)
    settings = content.get("cfg", "")
    settings = settings if isinstance(settings, str) else ""
    if restore_classes:
        _restore_classes(blobs)
    is_old = "MODEL:" in settings and "BBOX_REG_WEIGHTS" not in settings
    if is_old and "mask_fcn_logits_w_flat_w" not in blobs:  # T is younger than these weights
        _weigh_deltas(blobs)
    options = OPTIONS | _options_of(settings)
    return importing.build(blobs, options, overrides or {}, embedding=embedding, stale=_stale)


def _options_of(settings: str) -> dict[str, Any]:
    """What the training configuration tells beyond the blobs; it is searched, not interpreted."""
    found: dict[str, Any] = {}
    if re.search(r"\bUSE_LEAKYRELU: false", settings):
        found["transfer_activation"] = "relu"
    if re.search(r"\bSTOP_DET_W_GRAD: false", settings):
        found["transfer_stop_gradient"] = False
    if match := re.search(r"\bcoco_split_(voc|nonvoc)_2014_train", settings):
        found["mask_classes"] = match[1]
    return found


def _restore_classes(blobs: Blobs) -> None:
    for name in ("cls_score_w", "cls_score_b", "bbox_pred_w", "bbox_pred_b"):
        if name + BACKUP not in blobs:
            raise UserError(
                f"{blobs.source} has no {name + BACKUP}: there is nothing that --restore_classes "
                "could restore; leave it out."
            )
        blobs.swap(name, name + BACKUP)
        blobs.ignore([name + BACKUP], f"rows that --restore_classes replaces by those of *{BACKUP}")


def _weigh_deltas(blobs: Blobs) -> None:
    """Models older than the regression weights (10, 10, 5, 5) trained with (1, 1, 1, 1)."""
    for name in ("bbox_pred_w", "bbox_pred_b"):
        rows = blobs.arrays.get(name)
        if rows is not None and rows.shape[0] % 4 == 0:
            weights = np.array(DELTA_WEIGHTS, np.float32)[YXYX]
            factors = np.tile(weights, rows.shape[0] // 4)
            blobs.arrays[name] = rows * factors.reshape(-1, *[1] * (rows.ndim - 1))


def _stale(name: str) -> str:
    """Why a blob that the model has no use for is there all the same; "" if nobody knows."""
    if name.endswith("_momentum"):
        return "of the optimizer (*_momentum)"
    if name.endswith(BACKUP):
        return f"rows of classes left out (*{BACKUP}; --restore_classes takes them)"
    if name in ("fc1000_w", "fc1000_b"):
        return "of the ImageNet classifier (fc1000_*)"
    if name == "conv1_b" or re.fullmatch(r"res\d_\d+_branch\w+_b", name):
        return "biases of convolutions that Detectron does not use"
    if name in EMBEDDINGS:
        return "class embeddings that no T takes"
    if name in ("mask_fcn_logits_w", "mask_fcn_logits_b"):
        return "mask weights that T replaces"
    return ""


def define_flags() -> None:
    """Defines this command's flags."""
    importing.define_flags()
    flags.DEFINE_string("embedding", "", "Blob of T's class embeddings, if there are several.")
    flags.DEFINE_bool(
        "restore_classes", False, f"Take the rows of all classes from the *{BACKUP} blobs."
    )


def main() -> None:
    """Imports, prints the report."""
    values = flags.FLAGS
    importing.run(
        functools.partial(load, embedding=values.embedding, restore_classes=values.restore_classes)
    )


if __name__ == "__main__":
    define_flags()
    cli.run(main)
