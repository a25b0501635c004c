"""What FCIS costs by the number of classes: with T at K = 80 and 3,000, and as published at 80.

    python -m benchmarks.fcis

The mask head alone, from RoI features of 300 proposals, 21 x 21 x 256, and the box head's class
logits on: joint scores of all RoIs and the masks of 100 (`detection`), and a forward and a backward
pass of both losses over all (`training`). In float32, in turns in one process; peak memory is that
of new processes. As published, each class has 2 x 49 kernels of 256 and every RoI is scored for all
classes.
"""

import functools
from collections.abc import Callable

import tensorflow as tf
from absl import flags

from benchmarks import timing
from maskx_tf import losses
from maskx_tf.assembly import build_model
from maskx_tf.config import Config
from maskx_tf.inference import folding
from maskx_tf.system import cli

ROIS, MASKS, SIDE, CHANNELS = 300, 100, 21, 256
FEW = 80


def model(output: str, num_classes: int):
    """A model whose backbone is small, as it is not measured."""
    config = Config(
        backbone="small",
        backbone_width=8,
        max_level=4,
        fpn_filters=CHANNELS,
        mask_body="fcis",
        mask_output=output,
        transfer_input="cls",
        mask_filters=32 if output == "transfer" else 256,
        mask_roi_size=SIDE,
        mask_upsampling=1,
        loss_joint=0.4,
    )
    return build_model(config, num_classes)


def detection(output: str, num_classes: int) -> Callable[[], object]:
    """Class logits of all RoIs, and the masks of some."""
    of_classes = model(output, num_classes)
    folding.fold_transfer(of_classes)
    features, logits, classes = _inputs(num_classes)

    @tf.function(autograph=False)
    def run():
        _, scores = of_classes.joint_logits(features, classes, logits)
        return scores, tf.sigmoid(of_classes.mask_logits(features[:MASKS], classes[:MASKS]))

    return run


def training(output: str, num_classes: int) -> Callable[[], object]:
    """Gradients of the mask head and its weights, by both losses."""
    of_classes = model(output, num_classes)
    variables = [
        *of_classes.mask_head.trainable_variables,
        *of_classes.mask_weights.trainable_variables,
    ]
    features, logits, classes = _inputs(num_classes)
    every, targets = tf.fill([ROIS], True), tf.cast(features[..., 0] > 0, tf.float32)

    @tf.function(autograph=False)
    def run():
        with tf.GradientTape() as tape:
            masks, scores = of_classes.joint_logits(features, classes, logits, training=True)
            loss, _ = losses.mask_loss(masks, targets, every)
            loss += losses.class_loss(scores, classes, every)[0]
        return tape.gradient(loss, variables)

    return run


def _inputs(num_classes: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    return (
        tf.random.stateless_normal([ROIS, SIDE, SIDE, CHANNELS], (0, 0)),
        tf.random.stateless_normal([ROIS, num_classes + 1], (0, 1)),
        tf.random.stateless_uniform([ROIS], (0, 2), 0, num_classes + 1, tf.int32),
    )


def main() -> None:
    values = flags.FLAGS
    print(f"{timing.machine()}, TensorFlow {tf.__version__}")
    contenders = {
        f"T, K = {FEW}": ("transfer", FEW),
        f"T, K = {values.classes}": ("transfer", values.classes),
        f"published, K = {FEW}": ("class_specific", FEW),
    }
    for part in (detection, training):
        made = {name: part(*arguments) for name, arguments in contenders.items()}
        print(f"\n{part.__name__}")
        print(timing.table(timing.in_turns(made, values.turns), f"T, K = {FEW}"), flush=True)
        del made
        for name, arguments in contenders.items():
            peak = timing.peak_mib(functools.partial(part, *arguments))
            print(f"  {name}: peak memory {peak:,.0f} MiB", flush=True)


if __name__ == "__main__":
    flags.DEFINE_integer("classes", 3000, "The larger number of classes.", lower_bound=1)
    flags.DEFINE_integer("turns", 5, "Turns of each contender.", lower_bound=1)
    cli.run(main)
