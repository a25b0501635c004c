"""Runs the whole pipeline on the embedded data set, without download or GPU: `maskx demo`.

A study (docs/study.md) of two rows, declared in configs/shapes/demo.toml: Mask^X R-CNN and the
class-agnostic baseline, trained with the masks of set A on one box detector of all classes. The
first seed's Mask^X is exported, and predicts with the exported model. Running the demo again uses
what is there and resumes what was interrupted.
"""

import dataclasses
import math
import pathlib
import subprocess
import sys
import time

import numpy as np
from absl import flags

from maskx_tf import visualize
from maskx_tf.checkpoints import VOCABULARY, class_weights
from maskx_tf.data.classes import Vocabulary
from maskx_tf.errors import UserError
from maskx_tf.evaluation import pairs
from maskx_tf.evaluation.factors import explained_share
from maskx_tf.evaluation.report import format_operating_point, percent
from maskx_tf.study import declaration, execution, report
from maskx_tf.study.plan import Plan
from maskx_tf.study.store import Results
from maskx_tf.system import cli, verbs
from maskx_tf.system.files import write_atomically
from maskx_tf.system.progress import format_duration

DECLARATION = "configs/shapes/demo.toml"
ROWS = ("class_agnostic", "cls_box")  # and, with --oracle, that one
PAIRS = 6  # in the picture that compares the two


def train(plan: Plan, results: Results, rows: set[str]) -> None:
    """Makes the data and trains and evaluates what has no result yet; shows the progress."""
    missing = execution.missing_groups(plan, results, rows, set(plan.study.seeds))
    execution.Execution(plan, results, missing, shows_logs=True).run()


def use(directory: pathlib.Path, newest: float) -> None:
    """Compares a seed's masks in a picture, exports Mask^X and predicts with the export.

    Args:
      directory: of the seed.
      newest: when the last result came, seconds since 1970; predictions that are newer are kept.
    """
    exported, pictures = directory / "saved_model", directory / "pictures"
    last = pictures / "detections.json"
    if last.is_file() and last.stat().st_mtime >= newest:
        return
    rows = {"class-agnostic": directory / "class_agnostic", "Mask^X": directory / "cls_box"}
    picture = pairs.picture(rows, PAIRS)
    if picture is not None:
        visualize.write_picture(picture, pictures / "pairs.jpg")
    model = f"--model_dir={directory / 'cls_box'}"
    images = f"--images={directory / 'data' / 'val'}/00000?.jpg"
    for arguments in (
        ("export.command", model, f"--output_dir={exported}"),
        ("maskx_tf.predict", f"--saved_model={exported}", images, f"--output_dir={pictures}"),
    ):
        print(f"\n{verbs.command(arguments[0])} {' '.join(arguments[1:])}", flush=True)
        if subprocess.run([sys.executable, "-m", *arguments]).returncode:
            raise UserError(f"{arguments[0]} failed; its message is above.")


def weight_shares(detector_dir: pathlib.Path) -> dict[str, float]:
    """Share of the detector's class weights that shape and texture explain, for cls and box."""
    names = Vocabulary.load(str(detector_dir / VOCABULARY)).names
    factors = np.array([name.split(" ", 1) for name in names])
    weights = {kind: class_weights.read(str(detector_dir), kind) for kind in ("cls", "box")}
    return {kind: explained_share(rows, factors) for kind, rows in weights.items()}


def table(titles: dict[str, str], evaluations: dict[str, dict]) -> str:
    """Mask AP of every row, in percent, and the gain of Mask^X over the baseline on B.

    Args:
      titles: of the rows.
      evaluations: of `CocoEvaluator.evaluate`, by row.
    """
    detector = evaluations["cls_box"]
    box_ap = " / ".join(percent(detector["box"][subset]["AP"]) for subset in ("A", "B"))
    lines = [
        f"Box AP {box_ap} on A / B. {format_operating_point(detector['operating_point'])}",
        f"{'':25}{'mask AP':>16}{'given boxes':>18}",
        f"{'':25}" + f"{'A':>9}{'B':>9}" * 2,
    ]
    for row, result in evaluations.items():
        values = [result[s][c]["AP"] for s in ("mask", "mask_given_boxes") for c in ("A", "B")]
        lines.append(f"{titles[row]:25}" + "".join(f"{100 * value:9.1f}" for value in values))
    lines.append(f"Gain of Mask^X on B, classes without any mask: {100 * gain(evaluations):+.0f} %")
    given = detector["mask_given_boxes"]["B"]
    if given["shared"]:
        lines.append(
            f"In torn pairs of B, boxes given: mean IoU {percent(given['IoU_shared'])}; without "
            f"seeing the class at most {percent(given['ceiling_shared'])} can be reached."
        )
    return "\n".join(lines)


def gain(evaluations: dict[str, dict]) -> float:
    """Relative gain of Mask^X over the class-agnostic baseline in mask AP on B; NaN without."""
    ours, baseline = (evaluations[r]["mask"]["B"]["AP"] for r in ("cls_box", "class_agnostic"))
    return ours / baseline - 1.0 if baseline else math.nan


def summary(plan: Plan, results: Results, rows: set[str]) -> str:
    """Tables of all seeds, and their mean gain where there are several."""
    titles = {name: row.title for name, row in plan.study.rows.items()}
    paragraphs, gains = [], []
    for seed in plan.study.seeds:
        evaluations = {
            run.row.name: evaluation
            for run in plan.runs
            if run.seed == seed and run.row.name in rows
            for evaluation in results.runs[run.key]["evaluations"].values()
        }
        gains.append(100 * gain(evaluations))
        shares = weight_shares(plan.study.runs_dir / f"seed{seed}" / "detector")
        explained = ", ".join(f"w_{kind} {share:.2f}" for kind, share in shares.items())
        paragraphs.append(
            f"Seed {seed} (share of the class weights that shape and texture explain: {explained})"
            f"\n{table(titles, evaluations)}"
        )
    if len(gains) > 1:
        paragraphs.append(
            f"Gain of Mask^X on B over {len(gains)} seeds: mean {np.mean(gains):+.0f} %, "
            f"from {min(gains):+.0f} to {max(gains):+.0f} %"
        )
    return "\n\n".join(paragraphs)


def study_of(output_dir: str, seeds: list[str]) -> declaration.Study:
    """The demo's study, in a directory and with seeds of the user's choice."""
    for seed in seeds:
        if not seed.isdecimal():
            raise UserError(f"--seeds: {seed!r} is not a whole number from 0 on.")
    study = declaration.load(DECLARATION)
    chosen = tuple(dict.fromkeys(map(int, seeds)))
    return dataclasses.replace(study, directory=output_dir, seeds=chosen)


def main() -> None:
    """Runs the demo and says what came out and where it is."""
    started = time.monotonic()
    values = flags.FLAGS
    rows = {*ROWS, *(["oracle"] if values.oracle else [])}
    plan = Plan(study_of(values.output_dir, values.seeds))
    output = plan.study.results_dir
    results = Results(output / "results.json")
    train(plan, results, rows)
    first = output / f"seed{plan.study.seeds[0]}"
    use(first, (output / "results.json").stat().st_mtime)
    text = summary(plan, results, rows)
    write_atomically(output / "results.txt", text + "\n")
    report.write(plan, results, " ".join([verbs.command("maskx_tf.demo"), *sys.argv[1:]]))
    print(
        f"\n{text}\n\n"
        f"Masks of set A were trained on, masks of set B never seen. "
        f"{format_duration(time.monotonic() - started)} in all.\n"
        f"  pictures     {first / 'pictures'}  (A green, B red)\n"
        f"  SavedModel   {first / 'saved_model'}\n"
        f"  TensorBoard  tensorboard --logdir={output}\n"
        f"  results      {output / 'results.txt'}, {output / 'README.md'}"
    )


def define_flags() -> None:
    """Defines this command's flags."""
    flags.DEFINE_string("output_dir", "runs/demo", "Where data, models and pictures go.")
    flags.DEFINE_list("seeds", ["0"], "Seeds of data and training; everything is run for each.")
    flags.DEFINE_bool("oracle", False, "Also train the oracle, with the masks of all classes.")


if __name__ == "__main__":
    define_flags()
    cli.run(main)
