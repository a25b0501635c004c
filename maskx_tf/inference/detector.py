"""A model ready to predict with, from a checkpoint or from an exported SavedModel alike."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable

import tensorflow as tf

from maskx_tf import checkpoints
from maskx_tf.data.classes import Vocabulary
from maskx_tf.errors import UserError
from maskx_tf.inference.module import DetectionModule


@dataclasses.dataclass(frozen=True)
class Detector:
    """A model ready to use.

    Attributes:
      detect: uint8 [1, H, W, 3] -> outputs as of `module.DetectionModule`; of a model without a
        trained mask head there are no `detection_masks`.
      vocabulary: its classes.
    """

    detect: Callable[[tf.Tensor], dict[str, tf.Tensor]]
    vocabulary: Vocabulary


def load_checkpoint(path: str) -> Detector:
    """A detector from a run's directory or one of its checkpoints."""
    loaded = checkpoints.load_model(path)
    model, config, vocabulary, mask_class_ids = loaded
    module = DetectionModule(model, config, vocabulary, mask_class_ids if loaded.has_masks else ())

    # A graph around the module's: what nothing is left to read, as masks here, is not computed.
    @tf.function(autograph=False, input_signature=module.detect_images.input_signature)
    def detect(images: tf.Tensor) -> dict[str, tf.Tensor]:
        outputs = dict(module.detect_images(images))
        if not loaded.has_masks:
            del outputs["detection_masks"]
        return outputs

    return Detector(detect, vocabulary)


def load_saved_model(path: str) -> Detector:
    """A detector from an export: OUTPUT_DIR (its latest version is taken) or OUTPUT_DIR/<version>.

    Raises:
      UserError: there is no SavedModel of this project.
    """
    versions = [int(p.name) for p in pathlib.Path(path).glob("*") if p.name.isdecimal()]
    directory = pathlib.Path(path) / str(max(versions)) if versions else pathlib.Path(path)
    classes = directory / "assets" / "classes.json"
    if not classes.is_file():
        raise UserError(
            f"--saved_model={path} is not an exported model: there is no {classes}; make one with "
            "python -m export.saved_model."
        )
    loaded = tf.saved_model.load(str(directory))
    # A signature does not keep its variables alive; the closure does, through `loaded`.
    return Detector(
        lambda images: loaded.signatures["image_tensor"](images=images), Vocabulary.load(classes)
    )
