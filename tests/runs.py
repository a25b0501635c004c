"""Short training runs on a few images of Shapes."""

import contextlib
import io
import pathlib

import tensorflow as tf

from maskx_tf import training
from maskx_tf.config import Config
from tests import batches
from tf_records.shapes import dataset as shapes
from tf_records.shapes.objects import SceneOptions

BOX_LOSSES = ("rpn_score", "rpn_box", "class", "box")
LOSSES = {
    "end_to_end": (*BOX_LOSSES, "mask"),
    "stage1_boxes": BOX_LOSSES,
    "stage2_masks": ("mask",),
}


def write_data(directory: pathlib.Path) -> None:
    """Records of 8 training and 3 validation images, 64 x 64, with Shapes' 72 classes."""
    options = SceneOptions(image_size=64, side=(20, 36))
    shapes.generate(str(directory), train_images=8, val_images=3, workers=1, options=options)


def config(data: pathlib.Path, model_dir: pathlib.Path, **changes) -> Config:
    """The options of a run on what `write_data` wrote, without evaluation."""
    options = {
        "model_dir": str(model_dir),
        "train_records": (str(data / "records" / "train"),),
        "mask_classes": str(data / "set_a.txt"),
        "pixel_std": (57.0, 57.0, 57.0),
        "num_gpus": 0,
        "learning_rate": 0.01,
        "checkpoint_interval": 2,
        "summary_interval": 2,
        "panel_images": 0,
    }
    return batches.tiny_config(**options | changes)


def train(options: Config) -> str:
    """stderr of a run without evaluation."""
    stream = io.StringIO()
    with contextlib.redirect_stderr(stream):
        assert training.train(options) == {}
    return stream.getvalue()


def toy_losses(model, features, labels, seed) -> dict:
    """In place of `objective.training_losses`: only pulls the weights to 0."""
    squares = tf.add_n([tf.nn.l2_loss(variable) for variable in model.trainable_variables])
    return {name: (squares, tf.constant(1.0)) for name in LOSSES[model.config.mode]}
