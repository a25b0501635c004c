"""Input sizes and numbers of classes, which the benchmarks of the model go through."""

from collections.abc import Callable

import tensorflow as tf
from absl import flags

from benchmarks import timing
from maskx_tf.errors import UserError


def define_flags() -> None:
    """Defines --sizes and --classes."""
    flags.DEFINE_list("sizes", ["800x1344"], "Heights x widths of the network's input.")
    flags.DEFINE_list("classes", ["80"], "Numbers of classes.")


def run(compare: Callable[[int, int, int], None]) -> None:
    """Calls compare(height, width, number of classes) for each case of the flags."""
    print(f"{timing.machine()}, TensorFlow {tf.__version__}")
    for text in flags.FLAGS.sizes:
        height, width = size(text, "sizes")
        for count in flags.FLAGS.classes:
            compare(height, width, int(count))


def size(text: str, flag: str) -> tuple[int, int]:
    """`800x1344` -> (800, 1344); UserError for anything else."""
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise UserError(f"--{flag}={text} must be like 800x1344.")
    return int(height), int(width)
