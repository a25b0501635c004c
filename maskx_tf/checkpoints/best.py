"""The best checkpoint of a run, by a metric of its evaluations: `RUN/best`, a model directory.

An evaluation that is cut off is made anew when the run goes on, and gives the same. So what is
written here follows from the steps evaluated alone, however often the run was killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
from collections.abc import Mapping

from maskx_tf.checkpoints.listing import BEST, LIST, files_of, steps_of
from maskx_tf.checkpoints.model_dir import save_run
from maskx_tf.config import Config
from maskx_tf.data.classes import Vocabulary
from maskx_tf.errors import UserError, first_of
from maskx_tf.system.files import write_atomically

HISTORY = "best.json"  # the metric's name, and its value at each step evaluated


def update(
    config: Config,
    vocabulary: Vocabulary,
    mask_class_ids: tuple[int, ...],
    step: int,
    scalars: Mapping[str, float],
) -> None:
    """Takes an evaluation of a step whose checkpoint is there; keeps the checkpoint if it is best.

    Of equal values the first step's is best.

    Args:
      config: of the run; `keep_best` names the metric.
      vocabulary: its classes.
      mask_class_ids: set A.
      step: that was evaluated.
      scalars: as of `report.scalars`.

    Raises:
      UserError: the evaluation does not have the metric.
    """
    directory = pathlib.Path(config.model_dir, BEST)
    value = _value(config.keep_best, scalars)
    values = _read(config)
    best = _best_of(values)
    # Who went back to an earlier checkpoint evaluates later steps anew; the best one stays.
    values = {at: old for at, old in values.items() if at < step or at == best} | {step: value}
    if _best_of(values) == step:
        own = config.replace(model_dir=str(directory), feature_cache="")
        save_run(own, vocabulary, mask_class_ids)
        _keep(pathlib.Path(config.model_dir), directory, step)
    content = {"metric": config.keep_best, "values": {str(at): values[at] for at in sorted(values)}}
    write_atomically(directory / HISTORY, json.dumps(content, indent=1) + "\n")


def is_exhausted(config: Config) -> bool:
    """Whether the last `patience` evaluations of a run were all no better than one before them."""
    values = _read(config)
    best = _best_of(values)
    return bool(config.patience) and sum(step > (best or 0) for step in values) >= config.patience


def is_finished(config: Config) -> bool:
    """Whether a run is trained to its last step, or ended before by its patience."""
    last = pathlib.Path(config.model_dir, f"ckpt-{config.train_steps}.index")
    return last.is_file() or is_exhausted(config)


def _value(name: str, scalars: Mapping[str, float]) -> float:
    """The metric of a name such as mask_ap_b."""
    parts = (key.split("/") for key in scalars)  # section, subset, metric
    values = {
        f"{section}_{metric}_{subset}".lower(): scalars[f"{section}/{subset}/{metric}"]
        for section, subset, metric in parts
    }
    if name not in values:
        raise UserError(
            f"--keep_best={name} is no value of the evaluations of this run, which are "
            f"{first_of(sorted(values), 12)}. Without objects to compare with a value is undefined."
        )
    return values[name]


def _read(config: Config) -> dict[int, float]:
    """The values of the evaluations so far; none if they are of another metric."""
    try:
        content = json.loads(pathlib.Path(config.model_dir, BEST, HISTORY).read_bytes())
        is_same = content["metric"] == config.keep_best
        return {int(step): float(value) for step, value in content["values"].items() if is_same}
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _best_of(values: Mapping[int, float]) -> int | None:
    return min(values, key=lambda step: (-values[step], step), default=None)


def _keep(run: pathlib.Path, directory: pathlib.Path, step: int) -> None:
    """Puts a checkpoint of a run into a directory in place of the one there.

    The list, which says which it is, comes after the new files and before the old ones go.
    """
    for source in sorted(files_of(run, step), key=lambda path: path.suffix == ".index"):
        target = directory / source.name
        target.unlink(missing_ok=True)
        try:
            os.link(source, target)
        except OSError:  # a file system without links
            shutil.copyfile(source, target)
    lines = [f'model_checkpoint_path: "ckpt-{step}"', f'all_model_checkpoint_paths: "ckpt-{step}"']
    write_atomically(directory / LIST, "\n".join(lines) + "\n")
    for old in steps_of(directory):
        for path in files_of(directory, old) if old != step else []:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
