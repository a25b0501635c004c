"""Model directories: what a run leaves behind, and loading it.

A model directory holds `train.flags` (the effective options), `vocabulary.json`,
`mask_classes.json` (the names of set A) and the checkpoints `ckpt-STEP`.
"""

import json
import os
import pathlib
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from maskx_tf import config as config_lib
from maskx_tf.assembly import build_model
from maskx_tf.checkpoints.listing import latest, resolved
from maskx_tf.config import Config
from maskx_tf.data.classes import Vocabulary, read_names
from maskx_tf.errors import UserError
from maskx_tf.model import MaskXRCNN, trained_variables, variable_key
from maskx_tf.system.files import require_writable, write_atomically
from maskx_tf.system.literal_paths import literal

VOCABULARY = "vocabulary.json"
MASK_CLASSES = "mask_classes.json"
_OLD_MASK_CLASSES = "mask_classes.txt"  # of earlier runs: a name a line, some names did not fit
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
            f"Train one on top of it (maskx train --mode=stage2_masks "
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
    names = vocabulary.names_of(mask_class_ids)
    write_atomically(directory / MASK_CLASSES, json.dumps(names, indent=1) + "\n")
    (directory / _OLD_MASK_CLASSES).unlink(missing_ok=True)


def check_new(output_dir: str) -> None:
    """Refuses a directory for a new model before there is one: UserError if it cannot take it."""
    if latest(output_dir):
        raise UserError(f"--output_dir={output_dir} holds a model already; name another directory.")
    require_writable(output_dir, f"--output_dir={output_dir}")


def save_new(loaded: LoadedModel, output_dir: str) -> None:
    """Writes a model directory with one checkpoint, of step 0; UserError if there is a model."""
    check_new(output_dir)
    config = loaded.config.replace(model_dir=output_dir)
    save_run(config, loaded.vocabulary, loaded.mask_class_ids)
    checkpoint = tf.train.Checkpoint(model=loaded.model)
    manager = tf.train.CheckpointManager(checkpoint, literal(output_dir), max_to_keep=1)
    manager.save(checkpoint_number=0)


def latest_checkpoint(path: str) -> str:
    """The checkpoint that a model directory, a prefix or RUN@best means; UserError if none."""
    path = resolved(path)
    if tf.io.gfile.exists(f"{path}.index"):
        return path
    checkpoint = latest(path)
    if checkpoint is None:
        raise UserError(
            f"{path} holds no checkpoint; give a model directory, a ckpt-STEP in one, or RUN@best "
            "of a run with --keep_best."
        )
    return checkpoint


def load_model(path: str) -> LoadedModel:
    """Loads a model from a model directory (its latest checkpoint), RUN@best or a checkpoint.

    Its precision is float32, whatever it was trained in: so are the weights. Of a run with
    `ema_decay` it has the averaged weights.
    """
    return load_latest(path)[1]


def load_latest(path: str) -> tuple[str, LoadedModel]:
    """The checkpoint that a path means, and its model; a later one if training removed the first.

    Raises:
      UserError: there is none, it cannot be read, or the one that the path names is gone.
    """
    checkpoint = latest_checkpoint(path)
    path = resolved(path)
    while True:
        try:
            return checkpoint, _load(checkpoint)
        except UserError:
            if os.path.lexists(f"{checkpoint}.index"):
                raise
        gone, checkpoint = checkpoint, latest(path) or ""
        if checkpoint in ("", gone):
            raise UserError(
                f"checkpoint {gone} is gone: a training keeps only its last ones "
                "(--keep_checkpoints); name the directory or another."
            )


def _load(checkpoint: str) -> LoadedModel:
    directory = pathlib.Path(checkpoint).parent
    config = config_lib.load(str(directory)).replace(precision="float32")
    vocabulary = Vocabulary.load(str(directory / VOCABULARY))
    mask_class_ids = load_set_a(directory, vocabulary)
    model = build_model(config, vocabulary.num_classes, _embedding_shape(checkpoint))
    restore(tf.train.Checkpoint(model=model), checkpoint).expect_partial()
    if holds_averages(checkpoint):
        restore(averages_reader(model), checkpoint).expect_partial()
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
    shapes = _shapes(checkpoint)
    shape = shapes.get(f"model/{EMBEDDINGS}/.ATTRIBUTES/VARIABLE_VALUE")
    return np.zeros([shape[0] - 1, shape[1]]) if shape else None


def _shapes(checkpoint: str) -> dict[str, list[int]]:
    """The shapes of a checkpoint's values; UserError if it cannot be read."""
    try:
        return tf.train.load_checkpoint(literal(checkpoint)).get_variable_to_shape_map()
    except (tf.errors.OpError, IndexError, RuntimeError, ValueError) as error:
        raise UserError(f"checkpoint {checkpoint} cannot be read ({_reason(error)}).") from None


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def restore(checkpoint: tf.train.Checkpoint, path: str):
    """Restores every object from a checkpoint; UserError where it does not fit the model."""
    try:
        return checkpoint.restore(literal(path)).assert_existing_objects_matched()
    except (IndexError, tf.errors.DataLossError) as error:
        raise UserError(f"checkpoint {path} is damaged ({error}); take an earlier one.") from None
    except (ValueError, AssertionError, tf.errors.OpError) as error:
        raise UserError(
            f"checkpoint {path} does not fit the model of this configuration "
            f"({_reason(error)}); use the flags it was trained with, or pass it as "
            "--init_checkpoint to take over what fits."
        ) from None


def averages_reader(model: MaskXRCNN) -> tf.train.Checkpoint:
    """What restores the averages of a run's checkpoint into the model's own weights."""
    values = {variable_key(v): v for v in trained_variables(model)}
    return tf.train.Checkpoint(average=tf.train.Checkpoint(values=values))


def holds_averages(checkpoint: str) -> bool:
    """Whether a checkpoint holds averages."""
    return any(name.startswith("average/") for name in _shapes(checkpoint))
