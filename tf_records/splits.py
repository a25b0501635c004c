"""Draws a random set A, as a file for --mask_classes.

Example:
  maskx records splits --vocabulary=coco --size=20 --seed=1 --output=a.txt
"""

from __future__ import annotations

import pathlib

import numpy as np
from absl import flags

from maskx_tf.data.classes import Vocabulary, random_names
from maskx_tf.errors import UserError
from maskx_tf.system import cli
from maskx_tf.system.files import write_atomically


def main() -> None:
    """Reads the flags and writes the file."""
    options = flags.FLAGS
    if not 0 <= options.seed < 2**32:
        raise UserError(f"--seed={options.seed} must be between 0 and 4294967295.")
    path = pathlib.Path(options.output)
    if path.suffix != ".txt":
        raise UserError(f"--output={path} must end in .txt, as --mask_classes wants it.")
    names = Vocabulary.load(options.vocabulary).names
    chosen = random_names(names, options.size, np.random.RandomState(options.seed))
    head = f"# {options.size} of {len(names)} classes, drawn with seed {options.seed}."
    write_atomically(path, "\n".join([head, *chosen]) + "\n")
    print(f"{path}: {options.size} of the {len(names)} classes of {options.vocabulary}.")


def define_flags() -> None:
    """Defines this command's flags."""
    flags.DEFINE_string("vocabulary", None, "`coco`, or a class list (.json, .txt).", required=True)
    flags.DEFINE_integer("size", None, "Number of classes in set A.", required=True)
    flags.DEFINE_integer("seed", 0, "Seed of the random choice.", lower_bound=0)
    flags.DEFINE_string("output", None, "The .txt file to write.", required=True)


if __name__ == "__main__":
    define_flags()
    cli.run(main)
