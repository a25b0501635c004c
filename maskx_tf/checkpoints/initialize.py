"""Starting from another run's weights: by name and shape, class rows by class name."""

import re
import sys

import numpy as np
import tensorflow as tf

from maskx_tf import config as config_lib
from maskx_tf.checkpoints.model_dir import EMBEDDINGS, load_model
from maskx_tf.config import Config
from maskx_tf.data.classes import Vocabulary
from maskx_tf.errors import UserError, first_of
from maskx_tf.model import MaskXRCNN, is_of_masks, variable_key

# Variables with one row for each class, background first.
CLASS_ROWS = (
    "box_head/cls_kernel",
    "box_head/cls_bias",
    "box_head/box_kernel",
    "box_head/box_bias",
    "box_head/box_cls_kernel",
    "box_head/box_cls_bias",
)
MASK_ROWS = (
    "mask_weights/kernel",
    "mask_weights/bias",
    "semantic_weights/kernel",
    "semantic_weights/bias",
)


def initialize(model: MaskXRCNN, vocabulary: Vocabulary, path: str) -> str:
    """Takes over the weights of another run: variables by name and shape, class rows by class name.

    Args:
      model: the new model, built.
      vocabulary: of the new model.
      path: model directory or checkpoint of the other run.

    Returns:
      What was matched, new and dropped, in a few lines.

    Raises:
      UserError: the detector is to stay as it is (mode=stage2_masks), under options with which its
        weights mean something else.
    """
    source = load_model(path)
    _check_detector(source.config, model.config, path)
    source_rows = {"": 0} | {name: c for c, name in enumerate(source.vocabulary.names, start=1)}
    target_names = ("", *vocabulary.names)
    known = np.array([c for c, name in enumerate(target_names) if name in source_rows])
    rows = np.array([source_rows[target_names[c]] for c in known])
    values = {
        variable_key(v): v
        for v in source.model.weights
        if variable_key(v) != EMBEDDINGS
        and (source.has_masks or not is_of_masks(v))  # else the draw of another seed
    }
    outputs = {source.config.mask_output, model.config.mask_output}
    matched, new = [], []
    for variable in (v for v in model.weights if variable_key(v) != EMBEDDINGS):
        other = values.pop(variable_key(variable), None)
        if other is not None and _same_class_rows(variable, other, outputs == {"class_specific"}):
            value = variable.numpy()
            value[known] = other.numpy()[rows]
            variable.assign(value)
        elif other is not None and other.shape == variable.shape:
            variable.assign(other)
        else:
            new.append(variable_key(variable))
            continue
        matched.append(variable_key(variable))
    new_classes = [name for name in vocabulary.names if name not in source_rows]
    dropped_classes = [n for n in source.vocabulary.names if n not in vocabulary.names]
    lines = [
        f"Initialised from {path}: {len(matched)} variables taken over, {len(new)} new.",
        _listing("  new variables", new),
        _listing("  dropped variables", list(values)),
        _listing("  new classes", new_classes),
        _listing("  dropped classes", dropped_classes),
    ]
    return "\n".join(line for line in lines if line)


def _check_detector(source: Config, target: Config, path: str) -> None:
    """Compares the options of the detector: UserError in stage 2, else a warning on stderr."""

    def meaning(config: Config, name: str):
        value = getattr(config, name)
        # The kinds of batch norm are one map where nothing is trained.
        return value.removeprefix("frozen_").removeprefix("sync_") if "norm" in name else value

    differences = [
        config_lib.difference(name, source, target)
        for name in config_lib.names(scope="detector")
        if meaning(source, name) != meaning(target, name)
    ]
    if not differences:
        return
    text = f"{path} was trained with other options ({'; '.join(differences)})"
    if target.mode == "stage2_masks":
        raise UserError(f"--init_checkpoint={text}; its frozen detector needs those.")
    print(
        f"warning: {text}; its weights mean something different with the present ones.",
        file=sys.stderr,
    )


def _same_class_rows(variable: tf.Variable, other: tf.Variable, class_specific: bool) -> bool:
    rows = CLASS_ROWS + MASK_ROWS if class_specific else CLASS_ROWS
    key = re.sub(r"^box_head_\d+/", "box_head/", variable_key(variable))  # of any stage
    return key in rows and other.shape[1:] == variable.shape[1:]


def _listing(title: str, items: list[str]) -> str:
    return f"{title} ({len(items)}): {first_of(items)}" if items else ""
