"""How long a training step takes, and what memory, beside Model Garden's Mask R-CNN.

    python -m benchmarks.training --sizes=800x1344 --classes=80 --memory

R-50-FPN as published (stem, stage 2 and batch norm frozen, 512 RoIs an image, SGD with momentum),
random weights, two images a batch; the input is ready in memory. An image has 128 objects, whose
boxes are proposals too, so that both train the most masks they may, 128, as with a trained RPN.
Ours matches anchors within the step, Model Garden in its input pipeline, which is not measured. The
steps run in turns in one process.
"""

import numpy as np
import tensorflow as tf
from absl import flags

from benchmarks import cases, models, peers, timing
from maskx_tf.system import cli
from maskx_tf.training.devices import make_strategy
from maskx_tf.training.optimizer import build_optimizer
from maskx_tf.training.steps import Trainer

OBJECTS, MASK_SIDE = 128, 112
PEER = "Model Garden"
OURS = {
    "maskx_tf": {},
    "maskx_tf, direct convolutions": {"convolutions": "direct"},
    "maskx_tf, stage 2": {"mode": "stage2_masks"},
}


def random_batch(batch: int, height: int, width: int, num_classes: int):
    """Noise uint8 [B, H, W, 3], and for each image boxes, classes and masks of its objects."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, [batch, height, width, 3], np.uint8)
    objects = []
    for _ in range(batch):
        sides = rng.uniform(20, min(height, width) / 2, [OBJECTS, 2])
        corners = rng.uniform(0, 1, [OBJECTS, 2]) * ([height, width] - sides)
        masks = rng.uniform(0, 1, [OBJECTS, MASK_SIDE, MASK_SIDE]) < 0.5
        objects.append(
            {
                "boxes_yxyx": np.concatenate([corners, corners + sides], 1).astype(np.float32),
                "classes": rng.integers(1, num_classes + 1, [OBJECTS]).astype(np.int32),
                "masks": masks.astype(np.float32),
            }
        )
    return images, objects


def ours(changes: dict, batch: int, height: int, width: int, num_classes: int):
    """A run of our training step, with some options changed."""
    config = models.configuration(
        height,
        width,
        batch_size=batch,
        max_objects=OBJECTS,
        mask_crop_size=MASK_SIDE,
        learning_rate=1e-6,
        **changes,
    )
    strategy = make_strategy(0, None)
    images, objects = random_batch(batch, height, width, num_classes)
    stacked = {key: np.stack([o[key] for o in objects]) for key in objects[0]}
    features = {
        "image": images,
        "image_size": np.full([batch, 2], [height, width], np.float32),
    }
    labels = {
        "boxes_yxyx": stacked["boxes_yxyx"],
        "classes": stacked["classes"],
        "is_crowd": np.zeros([batch, OBJECTS], bool),
        "has_mask": np.ones([batch, OBJECTS], bool),
        "masks": stacked["masks"].astype(np.uint8),
    }
    dataset = tf.data.Dataset.from_tensors((features, labels)).repeat()
    with strategy.scope():
        model, optimizer = models.random_model(config, num_classes), build_optimizer(config)
    trainer = Trainer(model, optimizer, dataset, strategy)
    trainer.train_loop_begin()
    iterator = iter(dataset)
    return lambda: trainer.train_step(iterator)


def peer(batch: int, height: int, width: int, num_classes: int):
    """A run of Model Garden's training step, on the images padded to its canvas."""
    images, objects = random_batch(batch, height, width, num_classes)
    canvas = peers.config(num_classes, height, width).input_size
    padding = [[0, 0], [0, canvas[0] - height], [0, canvas[1] - width], [0, 0]]
    padded = np.pad(images, padding).astype(np.float32) / 255 - 0.5
    return peers.train_step(num_classes, padded, objects)


def compare(height: int, width: int, num_classes: int) -> None:
    values = flags.FLAGS
    arguments = values.batch_size, height, width, num_classes
    contenders = {name: ours(changes, *arguments) for name, changes in OURS.items()}
    contenders[PEER] = peer(*arguments)
    print(f"\n{height}x{width}, batch {values.batch_size}, {num_classes} classes", flush=True)
    print(timing.table(timing.in_turns(contenders, values.turns), PEER), flush=True)
    if values.memory:
        for name, changes in OURS.items():
            print(f"  peak memory of {name}: {timing.peak_mib(ours, changes, *arguments):,.0f} MiB")
        print(f"  peak memory of {PEER}: {timing.peak_mib(peer, *arguments):,.0f} MiB", flush=True)


if __name__ == "__main__":
    cases.define_flags()
    flags.DEFINE_integer("batch_size", 2, "Images per step.", lower_bound=1)
    flags.DEFINE_integer("turns", 5, "Turns of each contender.", lower_bound=1)
    flags.DEFINE_boolean("memory", False, "Also measure the memory of each, in new processes.")
    cli.run(lambda: cases.run(compare))
