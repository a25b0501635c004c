"""Says which classes to outline first: those whose masks help the masks of all others most.

It reads the class weights of a box detector, before any mask exists (docs/advise.md).

Example:
  maskx advise --model_dir=runs/boxes --count=12 --output=outline.txt
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence

import numpy as np
from absl import flags

from maskx_tf.checkpoints import VOCABULARY, class_weights, latest_checkpoint
from maskx_tf.data.classes import Vocabulary, load_mask_classes
from maskx_tf.errors import UserError
from maskx_tf.evaluation.coverage import Choice, Coverage, expected_iou
from maskx_tf.evaluation.report import align, percent
from maskx_tf.system import cli
from maskx_tf.system.files import require_writable_file, write_atomically

_LEAST = 5  # classes listed that stay covered least


def table(names: list[str], choices: list[Choice]) -> str:
    """The choices in their order, for people."""
    rows = [["", "outline", "covered so far", "mean cover after"]]
    for place, choice in enumerate(choices, start=1):
        shares = percent(choice.covered_before), percent(choice.mean_after)
        rows.append([str(place), names[choice.row], *shares])
    return align(rows, left_columns=2)


def main() -> None:
    """Prints the classes, writes them to --output if it is given."""
    options = flags.FLAGS
    checkpoint = latest_checkpoint(options.model_dir)
    vocabulary = Vocabulary.load(str(pathlib.Path(checkpoint).parent / VOCABULARY))
    names = list(vocabulary.names)
    if options.output:
        require_writable_file(options.output, f"--output={options.output}")
    ious: dict[int, float] = {}
    if options.evaluation:
        said = f"those of --evaluation={options.evaluation}"
        class_ids, ious = _set_a_of(options.evaluation, vocabulary)
    else:
        said = f"--mask_classes={options.mask_classes}"
        class_ids = load_mask_classes(options.mask_classes, vocabulary)
    known = [class_id - 1 for class_id in class_ids]
    if len(known) == len(names):
        raise UserError(
            f"The classes with masks, {said}, are all {len(names)}; none is left to outline."
        )
    weights = class_weights.read(checkpoint, options.transfer_input)
    coverage = Coverage(weights, known)
    rest = np.setdiff1d(np.arange(len(names)), known)
    before = float(coverage.covered[rest].mean())
    choices = coverage.choose(options.count)
    if options.output:
        chosen = [names[i] for i in coverage.known]
        write_atomically(options.output, "\n".join(chosen) + "\n")
    print(
        f"{checkpoint}: {len(names)} classes, {len(known)} with masks; these cover the others to "
        f"{percent(before)} %.\n{table(names, choices)}"
    )
    left = sorted(set(rest) - {choice.row for choice in choices}, key=coverage.covered.item)
    if left:
        least = (f"{names[i]} {percent(float(coverage.covered[i]))}" for i in left[:_LEAST])
        print(f"Covered least of those left: {', '.join(least)}.")
    if ious:
        expected = expected_iou(weights, ious)
        worst = sorted(rest, key=expected.item)[:_LEAST]
        lowest = ", ".join(f"{names[i]} {percent(float(expected[i]))}" for i in worst)
        print(
            f"Expected mean IoU of the {len(rest)} classes without masks: "
            f"{percent(float(expected[rest].mean()))}; lowest: {lowest}."
        )
    if options.output:
        print(f"written: {options.output}, for --mask_classes ({len(coverage.known)} classes)")


def _set_a_of(path: str, vocabulary: Vocabulary) -> tuple[Sequence[int], dict[int, float]]:
    """Set A of an evaluation; by their rows, the mean IoU of those that it has masks to score of.

    Raises:
      UserError: the file cannot be read, is of other classes, or has no such IoU.
    """
    try:
        evaluation = json.loads(pathlib.Path(path).read_bytes())
        ious = evaluation["mask_given_boxes"]["iou_per_class"]
        ids = vocabulary.ids_of(evaluation["mask_classes"])
    except OSError as error:
        raise UserError(f"--evaluation={path} cannot be read: {error.strerror}.") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"--evaluation={path} has no IoU of single classes; write it with maskx evaluate."
        ) from None
    of_a = {i - 1: ious.get(vocabulary.names[i - 1]) for i in ids}
    scored = {row: iou for row, iou in of_a.items() if iou is not None}
    if not scored:
        raise UserError(
            f"--evaluation={path} has no mask of a class of A to learn from: its validation images "
            "lack them."
        )
    return ids, scored


def define_flags() -> None:
    """Defines this command's flags."""
    flags.DEFINE_string("model_dir", None, "Run or checkpoint of a box detector.", required=True)
    flags.DEFINE_integer("count", 12, "How many classes to outline.", lower_bound=1)
    flags.DEFINE_string(
        "mask_classes", "none", "Classes that have masks already, as of maskx train."
    )
    flags.DEFINE_string(
        "evaluation",
        "",
        "evaluation.json of a model with masks, in place of --mask_classes: also say which IoU the "
        "other classes can be expected to have.",
    )
    flags.DEFINE_enum(
        "transfer_input", "cls", list(class_weights.KINDS), "What T will see of a class."
    )
    flags.DEFINE_string("output", "", "File for the names of all classes that then have masks.")


if __name__ == "__main__":
    define_flags()
    cli.run(main)
