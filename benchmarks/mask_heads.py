"""What every body of the mask head costs: parameters, and time for 100 RoIs.

    python -m benchmarks.mask_heads

Each with its published width C and RoI side S, without the class-agnostic branch and with given
kernels, on RoI features of 256 channels, in float32; side by side in one process. `forward` is the
masks of detections, `training` a forward and a backward pass.
"""

import tensorflow as tf
from absl import flags

from benchmarks import timing
from maskx_tf.layers import choices, convolution
from maskx_tf.layers.mask_head import MaskHead
from maskx_tf.system import cli

CHANNELS = 256
WIDTHS = {"fcn": 256, "aspp": 256, "aspp_v2": 256, "mlp": 512, "fcis": 32}  # others: 64
SIDES = {"hourglass": 32}  # others: 14


def head(name: str, rois: int):
    """The head, RoI features [N, S, S, C'] and kernels [N, C] of a body."""
    body = choices.load(choices.MASK_BODIES[name].constructor)(filters=WIDTHS.get(name, 64))
    side = SIDES.get(name.rstrip("0123456789"), 14)
    features = tf.random.stateless_normal([rois, side, side, CHANNELS], (0, 0))
    kernels = tf.random.stateless_normal([rois, body.filters], (0, 1))
    made = MaskHead(body)
    made(features[:1], kernels[:1])
    return made, features, kernels


def passes(made: MaskHead, features: tf.Tensor, kernels: tf.Tensor):
    """A forward pass, and one with the gradients of all weights and of the RoI features."""
    forward = tf.function(lambda: tf.sigmoid(made(features, kernels)), autograph=False)

    @tf.function(autograph=False)
    def training():
        with tf.GradientTape() as tape:
            tape.watch(features)
            loss = tf.reduce_mean(made(features, kernels, training=True) ** 2)
        return tape.gradient(loss, [features, *made.trainable_variables])

    return forward, training


def main() -> None:
    """Prints a Markdown table."""
    rois, contenders, lines = flags.FLAGS.rois, {}, {}
    with convolution.algorithm("auto"):
        for name in flags.FLAGS.bodies:
            made, features, kernels = head(name, rois)
            weights = sum(int(tf.size(v)) for v in made.trainable_variables)
            side = features.shape[1]
            lines[name] = f"| `{name}` | {made.body.filters} | {side} | {weights:,} |"
            forward, training = passes(made, features, kernels)
            contenders |= {f"{name} forward": forward, f"{name} training": training}
    times = timing.in_turns(contenders, flags.FLAGS.turns)
    print(f"{timing.machine()}, TensorFlow {tf.__version__}; {rois} RoIs\n")
    print("| body | C | S | parameters | forward, ms | training, ms |\n|---|--:|--:|--:|--:|--:|")
    for name, line in lines.items():
        values = (times[f"{name} {kind}"].median * 1e5 / rois for kind in ("forward", "training"))
        print(line, " | ".join(f"{value:,.0f}" for value in values), "|")


if __name__ == "__main__":
    names = list(choices.MASK_BODIES)
    flags.DEFINE_integer(
        "rois", 100, "RoIs that are timed; times are given for 100.", lower_bound=1
    )
    flags.DEFINE_integer("turns", 3, "Turns of each contender.", lower_bound=1)
    flags.DEFINE_multi_enum("bodies", names, names, "What to measure.")
    cli.run(main)
