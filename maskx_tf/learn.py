"""From a labelled folder to a trained, evaluated and exported model, unattended.

Each step is a command of its own, which is printed: `records folder`, `train`, `evaluate` and
`export`. What is done is kept: repeating the command resumes. The options of the training are
written into OUTPUT_DIR/options.flags with the reason of each; a file that is there is used as it
is, so edit it to choose otherwise. They start from --from=RUN, a run or imported weights (`maskx
weights …`), whose weights and options are taken over, or from --recipe=FLAGFILE.

Example:
  maskx learn data/mine --from=runs/imported --output_dir=runs/mine
"""

from __future__ import annotations

import json
import math
import os
import pathlib
import sys
from typing import Any, NamedTuple

from absl import flags

from maskx_tf import checkpoints
from maskx_tf import config as config_lib
from maskx_tf.checkpoints.listing import resolved
from maskx_tf.config import Config
from maskx_tf.data.records import index
from maskx_tf.data.records import manifest as manifest_lib
from maskx_tf.data.records.manifest import Manifest
from maskx_tf.errors import UserError, first_of
from maskx_tf.evaluation import report
from maskx_tf.evaluation.ground_truth import ground_truth_from_records
from maskx_tf.system import cli, subcommand
from maskx_tf.system.files import require_writable, write_atomically

EPOCHS = 25
_FEWEST_STEPS = 500
_CUTS = (0.75, 0.93)  # of the schedule, where the learning rate falls
_EVALUATIONS = 10
_WARM_UP = 0.1  # of the schedule, at most
_MOST_OBJECTS = 300


class Places(NamedTuple):
    """Where the output goes; paths."""

    root: pathlib.Path

    @property
    def options(self) -> pathlib.Path:
        """The flagfile of the training."""
        return self.root / "options.flags"

    @property
    def run(self) -> pathlib.Path:
        """The model directory."""
        return self.root / "run"

    def records(self, split: str) -> pathlib.Path:
        """The records of a split."""
        return self.root / "records" / split


def _with_masks(train: Manifest) -> list[str]:
    """Set A: the classes that have masks to train on."""
    return [name for name, (_, masks) in train.class_counts.items() if masks]


def options_text(places: Places, train: Manifest, val: Manifest, start: str, recipe: str) -> str:
    """The flagfile of the training: every line follows from the data or the start.

    Args:
      places: of the output.
      train: manifest of the training records.
      val: of the validation records.
      start: run or imported weights to start from; "" for none.
      recipe: flagfile of options; "" for those of `start`.

    Raises:
      UserError: no object to train on has a mask, or `start` is no run.
    """
    with_masks = _with_masks(train)
    if not with_masks:
        raise UserError(
            f"None of the {train.num_objects} objects in {places.records('train')} has a mask: "
            "outline some of one class first (maskx advise says of which)."
        )
    base = recipe or str(pathlib.Path(resolved(start), config_lib.FLAGFILE))
    config = config_lib.read_flagfile(base) if recipe else config_lib.load(resolved(start))
    steps = max(_FEWEST_STEPS, math.ceil(EPOCHS * train.num_images / config.batch_size))
    interval = math.ceil(steps / _EVALUATIONS)
    few = [name for name in train.vocabulary.names if name not in train.class_counts]
    lines = [
        "# Options of maskx learn. Edit them as you like: this file is not written again.",
        f"--flagfile={base}",
        f"--model_dir={places.run}",
        f"--init_checkpoint={start}",
        f"--train_records={places.records('train')}",
        f"--eval_records={places.records('val')}",
        "# The classes of the records"
        + (f"; without any object to train on: {first_of(few)}." if few else "."),
        "--vocabulary=",
        f"# Set A: the {len(with_masks)} of {train.vocabulary.num_classes} classes with masks.",
        f"--mask_classes={places.root / 'set_a.txt'}",
        "--mode=end_to_end",
    ]
    if start:
        lines.append("--backbone_weights=")
    if config.mask_output != "transfer":
        lines += ["# Masks of classes without any: T.", "--mask_output=transfer", "--mask_mlp"]
    lines += _size_lines(config, train, places)
    warmup = min(config.warmup_steps, int(_WARM_UP * steps))
    masked = sum(val.class_counts.get(name, (0, 0))[1] for name in with_masks)
    metric = "mask_ap_a" if masked else "box_ap_all"  # not of B: its figures stay unbiased
    lines += [
        f"# {steps * config.batch_size / train.num_images:.0f} epochs of {train.num_images} images "
        f"in batches of {config.batch_size}.",
        f"--train_steps={steps}",
        f"--lr_steps={','.join(str(int(cut * steps)) for cut in _CUTS)}",
        f"--warmup_steps={warmup}",
        f"--checkpoint_interval={interval}",
        f"--eval_interval={interval}",
        f"# {masked} objects of the validation are of A and have masks.",
        f"--keep_best={metric}",
    ]
    return "\n".join(lines) + "\n"


def _size_lines(config: Config, train: Manifest, places: Places) -> list[str]:
    """The size of images, if photos are smaller than the start's, and how many objects one has."""
    found = manifest_lib.find_records([str(places.records("train"))])
    sizes = list(index.image_sizes(found.paths).values())
    lines = []
    longest = max(max(size) for size in sizes)
    if longest < config.image_max_side:
        shortest = min(config.image_min_side, max(min(size) for size in sizes))
        lines += [
            f"# No photo is larger than {longest} pixels.",
            f"--image_min_side={shortest}",
            f"--image_max_side={longest}",
        ]
    if config.max_objects < train.max_objects_per_image:
        lines += [
            f"# An image has up to {train.max_objects_per_image} objects.",
            f"--max_objects={min(train.max_objects_per_image, _MOST_OBJECTS)}",
        ]
    return lines


def filled_boxes(records: pathlib.Path) -> list[dict[str, Any]]:
    """COCO results that take each object's whole box for its mask."""
    vocabulary = manifest_lib.vocabulary_of([str(records)])
    truth = ground_truth_from_records([str(records)], vocabulary)
    rows = []
    for item in truth["annotations"]:
        x, y, w, h = item["bbox"]
        if not item["iscrowd"]:
            rows.append(
                {
                    "image_id": item["image_id"],
                    "category_id": vocabulary.external_ids[item["category_id"] - 1],
                    "bbox": item["bbox"],
                    "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                }
            )
    return rows


def report_text(
    places: Places, train: Manifest, evaluation: dict[str, Any], filled: dict[str, Any] | None
) -> str:
    """The report in Markdown."""
    names = set(evaluation["mask_classes"])
    lines = [
        f"# {places.root}",
        "",
        f"{train.num_images} images to train on, {train.num_objects} objects, {train.num_masks} of "
        f"them with masks. A: {len(names)} classes with masks: {first_of(sorted(names), 20)}.",
        "",
        f"Checkpoint: {evaluation['checkpoint']}, the best on the validation images, from which "
        "the figures below are: those of what it was chosen by flatter it a little.",
        "",
        "```",
        report.format_table(evaluation, names),
        "```",
    ]
    if filled and "mask_given_boxes" in evaluation:
        ious = [
            report.percent(each["mask_given_boxes"]["all"]["IoU"]) for each in (evaluation, filled)
        ]
        lines += ["", f"Mean IoU of masks in given boxes: {ious[0]}; of filled boxes: {ious[1]}."]
    lines += [
        "",
        f"- options of the training, with reasons: {places.options}",
        f"- the model, for every command: {places.run}@best",
        f"- the same for TensorFlow Serving: {places.root / 'exported'}",
    ]
    return "\n".join(lines) + "\n"


def learn(folder: str, places: Places, start: str, recipe: str, record_options: list[str]) -> str:
    """Runs what is not done yet; the report."""
    subcommand.run(
        "tf_records.folder",
        f"--folder={folder}",
        f"--output_dir={places.root / 'records'}",
        "--reuse",
        *record_options,
    )
    for split in ("train", "val"):
        if not (places.records(split) / manifest_lib.FILE_NAME).is_file():
            raise UserError(
                f"{folder} has no split {split}: --val_share=0.2 takes a fifth of the images for "
                "validation, by their names; or split it yourself."
            )
    train, val = (Manifest.load(places.records(split)) for split in ("train", "val"))
    if places.options.is_file():
        print(f"\n{places.options} is there, and used as it is.")
    else:
        text = options_text(places, train, val, start, recipe)
        set_a = "".join(f"{name}\n" for name in _with_masks(train))
        write_atomically(places.root / "set_a.txt", set_a)
        write_atomically(places.options, text)
        print(f"\n{places.options}:\n{text}")
    config_lib.read_flagfile(str(places.options))  # refuses what cannot be
    subcommand.run("maskx_tf.train", f"--flagfile={places.options}")
    best = f"{places.run}@best"
    checkpoint = checkpoints.latest_checkpoint(best)
    evaluation = _evaluated(places, best, checkpoint)
    filled = _filled(places) if val.num_masks else None
    marker = places.root / "exported.json"
    if not marker.is_file() or json.loads(marker.read_text()) != checkpoint:
        subcommand.run(
            "export.command", f"--model_dir={best}", f"--output_dir={places.root / 'exported'}"
        )
        write_atomically(marker, json.dumps(checkpoint) + "\n")
    return report_text(places, train, evaluation, filled)


def _evaluated(places: Places, best: str, checkpoint: str) -> dict[str, Any]:
    path = places.root / "evaluation.json"
    if not path.is_file() or json.loads(path.read_text())["checkpoint"] != checkpoint:
        subcommand.run("maskx_tf.evaluate", f"--model_dir={best}", f"--output={path}")
    return json.loads(path.read_text())


def _filled(places: Places) -> dict[str, Any]:
    path = places.root / "filled_boxes_evaluation.json"
    if not path.is_file():
        rows = places.root / "filled_boxes.json"
        write_atomically(rows, json.dumps(filled_boxes(places.records("val"))) + "\n")
        subcommand.run(
            "maskx_tf.evaluate",
            f"--given_box_results={rows}",
            f"--eval_records={places.records('val')}",
            f"--mask_classes={places.root / 'set_a.txt'}",
            f"--output={path}",
        )
    return json.loads(path.read_text())


def define_flags() -> None:
    """Defines this command's flags."""
    flags.DEFINE_string("folder", "", "The labelled folder; --folder= may be left out.")
    flags.DEFINE_string("output_dir", None, "Where records, run and export go.", required=True)
    flags.DEFINE_string("from", "", "Run or imported weights to start from, with its options.")
    flags.DEFINE_string("recipe", "", "Flagfile of options, in place of those of --from.")
    flags.DEFINE_string("format", "", "As of maskx records folder.")
    flags.DEFINE_string("images", "", "As of maskx records folder.")
    flags.DEFINE_float("val_share", 0.0, "As of maskx records folder.")


def main() -> None:
    """Runs the steps that are left, writes the report and prints it."""
    options = flags.FLAGS
    start, recipe = options["from"].value, options.recipe
    if not os.path.isdir(options.folder):
        raise UserError("Name the labelled folder: maskx learn FOLDER --output_dir=…")
    if not start and not recipe:
        raise UserError(
            "A few hundred images are too few to start from nothing: give --from=RUN (maskx "
            "weights … imports one), or --recipe=FLAGFILE, such as configs/voc/base.flags."
        )
    require_writable(options.output_dir, f"--output_dir={options.output_dir}")
    places = Places(pathlib.Path(options.output_dir))
    names = [name for name in ("format", "images", "val_share") if options[name].present]
    given = [f"--{name}={options[name].value}" for name in names]
    text = learn(options.folder, places, start, recipe, given)
    write_atomically(places.root / "report.md", text)
    print(f"\n{text}\nwritten: {places.root / 'report.md'}")


if __name__ == "__main__":
    define_flags()
    sys.argv = cli.first_to_flag(sys.argv, "folder")
    cli.run(main)
