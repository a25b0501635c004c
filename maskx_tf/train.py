"""Trains a model, and goes on with a run that was interrupted when the command is repeated.

Example:
  maskx train --flagfile=configs/shapes/stage1_boxes.flags
"""

import sys

from absl import flags

from maskx_tf import config
from maskx_tf.evaluation import report
from maskx_tf.system import cli
from maskx_tf.training import scaling, train
from maskx_tf.training.devices import Cluster


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the configuration's flags and this command's own."""
    config.define_flags(values)
    flags.DEFINE_integer(
        "scale_batch",
        0,
        "Train with this many images per step; the learning rate and the steps, meant for "
        "batch_size, are scaled by the linear rule. 0: no scaling.",
        lower_bound=0,
        flag_values=values,
    )
    flags.DEFINE_list(
        "worker_hosts",
        [],
        "host:port of every machine that trains the run; empty: this one alone.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "worker_index",
        0,
        "Index of this process in worker_hosts; 0 writes the run.",
        flag_values=values,
    )


def options(values: flags.FlagValues = flags.FLAGS) -> config.Config:
    """The options in effect: those of the flags, scaled if `--scale_batch` says so."""
    return scaling.apply(config.from_flags(values), values.scale_batch)


def main() -> None:
    """Trains what the flags describe and prints the last evaluation."""
    cluster = Cluster(tuple(flags.FLAGS.worker_hosts), flags.FLAGS.worker_index)
    results = train(options(), cluster=cluster)
    if results:
        print(report.format_table(results))
    sys.stdout.flush()


if __name__ == "__main__":
    define_flags()
    cli.run(main)
