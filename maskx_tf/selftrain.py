"""Trains a run again with its own masks of the classes that had none, in rounds.

Each round is three commands, which are printed: `maskx records label` writes the run's records
anew, with masks in the boxes that have none, of which those stay whose own box agrees with the
given one; `maskx train` trains from the run's own start on them; `maskx evaluate` scores the
result, A and B as before. The next round labels with the model of the last. Repeating the command
resumes.

Example:
  maskx selftrain --model_dir=runs/mine --output_dir=runs/mine_selftrain
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

from absl import flags

from maskx_tf import checkpoints
from maskx_tf import config as config_lib
from maskx_tf.checkpoints import best
from maskx_tf.config import Config
from maskx_tf.data.classes import Vocabulary
from maskx_tf.data.records.manifest import Manifest
from maskx_tf.errors import UserError
from maskx_tf.evaluation.report import EMPTY, percent
from maskx_tf.inference import mask_post
from maskx_tf.labeling import of_records
from maskx_tf.labeling.objects import OURS
from maskx_tf.labeling.of_records import labelled_and_kept
from maskx_tf.system import cli, subcommand
from maskx_tf.system.files import require_writable, write_atomically

_WORST = 8  # classes that the table names
_SECTIONS = ("mask", "mask_given_boxes")


class Rounds:
    """The rounds of a run.

    Args:
      model_dir: the run.
      output_dir: where to; round0 has the run's own evaluation, round1 and on records and runs.
      label_flags: further options of `maskx records label`.

    Raises:
      UserError: it is no run with masks, it was trained on no records, or it has no set B.
    """

    def __init__(self, model_dir: str, output_dir: str, label_flags: list[str]):
        self._config = config_lib.load(model_dir)
        self._model_dir, self._label_flags = model_dir, label_flags
        self._output = pathlib.Path(output_dir)
        vocabulary = Vocabulary.load(str(pathlib.Path(model_dir) / checkpoints.VOCABULARY))
        ids = checkpoints.load_set_a(pathlib.Path(model_dir), vocabulary)
        self._names, self._set_a = vocabulary.names, vocabulary.names_of(ids)
        if not self._config.has_masks:
            raise UserError(f"{model_dir} detects boxes only (--mode=stage1_boxes).")
        if not self._config.train_records:
            raise UserError(f"{model_dir} was trained on a dataset, not on records to label.")
        if len(ids) == vocabulary.num_classes:
            raise UserError(
                f"{model_dir} was trained with masks of all {len(ids)} classes (--mask_classes): "
                "there is no class without masks to label."
            )
        require_writable(output_dir, f"--output_dir={output_dir}")
        self._set_a_file = self._write_names("set_a.txt", self._set_a) if ids else "none"

    def _write_names(self, name: str, names: list[str]) -> str:
        path = self._output / name
        write_atomically(path, "\n".join(names) + "\n")
        return str(path)

    def first(self) -> dict[str, Any]:
        """What there is before: the run's evaluation."""
        evaluation = self._evaluate(self._model_dir, self._output / "round0")
        return {"round": 0, "model_dir": self._model_dir, "evaluation": evaluation}

    def make(self, number: int) -> dict[str, Any]:
        """Makes a round, as far as it is not there; those before it are."""
        directory = self._output / f"round{number}"
        last = self._output / f"round{number - 1}" / "run"
        records, sources = directory / "records", self._config.mask_sources
        subcommand.run(
            "tf_records.label",
            f"--records={config_lib.text_of(self._config.train_records)}",
            f"--model_dir={last if number > 1 else self._model_dir}",
            f"--mask_classes={self._set_a_file}",
            f"--mask_sources={config_lib.text_of(sources)}",
            f"--output_dir={records}",
            "--reuse",
            *self._label_flags,
        )
        classes = labelled_and_kept(Manifest.load(records))
        names = {*self._set_a, *(name for name, (_, kept) in classes.items() if kept)}
        in_order = [name for name in self._names if name in names]
        file = self._write_names(f"round{number}/mask_classes.txt", in_order)
        self._train(
            self._config.replace(
                model_dir=str(directory / "run"),
                train_records=(str(records),),
                mask_classes=file,
                mask_sources=(*sources, OURS) if sources else (),
                eval_records=(),  # which are evaluated below, for another A and B
                feature_cache="",
            ),
            directory / "options.flags",
        )
        return {
            "round": number,
            "model_dir": str(directory / "run"),
            "boxes_and_masks": classes,
            "evaluation": self._evaluate(str(directory / "run"), directory),
        }

    def _train(self, config: Config, flagfile: pathlib.Path) -> None:
        if best.is_finished(config) and config_lib.load(config.model_dir) == config:
            return
        write_atomically(flagfile, config_lib.to_text(config))
        subcommand.run("maskx_tf.train", f"--flagfile={flagfile}")

    def _evaluate(self, model_dir: str, directory: pathlib.Path) -> dict[str, Any]:
        """AP of the run's latest checkpoint on A and B of before; empty without eval_records."""
        if not self._config.eval_records:
            return {}
        output = directory / "evaluation.json"
        checkpoint = checkpoints.latest_checkpoint(model_dir)
        if not output.is_file() or json.loads(output.read_text())["checkpoint"] != checkpoint:
            subcommand.run(
                "maskx_tf.evaluate",
                f"--model_dir={model_dir}",
                f"--eval_records={config_lib.text_of(self._config.eval_records)}",
                f"--mask_classes={self._set_a_file}",
                f"--output={output}",
            )
        results = json.loads(output.read_text())
        return {
            section: {subset: results[section][subset] for subset in ("A", "B")}
            for section in _SECTIONS
            if section in results
        }


def table(rounds: list[dict[str, Any]]) -> str:
    """The rounds with their masks and AP in percent, and the classes that kept the fewest masks.

    Args:
      rounds: as of `Rounds.first` and `Rounds.make`.
    """
    lines = [f"{'':29}{'mask AP':>14}{'given boxes':>16}", f"round{'masks kept':>24}"]
    lines[1] += f"{'A':>7}{'B':>7}" + f"{'A':>9}{'B':>7}"
    for row in rounds:
        boxes, kept = _totals(row.get("boxes_and_masks", {}))
        of_boxes = f"{kept} of {boxes} ({kept / boxes:.0%})" if boxes else EMPTY
        evaluation = row["evaluation"]
        values = [
            percent(evaluation[section][subset]["AP"]) if section in evaluation else EMPTY
            for section in _SECTIONS
            for subset in ("A", "B")
        ]
        lines.append(f"{row['round']:>5}{of_boxes:>24}" + "{:>7}{:>7}{:>9}{:>7}".format(*values))
    shares = {
        name: (kept / boxes, kept, boxes)
        for name, (boxes, kept) in rounds[-1]["boxes_and_masks"].items()
    }
    worst = sorted(shares, key=lambda name: shares[name])[:_WORST]
    listed = ", ".join(
        f"{name} {shares[name][1]} of {shares[name][2]} ({shares[name][0]:.0%})" for name in worst
    )
    return "\n".join([*lines, f"Fewest masks kept in the last round: {listed}"])


def _totals(classes: dict[str, tuple[int, int]]) -> tuple[int, int]:
    return sum(boxes for boxes, _ in classes.values()), sum(kept for _, kept in classes.values())


def define_flags() -> None:
    """Defines this command's flags."""
    flags.DEFINE_string("model_dir", None, "The run, trained with masks of set A.", required=True)
    flags.DEFINE_string("output_dir", None, "Where rounds go.", required=True)
    flags.DEFINE_integer("rounds", 1, "How many rounds there are to be.", lower_bound=1)
    of_records.define_flags()


def main() -> None:
    """Makes the rounds and prints their table."""
    values = flags.FLAGS
    mask_post.from_flags(values)  # refuses what is out of range before hours of work
    given = [name for name in of_records.OPTIONS if values[name].present]
    label_flags = [f"--{name}={values[name].value}" for name in given]
    rounds = Rounds(values.model_dir, values.output_dir, label_flags)
    rows = [rounds.first()]
    rows += [rounds.make(number) for number in range(1, values.rounds + 1)]
    output = pathlib.Path(values.output_dir) / "selftrain.json"
    write_atomically(output, json.dumps(rows, indent=1) + "\n")
    print(f"\n{table(rows)}\nwritten: {output}")


if __name__ == "__main__":
    define_flags()
    cli.run(main)
