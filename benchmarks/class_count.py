"""What thousands of classes cost: K = 80 beside K = 3,000.

    python -m benchmarks.class_count --size=800x1344

R-50-FPN with random weights, in turns in one process, float32: the exported model on one image; a
training step; and the masks of 100 detections alone, whose class's w_seg is gathered from the
folded table, beside the usual head, which makes K maps of each and keeps one. Peak memory is that
of new processes. --peer adds Model Garden's model with as many classes, whose masks are of the
usual kind.
"""

import tensorflow as tf
from absl import flags

from benchmarks import cases, inference, timing, training
from maskx_tf.layers.mask_bodies.body import in_rows
from maskx_tf.layers.mask_bodies.fcn import FCN
from maskx_tf.layers.mask_head import MaskHead
from maskx_tf.system import cli

FEW = 80
DETECTIONS, SIDE, FILTERS = 100, 14, 256


def gathered_masks(num_classes: int):
    """Masks of 100 detections out of the trunk's output, a kernel gathered for each."""
    head = MaskHead(FCN(FILTERS, convs=0))
    features = tf.random.normal([DETECTIONS, SIDE, SIDE, FILTERS])
    table = tf.random.normal([num_classes + 1, FILTERS])
    classes = tf.random.uniform([DETECTIONS], 1, num_classes + 1, tf.int32)
    run = tf.function(lambda x: tf.sigmoid(head(x, tf.gather(table, classes))), autograph=False)
    return lambda: run(features)


def all_masks(num_classes: int):
    """The same by a convolution with K + 1 channels, of which one is kept."""
    body = FCN(FILTERS, convs=0)
    features = tf.random.normal([DETECTIONS, SIDE, SIDE, FILTERS])
    kernel = tf.random.normal([1, 1, FILTERS, num_classes + 1])
    classes = tf.random.uniform([DETECTIONS], 1, num_classes + 1, tf.int32)

    @tf.function(autograph=False)
    def run(x):
        masks = tf.sigmoid(tf.nn.conv2d(in_rows(body(x)), kernel, 1, "SAME"))
        return tf.gather(masks, classes, axis=3, batch_dims=1)

    return lambda: run(features)


def main() -> None:
    values = flags.FLAGS
    height, width = cases.size(values.size, "size")
    counts = FEW, values.classes
    print(f"{timing.machine()}, TensorFlow {tf.__version__}; {height}x{width}")
    parts = {
        "inference": (inference.exported, (height, width)),
        "training step": (training.ours, ({}, values.batch_size, height, width)),
        "masks": (gathered_masks, ()),
        "masks, K maps each": (all_masks, ()),
    }
    if values.peer:
        parts["Model Garden, inference"] = inference.peer, (height, width)
    for part, (make, arguments) in parts.items():
        if part in values.parts or (part.startswith("Model Garden") and values.peer):
            compare(part, make, arguments, counts)


def compare(part: str, make, arguments: tuple, counts: tuple[int, int]) -> None:
    few, many = (f"{part}, K = {count}" for count in counts)
    contenders = {few: make(*arguments, counts[0]), many: make(*arguments, counts[1])}
    print(timing.table(timing.in_turns(contenders, flags.FLAGS.turns), few))
    memory = [timing.peak_mib(make, *arguments, count) for count in counts]
    print(f"  peak memory {memory[0]:,.0f} and {memory[1]:,.0f} MiB", end="")
    print(f": {memory[1] - memory[0]:+,.0f} MiB\n", flush=True)


if __name__ == "__main__":
    names = ["inference", "training step", "masks", "masks, K maps each"]
    flags.DEFINE_string("size", "800x1344", "Height x width of the network's input.")
    flags.DEFINE_integer("classes", 3000, "The larger number of classes.", lower_bound=1)
    flags.DEFINE_integer("batch_size", 2, "Images per training step.", lower_bound=1)
    flags.DEFINE_integer("turns", 5, "Turns of each contender.", lower_bound=1)
    flags.DEFINE_multi_enum("parts", names, names, "What to measure.")
    flags.DEFINE_boolean("peer", False, "Also measure Model Garden's inference.")
    cli.run(main)
