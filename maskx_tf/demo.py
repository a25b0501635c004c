"""Runs the whole pipeline on the embedded data set, without download or GPU: `maskx demo`.

Makes Shapes, trains one box detector on all classes and, on top of it, the mask head of Mask^X
R-CNN and of the class-agnostic baseline with the masks of set A only; evaluates both on A and B;
exports and uses the exported model. Every step is a command that can be run by hand. Running the
demo again reuses what is done and resumes what was interrupted.
"""

import dataclasses
import glob
import json
import math
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import tensorflow as tf
from absl import flags

from maskx_tf import config
from maskx_tf.checkpoints import VOCABULARY
from maskx_tf.data.classes import Vocabulary
from maskx_tf.errors import UserError
from maskx_tf.evaluation.factors import explained_share
from maskx_tf.system import cli, verbs
from maskx_tf.system.files import write_atomically
from maskx_tf.system.progress import format_duration

CONFIGS = "configs/shapes"
# Rows of the comparison: flagfile of stage 2, and what it is called in the table.
ROWS = {
    "class_agnostic": "class-agnostic baseline",
    "cls_box": "Mask^X R-CNN",
    "oracle": "oracle (all masks)",
}


@dataclasses.dataclass(frozen=True)
class Step:
    """A command that makes `outputs` from `inputs`, paths or patterns, like a Makefile's rule."""

    title: str
    command: tuple[str, ...]
    inputs: tuple[pathlib.Path, ...]
    outputs: tuple[pathlib.Path, ...]

    def is_done(self) -> bool:
        """Whether every output exists and none is older than an input."""
        oldest = min(_time(path, -math.inf) for path in self.outputs)
        return max((_time(path, math.inf) for path in self.inputs), default=0.0) <= oldest


def _time(path: pathlib.Path, absent: float) -> float:
    """When a file, or the last of those that a pattern matches, was changed."""
    paths = [str(path)] if path.exists() else glob.glob(str(path))
    return max((os.stat(name).st_mtime for name in paths), default=absent)


@dataclasses.dataclass(frozen=True)
class Plan:
    """The steps of one seed and where their results are.

    Attributes:
      directory: of data and runs of this seed.
      seed: of the data set and of training.
      rows: keys of `ROWS`.
    """

    directory: pathlib.Path
    seed: int
    rows: tuple[str, ...]

    @property
    def data(self) -> pathlib.Path:
        """The data set in COCO format and as records."""
        return self.directory / "data"

    def run(self, name: str) -> pathlib.Path:
        """Model directory of stage1_boxes or of a row."""
        return self.directory / name

    def steps(self) -> list[Step]:
        """All steps in order; export and prediction only where Mask^X is among the rows."""
        manifests = tuple(
            self.data / "records" / split / "manifest.json" for split in ("train", "val")
        )
        shapes = ("tf_records.shapes", f"--output_dir={self.data}", f"--seed={self.seed}")
        made = (*manifests, self.data / "set_a.txt")
        steps = [Step("Making the data set Shapes", (*shapes, "--overwrite"), (), made)]
        detector = self._train(
            "stage1_boxes", "the box detector, boxes of all classes", manifests[0]
        )
        steps.append(detector)
        for row in self.rows:
            init = f"--init_checkpoint={self.run('stage1_boxes')}"
            title = f"the mask head: {ROWS[row]}"
            trained = self._train(row, title, detector.outputs[0], init)
            steps += [trained, self._evaluate(row, trained.outputs[0])]
        if "cls_box" in self.rows:
            steps += self._use(self.run("cls_box"))
        return steps

    def _train(self, name: str, title: str, needs: pathlib.Path, *extra: str) -> Step:
        flagfile = f"{CONFIGS}/{name}.flags"
        records = self.data / "records"
        mask_classes = () if name == "oracle" else (f"--mask_classes={self.data / 'set_a.txt'}",)
        command = (
            "maskx_tf.train",
            f"--flagfile={flagfile}",
            f"--train_records={records / 'train'}",
            f"--eval_records={'' if name == 'stage1_boxes' else records / 'val'}",
            *mask_classes,
            f"--model_dir={self.run(name)}",
            f"--seed={self.seed}",
            *extra,
        )
        last = self.run(name) / f"ckpt-{config.read_flagfile(flagfile).train_steps}.index"
        return Step(f"Training {title}", command, (needs,), (last,))

    def _evaluate(self, name: str, needs: pathlib.Path) -> Step:
        command = (
            "maskx_tf.evaluate",
            f"--model_dir={self.run(name)}",
            f"--eval_records={self.data / 'records' / 'val'}",
            f"--mask_classes={self.data / 'set_a.txt'}",
        )
        output = self.run(name) / "evaluation.json"
        return Step(f"Evaluating {ROWS[name]}", command, (needs,), (output,))

    def _use(self, model_dir: pathlib.Path) -> list[Step]:
        evaluation = model_dir / "evaluation.json"
        exported = self.directory / "saved_model"
        pictures = self.directory / "pictures"
        export = ("export.saved_model", f"--model_dir={model_dir}", f"--output_dir={exported}")
        predict = (
            "maskx_tf.predict",
            f"--saved_model={exported}",
            f"--images={self.data / 'val'}/00000?.jpg",
            f"--output_dir={pictures}",
            # So short a training tells shapes, but hardly their textures: those share the score.
            "--score_threshold=0.22",
        )
        # Of a finished version: the directory is there before the model is.
        model = pathlib.Path(glob.escape(str(exported)), "*", "saved_model.pb")
        return [
            Step("Exporting Mask^X R-CNN for TF Serving", export, (evaluation,), (model,)),
            Step(
                "Predicting on validation images with the exported model",
                predict,
                (model,),
                (pictures / "detections.json",),
            ),
        ]


def execute(steps: list[Step]) -> None:
    """Runs the steps that are not done, each in a process of its own."""
    # Progress bars redraw ten times a second; in a log file, every ten seconds are enough.
    environment = os.environ | ({} if sys.stdout.isatty() else {"TQDM_MININTERVAL": "10"})
    for number, step in enumerate(steps, start=1):
        title = f"[{number}/{len(steps)}] {step.title}"
        if step.is_done():
            print(f"{title}: already done", flush=True)
            continue
        command = " ".join([verbs.command(step.command[0]), *step.command[1:]])
        print(f"\n{title}\n  {command}", flush=True)
        started = time.monotonic()
        code = subprocess.run([sys.executable, "-m", *step.command], env=environment).returncode
        if code:
            raise UserError(
                f"step {number} ({step.title}) failed with exit code {code}; its message is above. "
                "Repeat the command to resume here."
            )
        print(f"  took {format_duration(time.monotonic() - started)}", flush=True)


def results(plan: Plan) -> dict[str, dict]:
    """The evaluations of a plan's rows."""
    return {row: json.loads((plan.run(row) / "evaluation.json").read_text()) for row in plan.rows}


def weight_shares(plan: Plan) -> dict[str, float]:
    """Share of the detector's class weights that shape and texture explain, for cls and box."""
    directory = plan.run("stage1_boxes")
    names = Vocabulary.load(str(directory / VOCABULARY)).names
    factors = np.array([name.split(" ", 1) for name in names])
    reader = tf.train.load_checkpoint(str(directory))
    shares = {}
    for kind in ("cls", "box"):
        rows = reader.get_tensor(f"model/box_head/{kind}_kernel/.ATTRIBUTES/VARIABLE_VALUE")
        shares[kind] = explained_share(rows[1:].reshape(len(names), -1), factors)
    return shares


def table(evaluations: dict[str, dict]) -> str:
    """Mask AP of every row, in percent, and the gain of Mask^X over the baseline on B."""
    lines = [f"{'':25}{'mask AP':>16}{'given boxes':>18}", f"{'':25}" + f"{'A':>9}{'B':>9}" * 2]
    for row, result in evaluations.items():
        values = [result[s][c]["AP"] for s in ("mask", "mask_given_boxes") for c in ("A", "B")]
        lines.append(f"{ROWS[row]:25}" + "".join(f"{100 * value:9.1f}" for value in values))
    if {"cls_box", "class_agnostic"} <= set(evaluations):
        lines.append(
            f"Gain of Mask^X on B, classes without any mask: {100 * gain(evaluations):+.0f} %"
        )
    return "\n".join(lines)


def gain(evaluations: dict[str, dict]) -> float:
    """Relative gain of Mask^X over the class-agnostic baseline in mask AP on B."""
    ours, baseline = (evaluations[r]["mask"]["B"]["AP"] for r in ("cls_box", "class_agnostic"))
    return ours / baseline - 1.0


def report(plans: list[Plan]) -> str:
    """Tables of all seeds, and their mean gain where there are several."""
    parts = []
    for plan in plans:
        shares = weight_shares(plan)
        explained = ", ".join(f"w_{kind} {share:.2f}" for kind, share in shares.items())
        parts.append(
            f"Seed {plan.seed} (share of the class weights that shape and texture explain: "
            f"{explained})\n{table(results(plan))}"
        )
    if len(plans) > 1:
        gains = [100 * gain(results(plan)) for plan in plans]
        parts.append(
            f"Gain of Mask^X on B over {len(plans)} seeds: mean {np.mean(gains):+.0f} %, "
            f"from {min(gains):+.0f} to {max(gains):+.0f} %"
        )
    return "\n\n".join(parts)


def define_flags() -> None:
    """Defines this command's flags."""
    flags.DEFINE_string("output_dir", "runs/demo", "Where data, models and pictures go.")
    flags.DEFINE_list("seeds", ["0"], "Seeds of data and training; everything is run for each.")
    flags.DEFINE_bool("oracle", False, "Also train the oracle, with the masks of all classes.")


def main() -> None:
    """Runs the demo and says what came out and where it is."""
    started = time.monotonic()
    output = pathlib.Path(flags.FLAGS.output_dir)
    rows = tuple(row for row in ROWS if row != "oracle" or flags.FLAGS.oracle)
    plans = []
    for seed in flags.FLAGS.seeds:
        if not seed.isdecimal():
            raise UserError(f"--seeds: {seed!r} is not a whole number from 0 on.")
        plans.append(Plan(output / f"seed{seed}", int(seed), rows))
        execute(plans[-1].steps())
    text = report(plans)
    write_atomically(output / "results.txt", text + "\n")
    first = plans[0]
    print(
        f"\n{text}\n\n"
        f"Masks of set A were trained on, masks of set B never seen. "
        f"{format_duration(time.monotonic() - started)} in all.\n"
        f"  pictures     {first.directory / 'pictures'}  (A green, B red)\n"
        f"  SavedModel   {first.directory / 'saved_model'}\n"
        f"  TensorBoard  tensorboard --logdir={output}\n"
        f"  results      {output / 'results.txt'}"
    )


if __name__ == "__main__":
    define_flags()
    cli.run(main)
