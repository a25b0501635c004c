"""Model directories: what a run leaves behind, loading it, and starting from another run's weights.

A model directory holds `train.flags` (the effective options), `vocabulary.json`,
`mask_classes.json` (the names of set A) and the checkpoints `ckpt-STEP`.
"""

import json
import pathlib
import sys
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from maskx_tf import config as config_lib
from maskx_tf import moving_average
from maskx_tf.config import Config
from maskx_tf.data.classes import Vocabulary, read_names
from maskx_tf.data.files import require_writable, write_atomically
from maskx_tf.errors import UserError, first_of
from maskx_tf.model import MaskXRCNN, build_model, variable_key
from maskx_tf.modes import MASK_PARTS

VOCABULARY = "vocabulary.json"
MASK_CLASSES = "mask_classes.json"
_OLD_MASK_CLASSES = "mask_classes.txt"  # of earlier runs: a name a line, some names did not fit
# Variables with one row for each class, background first.
CLASS_ROWS = (
    "box_head/cls_kernel",
    "box_head/cls_bias",
    "box_head/box_kernel",
    "box_head/box_bias",
)
MASK_ROWS = ("mask_weights/kernel", "mask_weights/bias")
# Options without which a detector's weights mean something else.
DETECTOR = (
    *("channel_order", "pixel_mean", "pixel_std", "conventions"),
    *("backbone", "backbone_width", "stride_on", "backbone_padding", "normalization"),
    *("fpn_filters", "min_level", "max_level"),
    *("anchor_size", "anchor_ratios", "anchor_offset", "rpn_filters"),
    *("roi_canonical_size", "box_roi_size", "box_fc_units"),
)
EMBEDDINGS = "embeddings"  # come from a file in the vocabulary's order, never from another run


class LoadedModel(NamedTuple):
    """A model with what is needed to use it."""

    model: MaskXRCNN
    config: Config
    vocabulary: Vocabulary
    mask_class_ids: tuple[int, ...]

    @property
    def has_masks(self) -> bool:
        """False of a run of stage 1 and an imported Faster R-CNN: nothing trained a mask head."""
        return self.config.has_masks


def require_masks(loaded: LoadedModel, path: str) -> None:
    """UserError if a model has boxes only; `path` is where it was loaded from."""
    if not loaded.has_masks:
        raise UserError(
            f"{path} detects boxes only (--mode=stage1_boxes): its mask head was never trained. "
            f"Train one on top of it (python -m maskx_tf.train --mode=stage2_masks "
            f"--init_checkpoint={path} …), or take a model with masks."
        )


def check_vocabulary(model_dir: str, vocabulary: Vocabulary) -> None:
    """UserError if the directory holds a run with another vocabulary."""
    path = pathlib.Path(model_dir) / VOCABULARY
    if not path.is_file():
        return
    existing = Vocabulary.load(str(path))
    if existing.names != vocabulary.names:
        raise UserError(
            f"{model_dir} holds a run on another vocabulary ({existing.num_classes} classes, "
            f"now {vocabulary.num_classes}); choose another --model_dir, and to start from its "
            f"weights pass it as --init_checkpoint."
        )


def save_run(config: Config, vocabulary: Vocabulary, mask_class_ids: tuple[int, ...]) -> None:
    """Writes the options, the vocabulary and set A into the model directory.

    Raises:
      UserError: the directory holds a run with another vocabulary.
    """
    check_vocabulary(config.model_dir, vocabulary)
    directory = pathlib.Path(config.model_dir)
    config_lib.save(config, config.model_dir)
    vocabulary.save(str(directory / VOCABULARY))
    names = [vocabulary.names[c - 1] for c in mask_class_ids]
    write_atomically(directory / MASK_CLASSES, json.dumps(names, indent=1) + "\n")
    (directory / _OLD_MASK_CLASSES).unlink(missing_ok=True)


def check_new(output_dir: str) -> None:
    """Refuses a directory for a new model before there is one: UserError if it cannot take it."""
    if tf.train.latest_checkpoint(output_dir):
        raise UserError(f"--output_dir={output_dir} holds a model already; name another directory.")
    require_writable(output_dir, f"--output_dir={output_dir}")


def save_new(loaded: LoadedModel, output_dir: str) -> None:
    """Writes a model directory with one checkpoint, of step 0; UserError if there is a model."""
    check_new(output_dir)
    config = loaded.config.replace(model_dir=output_dir)
    save_run(config, loaded.vocabulary, loaded.mask_class_ids)
    checkpoint = tf.train.Checkpoint(model=loaded.model)
    manager = tf.train.CheckpointManager(checkpoint, output_dir, max_to_keep=1)
    manager.save(checkpoint_number=0)


def latest_checkpoint(path: str) -> str:
    """The checkpoint that a model directory or a checkpoint prefix means; UserError if none."""
    if tf.io.gfile.exists(f"{path}.index"):
        return path
    checkpoint = tf.train.latest_checkpoint(path)
    if checkpoint is None:
        raise UserError(
            f"{path} holds no checkpoint; give a model directory or a ckpt-STEP in one."
        )
    return checkpoint


def load_model(path: str) -> LoadedModel:
    """Loads a model from a model directory (its latest checkpoint) or from one checkpoint in it.

    Its precision is float32, whatever it was trained in: so are the weights. Of a run with
    `ema_decay` it has the averaged weights.
    """
    checkpoint = latest_checkpoint(path)
    directory = pathlib.Path(checkpoint).parent
    config = config_lib.load(str(directory)).replace(precision="float32")
    vocabulary = Vocabulary.load(str(directory / VOCABULARY))
    mask_class_ids = load_set_a(directory, vocabulary)
    model = build_model(config, vocabulary.num_classes, _embedding_shape(checkpoint))
    restore(tf.train.Checkpoint(model=model), checkpoint).expect_partial()
    if moving_average.is_in(checkpoint):
        restore(moving_average.reader(model), checkpoint).expect_partial()
    return LoadedModel(model, config, vocabulary, mask_class_ids)


def load_set_a(directory: pathlib.Path, vocabulary: Vocabulary) -> tuple[int, ...]:
    """The ids of set A that a model directory keeps; UserError if it has none."""
    path = directory / MASK_CLASSES
    if not path.is_file():
        return tuple(sorted(vocabulary.ids_of(read_names(directory / _OLD_MASK_CLASSES))))
    try:
        return tuple(sorted(vocabulary.ids_of(json.loads(path.read_bytes()))))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is not a list of class names: {error}.") from None


def _embedding_shape(checkpoint: str) -> np.ndarray | None:
    """Zeros [K, D] in place of the class embeddings of a checkpoint; None if it has none."""
    shapes = tf.train.load_checkpoint(checkpoint).get_variable_to_shape_map()
    shape = shapes.get(f"model/{EMBEDDINGS}/.ATTRIBUTES/VARIABLE_VALUE")
    return np.zeros([shape[0] - 1, shape[1]]) if shape else None


def restore(checkpoint: tf.train.Checkpoint, path: str):
    """Restores every object from a checkpoint; UserError where it does not fit the model."""
    try:
        return checkpoint.restore(path).assert_existing_objects_matched()
    except (IndexError, tf.errors.DataLossError) as error:
        raise UserError(f"checkpoint {path} is damaged ({error}); take an earlier one.") from None
    except (ValueError, AssertionError, tf.errors.OpError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"checkpoint {path} does not fit the model of this configuration ({reason}); use the "
            f"flags it was trained with, or pass it as --init_checkpoint to take over what fits."
        ) from None


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
    untrained = () if source.has_masks else MASK_PARTS  # the draw of another seed
    values = {
        variable_key(v): v
        for v in source.model.weights
        if variable_key(v) != EMBEDDINGS and variable_key(v).split("/")[0] not in untrained
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
    """Compares the options `DETECTOR`: UserError in stage 2, otherwise a warning on stderr."""

    def value(config: Config, name: str):
        found = getattr(config, name)
        # The kinds of batch norm are one map where nothing is trained.
        return found.removeprefix("frozen_").removeprefix("sync_") if "norm" in name else found

    found = [
        config_lib.difference(name, source, target)
        for name in DETECTOR
        if value(source, name) != value(target, name)
    ]
    if not found:
        return
    text = f"{path} was trained with other options ({'; '.join(found)})"
    if target.mode == "stage2_masks":
        raise UserError(f"--init_checkpoint={text}; its frozen detector needs those.")
    print(
        f"warning: {text}; its weights mean something different with the present ones.",
        file=sys.stderr,
    )


def _same_class_rows(variable: tf.Variable, other: tf.Variable, class_specific: bool) -> bool:
    rows = CLASS_ROWS + MASK_ROWS if class_specific else CLASS_ROWS
    return variable_key(variable) in rows and other.shape[1:] == variable.shape[1:]


def _listing(title: str, items: list[str]) -> str:
    return f"{title} ({len(items)}): {first_of(items)}" if items else ""
