"""All results of a study for TensorBoard's HParams tab, those of other machines too."""

from __future__ import annotations

import shutil

from maskx_tf.evaluation import report
from maskx_tf.study.plan import Plan
from maskx_tf.study.store import Results
from maskx_tf.training import tensorboard_hparams


def write(plan: Plan, results: Results) -> None:
    """Writes `runs/study_NAME/tensorboard` anew: a run for each result and split."""
    directory = plan.study.runs_dir / "tensorboard"
    shutil.rmtree(directory, ignore_errors=True)
    current = results.current(plan.runs).runs
    for run in plan.runs:
        if run.key not in current:
            continue
        for split, evaluation in current[run.key]["evaluations"].items():
            values: dict[str, tensorboard_hparams.Value] = {"row": run.row.name, "split": split}
            values |= (
                tensorboard_hparams.of_config(run.config) if run.config else {"seed": run.seed}
            )
            place = directory / f"seed{run.seed}" / split / run.row.name
            tensorboard_hparams.write(place, values, report.scalars(evaluation))
