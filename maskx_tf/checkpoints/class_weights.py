"""The class weights w_det of a checkpoint, without a model: what T takes of each class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from maskx_tf.checkpoints.model_dir import latest_checkpoint
from maskx_tf.errors import UserError
from maskx_tf.layers.box_head import box_head_name
from maskx_tf.system.literal_paths import literal

KINDS = ("cls", "box", "cls+box")
_KEY = "model/{}/{}_kernel/.ATTRIBUTES/VARIABLE_VALUE"


def read(path: str, kind: str = "cls+box") -> np.ndarray:
    """w_det of all classes, as `BoxHead.class_weights` gives them; of a cascade, the last head's.

    Args:
      path: a model directory, of which the last checkpoint is read, or a checkpoint.
      kind: one of `KINDS`.

    Returns:
      float32 [K, D] in the order of the vocabulary, without background.
    """
    reader = tf.train.load_checkpoint(literal(latest_checkpoint(path)))
    stage = 1
    while reader.has_tensor(_KEY.format(box_head_name(stage + 1), "cls")):
        stage += 1
    keys = [_KEY.format(box_head_name(stage), part) for part in kind.split("+")]
    rows = [reader.get_tensor(key)[1:] for key in keys]
    return np.concatenate([row.reshape(len(row), -1) for row in rows], axis=1)


def permuted(path: str, kind: str, class_ids: Sequence[int], seed: int) -> np.ndarray:
    """`read`, with the rows of some classes dealt out anew among them: none keeps its own.

    Raises:
      UserError: there is no checkpoint, or fewer than two classes.
    """
    if not path:
        raise UserError(
            "--transfer_embeddings=permuted_… takes the class weights of a trained detector: name "
            "it by --init_checkpoint=DIRECTORY."
        )
    weights = read(path, kind)
    rows, others = np.array(class_ids, int) - 1, deranged(len(class_ids), seed)
    weights[rows] = weights[rows[others]]
    return weights


def deranged(count: int, seed: int) -> np.ndarray:
    """A random order of `count` things, int [count], in which none is in its own place."""
    if count < 2:
        raise UserError(f"{count} class cannot be permuted; there must be two.")
    order = np.random.default_rng(seed).permutation(count)
    places = np.empty(count, int)
    places[order] = np.roll(order, 1)
    return places
