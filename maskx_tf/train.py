"""Trains a model: `python -m maskx_tf.train --flagfile=configs/shapes/stage1_boxes.flags`.

Running the same command again resumes at the last checkpoint.
"""

import sys

from maskx_tf import cli, config
from maskx_tf.evaluation import report
from maskx_tf.training import train


def main() -> None:
    """Trains what the flags describe and prints the last evaluation."""
    options = config.from_flags()
    results = train(options)
    if results:
        print(report.format_table(results))
    sys.stdout.flush()


if __name__ == "__main__":
    config.define_flags()
    cli.run(main)
