"""Makes runs one after the other in one process, so that the start of TensorFlow is paid once.

`python -m maskx_tf.study.worker --group=GROUP.json` is what `execution` starts; the file has
"deadline" (seconds since 1970, or null: no run is begun after it) and "entries". An entry has
"result", the file to write, {"digest", "splits", "seconds", "evaluations": {split: `compact` of
`CocoEvaluator.evaluate`}}; "digest", of its run; "splits", {name: --mask_classes}; and either
"flagfile" (the effective options of a training) with "cache" and "evaluation_cache" (directories
for --feature_cache, or "") or "evaluate", {split: arguments of maskx_tf.evaluate, --output last}.
"""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import time
from collections.abc import Collection

import tf_keras
from absl import flags

from maskx_tf import checkpoints, training
from maskx_tf import config as config_lib
from maskx_tf.data.classes import Vocabulary, load_mask_classes
from maskx_tf.data.records.reader import reading_errors
from maskx_tf.errors import UserError
from maskx_tf.evaluation import runner
from maskx_tf.study import store
from maskx_tf.system import cli
from maskx_tf.system.files import write_atomically
from maskx_tf.system.interruption import Interruption


def main() -> None:
    """Makes every result of the group that is not there yet; ends on SIGTERM, as does its child."""
    with Interruption().handled():
        _make_all()


def _make_all() -> None:
    group = json.loads(pathlib.Path(flags.FLAGS.group).read_text())
    for entry in group["entries"]:
        if store.is_result(pathlib.Path(entry["result"]), entry["digest"], entry["splits"]):
            continue
        if group["deadline"] and time.time() > group["deadline"]:
            return
        started = time.monotonic()
        evaluations = _evaluate_alone(entry) if "evaluate" in entry else _train(entry)
        seconds = time.monotonic() - started
        result = {
            "digest": entry["digest"],
            "splits": entry["splits"],
            "seconds": seconds,
            "evaluations": evaluations,
        }
        write_atomically(entry["result"], json.dumps(result))
        tf_keras.backend.clear_session()


def _train(entry: dict) -> dict[str, dict]:
    config = config_lib.read_flagfile(entry["flagfile"])
    splits = entry["splits"]
    # The evaluation at the end of training has the set A of the training.
    records = config.eval_records if list(splits.values()) == [config.mask_classes] else ()
    trained = training.train(config.replace(feature_cache=entry["cache"], eval_records=records))
    if trained:
        return {next(iter(splits)): compact(trained, set_a_of(config.model_dir))}
    if not splits:
        return {}
    model, _, vocabulary, _ = checkpoints.load_model(config.model_dir)
    options = config.replace(feature_cache=entry["evaluation_cache"])
    evaluations = {}
    for name, mask_classes in splits.items():
        class_ids = load_mask_classes(mask_classes, vocabulary)
        with reading_errors(options.eval_records):
            evaluator = runner.ModelEvaluator(model, options, vocabulary, class_ids)
            evaluation = evaluator.evaluate(per_class=True)
            evaluations[name] = compact(evaluation, vocabulary.names_of(class_ids))
    return evaluations


def set_a_of(model_dir: str) -> list[str]:
    """Names of the classes whose masks a run has used."""
    vocabulary = Vocabulary.load(f"{model_dir}/{checkpoints.VOCABULARY}")
    return vocabulary.names_of(checkpoints.load_set_a(pathlib.Path(model_dir), vocabulary))


def compact(evaluation: dict, mask_classes: Collection[str]) -> dict:
    """An evaluation with the scores of single classes as lists.

    Args:
      evaluation: of `CocoEvaluator.evaluate(per_class=True)`, or what evaluate.py writes of it.
      mask_classes: names of set A.

    Returns:
      Its sections without "per_class" and "iou_per_class"; in their place, "classes": {"A", "B":
      {"AP" of masks, "IoU" in given boxes, "AP_given" in given boxes: values in the order of the
      classes, to four digits}}.
    """
    sections = {
        name: {key: value for key, value in part.items() if not key.endswith("per_class")}
        for name, part in evaluation.items()
        if isinstance(part, dict)
    }
    mask, given = evaluation.get("mask", {}), evaluation.get("mask_given_boxes", {})
    of_class = {
        "AP": mask.get("per_class", {}),
        "AP_given": given.get("per_class", {}),
        "IoU": given.get("iou_per_class", {}),
    }

    def listed(metric: dict, is_of_a: bool) -> list[float | None]:
        chosen = [value for name, value in metric.items() if (name in mask_classes) == is_of_a]
        return [None if value is None else round(value, 4) for value in chosen]

    sections["classes"] = {
        subset: {name: listed(metric, subset == "A") for name, metric in of_class.items()}
        for subset in ("A", "B")
    }
    return sections


def _evaluate_alone(entry: dict) -> dict[str, dict]:
    evaluations = {}
    for name, arguments in entry["evaluate"].items():
        output = pathlib.Path(arguments[-1].removeprefix("--output="))
        command = [sys.executable, "-m", "maskx_tf.evaluate", *arguments]
        if subprocess.run(command).returncode:
            raise UserError(f"failed: maskx evaluate {' '.join(arguments)}")
        evaluation = json.loads(output.read_text())
        if "mask" not in evaluation:
            raise UserError(
                f"{' '.join(arguments)}: the detector has no masks to score; have them made by "
                '"--masks=grabcut" among the options that the row lists as `evaluate`.'
            )
        evaluations[name] = compact(evaluation, evaluation["mask_classes"])
    return evaluations


if __name__ == "__main__":
    flags.DEFINE_string("group", None, "The file that says what to make.", required=True)
    cli.run(main)
