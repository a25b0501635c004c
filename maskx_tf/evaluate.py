"""Entry point: box and mask AP of a trained model (`python -m maskx_tf.evaluate --model_dir=…`)."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib

from absl import flags, logging

from maskx_tf import checkpoints
from maskx_tf import config as config_lib
from maskx_tf.config import Config
from maskx_tf.data import classes
from maskx_tf.data.records.reader import reading_errors
from maskx_tf.errors import UserError
from maskx_tf.evaluation import coco, curves, report, runner
from maskx_tf.evaluation.grabcut import GrabCutMasks
from maskx_tf.evaluation.ground_truth import ground_truth_from_json
from maskx_tf.model import rebuilt
from maskx_tf.system import cli
from maskx_tf.system.files import require_writable_file, write_atomically

OUTPUTS = {"model": "evaluation.json", "grabcut": "evaluation_grabcut.json"}


def define_flags() -> None:
    """Defines the configuration's flags and this command's own."""
    config_lib.define_flags(shown=_changeable())
    flags.DEFINE_string("checkpoint", "", "Checkpoint to evaluate; empty: the latest of model_dir.")
    flags.DEFINE_bool("per_class", False, "Also print and write the AP of every class.")
    flags.DEFINE_enum("masks", "model", list(OUTPUTS), "What segments the detected boxes.")
    flags.DEFINE_string(
        "output", "", "Result file; empty: MODEL_DIR/evaluation.json, or evaluation_grabcut.json."
    )
    flags.DEFINE_enum(
        "engine", "faster_coco_eval", list(coco.ENGINES), "Implementation of the COCO metrics."
    )
    flags.DEFINE_string(
        "annotations", "", "COCO json of the same images: exact masks instead of the records'."
    )


def _changeable() -> tuple[str, ...]:
    """What may differ from the training run; every other option stays as it was trained."""
    return config_lib.names(at_test="data") + config_lib.names(at_test="detections")


def evaluation_config(trained: Config, values: flags.FlagValues = flags.FLAGS) -> Config:
    """The trained configuration with the data and test options given on the command line.

    Options that would change the trained model are kept as trained; a warning names them.
    """
    given = config_lib.from_flags(values)
    changes, ignored = {}, []
    for field in dataclasses.fields(Config):
        value = getattr(given, field.name)
        if not values[field.name].present or value == getattr(trained, field.name):
            continue
        if field.metadata["at_test"] == "as_trained":
            ignored.append(f"--{field.name}={getattr(trained, field.name)}")
        else:
            changes[field.name] = value
    if ignored:
        logging.warning("Options of the trained model kept: %s", " ".join(ignored))
    return trained.replace(**changes)


def main() -> None:
    """Evaluates, prints the table, writes the json file."""
    run = flags.FLAGS.checkpoint or flags.FLAGS.model_dir
    if not run:
        raise UserError("--model_dir=DIRECTORY is needed: the run to evaluate.")
    checkpoint = checkpoints.latest_checkpoint(run)
    default = pathlib.Path(checkpoint).parent / OUTPUTS[flags.FLAGS.masks]
    output = flags.FLAGS.output or str(default)
    picture = pathlib.Path(output).with_suffix(".png")
    if picture == pathlib.Path(output):
        raise UserError(f"--output={output} is the name of the picture beside it; end it in .json.")
    require_writable_file(output, f"--output={output}")
    model, trained, vocabulary, mask_class_ids = checkpoints.load_model(checkpoint)
    config = evaluation_config(trained)
    of_detections = config_lib.names(at_test="detections")
    if any(getattr(config, name) != getattr(trained, name) for name in of_detections):
        model = rebuilt(model, config)
    if config.mask_classes != trained.mask_classes:
        mask_class_ids = classes.load_mask_classes(config.mask_classes, vocabulary)
    annotations = flags.FLAGS.annotations
    ground_truth = ground_truth_from_json(annotations, vocabulary) if annotations else None
    by_grabcut = flags.FLAGS.masks == "grabcut"
    with (
        reading_errors(),
        GrabCutMasks(config.eval_records) if by_grabcut else contextlib.nullcontext() as segment,
    ):
        evaluator = runner.ModelEvaluator(
            model,
            config,
            vocabulary,
            mask_class_ids,
            ground_truth=ground_truth,
            engine=flags.FLAGS.engine,
            segment=segment,
        )
        results = evaluator.evaluate(flags.FLAGS.per_class, progress=True)
    names = [vocabulary.names[class_id - 1] for class_id in mask_class_ids]
    rest = vocabulary.num_classes - len(names)
    print(f"{checkpoint}; A: {len(names)} classes with masks, B: {rest} without")
    print(report.format_table(results, set(names)))
    of_what = {
        "checkpoint": checkpoint,
        "mask_classes": names,
        "ground_truth": annotations or list(config.eval_records),
    }
    report.write_json({**of_what, **results}, output)
    write_atomically(picture, curves.draw(evaluator.curves))
    print(f"written: {output}, {picture}")


if __name__ == "__main__":
    define_flags()
    cli.run(main)
