"""A training loop of your own on images of your own, to copy: `python examples/plain_train.py`.

It draws discs and squares, red and blue, and trains a small Mask^X R-CNN on them, in a minute on a
CPU. Blue discs have boxes but no masks: theirs come from the weights that T predicts for the class.
`maskx_tf.training.train(config, dataset)` takes the same dataset and adds what a long run needs:
checkpoints, resuming, several devices, evaluation, logs, a halt at the first bad step.
"""

import sys

import numpy as np
import tensorflow as tf

from maskx_tf.assembly import build_model
from maskx_tf.checkpoints import LoadedModel, save_new
from maskx_tf.config import Config
from maskx_tf.data.classes import Vocabulary
from maskx_tf.model import trained_variables
from maskx_tf.objective import training_losses
from maskx_tf.training.optimizer import build_optimizer

CLASSES = ["red disc", "red square", "blue disc", "blue square"]
WITH_MASKS = (1, 2, 4)  # set A, ids from 1
BATCH, SIDE, OBJECTS, MASK = 4, 64, 3, 28
OPTIONS = {
    **{"backbone": "small", "backbone_width": 16, "fpn_filters": 32, "rpn_filters": 32},
    **{"max_level": 5, "normalization": "batch_norm", "frozen_stages": 0, "box_fc_units": 64},
    **{"roi_canonical_size": 56.0, "roi_batch_size": 64, "mask_filters": 32, "mask_convs": 2},
    **{"mask_mlp": False, "pixel_std": (57.0, 57.0, 57.0), "batch_size": BATCH},
    **{"image_min_side": SIDE, "image_max_side": SIDE, "optimizer": "adamw"},
    **{"learning_rate": 0.002, "warmup_steps": 10, "lr_steps": (250,)},
}


def draw(rng: np.random.Generator) -> tuple[dict, dict]:
    """An image and its objects; maskx_tf.data.batch says what is what, with a batch axis."""
    image = rng.integers(90, 120, (SIDE, SIDE, 3)).astype(np.uint8)
    classes = rng.integers(1, len(CLASSES) + 1, OBJECTS).astype(np.int32)
    boxes, masks = np.zeros([OBJECTS, 4], np.float32), np.ones([OBJECTS, MASK, MASK], np.uint8)
    for i, name in enumerate(CLASSES[class_id - 1] for class_id in classes):
        size = rng.integers(14, 28)
        y, x = rng.integers(0, SIDE - size, 2)
        boxes[i] = y, x, y + size, x + size
        if "disc" in name:
            masks[i] = np.hypot(*np.mgrid[-1 : 1 : MASK * 1j, -1 : 1 : MASK * 1j]) <= 1
        cells = np.arange(size) * MASK // size  # the mask is stretched over its box
        color = [220, 0, 0] if "red" in name else [0, 0, 220]
        image[y : y + size, x : x + size][masks[i][cells][:, cells] == 1] = color
    labels = {"boxes_yxyx": boxes, "classes": classes, "is_crowd": np.zeros(OBJECTS, bool)}
    labels |= {"has_mask": np.isin(classes, WITH_MASKS), "masks": masks}
    return {"image": image, "image_size": np.float32([SIDE, SIDE])}, labels


def main(model_dir: str = "runs/plain_train", steps: str = "300") -> None:
    """Trains and writes a model directory, which every command of maskx_tf reads."""
    config = Config(**OPTIONS, train_steps=int(steps))
    rng = np.random.default_rng(config.seed)
    drawn = (draw(rng) for _ in range(BATCH * config.train_steps))
    spec = tf.nest.map_structure(tf.type_spec_from_value, draw(rng))
    images = tf.data.Dataset.from_generator(lambda: drawn, output_signature=spec)
    model = build_model(config, len(CLASSES))
    optimizer, trained = build_optimizer(config), trained_variables(model)
    optimizer.build(trained)

    @tf.function(autograph=False)
    def train_step(features: dict, labels: dict, seed: tf.Tensor) -> dict[str, tf.Tensor]:
        with tf.GradientTape() as tape:
            losses = training_losses(model, features, labels, seed)
            total = tf.add_n([value for value, _ in losses.values()])
        optimizer.apply_gradients(zip(tape.gradient(total, trained), trained, strict=True))
        return {"loss": total} | {name: value for name, (value, _) in losses.items()}

    for step, batch in enumerate(images.batch(BATCH), start=1):
        losses = train_step(*batch, tf.constant([config.seed, step]))
        if step == 1 or step % 20 == 0:
            print(f"step {step}", *(f"{name} {value:.3f}" for name, value in losses.items()))
    save_new(LoadedModel(model, config, Vocabulary.from_names(CLASSES), WITH_MASKS), model_dir)
    print(f"python -m maskx_tf.predict --model_dir={model_dir} --images=… --output_dir=…")


if __name__ == "__main__":
    main(*sys.argv[1:])
