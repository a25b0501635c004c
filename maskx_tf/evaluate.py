"""Computes box and mask AP of a trained or an exported model, for A, B and all classes.

With --results or --given_box_results, what another tool wrote is scored in the same way.

Example:
  maskx evaluate --model_dir=runs/mine --per_class
"""

from __future__ import annotations

import dataclasses
import pathlib

from absl import flags, logging

from maskx_tf import checkpoints
from maskx_tf import config as config_lib
from maskx_tf.config import Config
from maskx_tf.errors import UserError
from maskx_tf.evaluation import checkpoint as scoring
from maskx_tf.evaluation import coco, controls, curves, report, results_file
from maskx_tf.inference import mask_post, tiling
from maskx_tf.system import cli
from maskx_tf.system.files import require_writable_file, write_atomically
from maskx_tf.training import devices

_OF_RUNS = ("model_dir", "checkpoint", "masks", "kernels")
_OF_MODELS = (*_OF_RUNS, "saved_model", "mask_post", "tile")
OWN = ("model", "none", controls.OWN)  # masks of the model as it is


def define_flags() -> None:
    """Defines the configuration's flags and this command's own."""
    config_lib.define_flags(shown=scoring.changeable())
    flags.DEFINE_string("checkpoint", "", "Checkpoint to evaluate; empty: the latest of model_dir.")
    flags.DEFINE_string("saved_model", "", "Exported model to evaluate instead.")
    flags.DEFINE_bool("per_class", False, "Also print the AP of every class.")
    flags.DEFINE_bool(
        "errors",
        False,
        "Also sort the errors by kind (TIDE), and write a page that shows what they cost and the "
        "images with the worst: MODEL_DIR/evaluation.html.",
    )
    flags.DEFINE_enum(
        "masks",
        "model",
        scoring.MASKS,
        "What segments the detected boxes; box, ellipse: nothing, the mask is the box or the "
        "ellipse in it.",
    )
    mask_post.define_flags()
    tiling.define_flags()
    flags.DEFINE_enum(
        "kernels",
        controls.OWN,
        list(controls.KERNELS),
        "Mask kernels of the classes of B: T's; as controls those of other classes of B, or the "
        "mean of A's.",
    )
    flags.DEFINE_string(
        "output",
        "",
        "Result file; empty: MODEL_DIR/evaluation.json, with what is not the model's own in its "
        "name, as in evaluation_grabcut.json.",
    )
    flags.DEFINE_enum(
        "engine", "faster_coco_eval", list(coco.ENGINES), "Implementation of the COCO metrics."
    )
    flags.DEFINE_string(
        "results",
        "",
        "COCO json of detections of any tool, to be scored in place of a model's; with "
        "--eval_records and --mask_classes.",
    )
    flags.DEFINE_string(
        "given_box_results",
        "",
        "COCO json of masks that any tool made for the boxes of the ground truth.",
    )
    flags.DEFINE_string(
        "annotations", "", "COCO json of the same images: exact masks instead of the records'."
    )


def evaluation_config(trained: Config, values: flags.FlagValues = flags.FLAGS) -> Config:
    """The trained configuration with the data and test options given on the command line.

    Options that would change the trained model are kept as trained; a warning names them.
    """

    def changed(**given) -> Config:  # checked beside the trained ones, not beside the defaults
        changes, ignored = {}, []
        for field in dataclasses.fields(Config):
            value = given[field.name]
            if not values[field.name].present or value == getattr(trained, field.name):
                continue
            if field.metadata["at_test"] == "as_trained":
                ignored.append(f"--{field.name}={getattr(trained, field.name)}")
            else:
                changes[field.name] = value
        if ignored:
            logging.warning("Options of the trained model kept: %s", " ".join(ignored))
        return trained.replace(**changes)

    return config_lib.from_flags(values, changed)


def main() -> None:
    """Evaluates, prints the table, writes the json file."""
    if flags.FLAGS.results or flags.FLAGS.given_box_results:
        _evaluate_results()
        return
    values = flags.FLAGS
    run = values.checkpoint or values.model_dir
    if not (run or values.saved_model):
        raise UserError("--model_dir=DIRECTORY is needed: the run to evaluate.")
    common = {
        "annotations": values.annotations,
        "crf": mask_post.from_flags(values),
        "engine": values.engine,
        "per_class": True,
        "error_page": values.errors,
        "tiling": tiling.from_flags(values),
    }
    chosen = [values.masks, values.mask_post, values.kernels]
    chosen += [f"tile{values.tile}"] if values.tile else []
    name = "_".join(["evaluation", *(word for word in chosen if word not in OWN)])
    if values.saved_model:
        given = [n for n in (*_OF_RUNS, *_of_detections()) if values[n].present]
        if given:
            raise UserError(f"--{given[0]} is of a run; leave it out with --saved_model.")
        output, picture = _outputs(pathlib.Path(values.saved_model) / f"{name}.json")
        config = config_lib.from_flags(values)
        evaluation = scoring.evaluate_export(values.saved_model, config, **common)
    else:
        default = pathlib.Path(checkpoints.latest_checkpoint(run)).parent / f"{name}.json"
        output, picture = _outputs(default)
        if values["num_gpus"].present:  # not as trained: this may be another machine
            devices.use_gpus(values.num_gpus)
        evaluation = scoring.evaluate(
            run, evaluation_config, masks=values.masks, kernels=values.kernels, **common
        )
    _report(evaluation, output, picture)


def _of_detections() -> tuple[str, ...]:
    """Options that an export cannot change any more."""
    return config_lib.names(at_test="detections")


def _evaluate_results() -> None:
    """Scores files of results, without a model."""
    values = flags.FLAGS
    files = [name for name in (values.results, values.given_box_results) if name]
    given = [name for name in _OF_MODELS if values[name].present]
    if given:
        raise UserError(f"--{given[0]} is of a model; leave it out where files are scored.")
    if values.errors and not values.results:
        raise UserError("--errors is about detections: give --results=FILE.")
    path = pathlib.Path(files[0])
    output, picture = _outputs(path.with_name(f"{path.stem}_evaluation.json"))
    evaluation = results_file.evaluate(
        values.results,
        values.given_box_results,
        config_lib.from_flags(values),
        annotations=values.annotations,
        engine=values.engine,
        error_page=values.errors,
    )
    _report(evaluation, output, picture)


def _outputs(default: pathlib.Path) -> tuple[str, pathlib.Path]:
    """The json file and the picture beside it, which both can be written."""
    output = flags.FLAGS.output or str(default)
    picture = pathlib.Path(output).with_suffix(".png")
    if picture == pathlib.Path(output):
        raise UserError(f"--output={output} is the name of the picture beside it; end it in .json.")
    require_writable_file(output, f"--output={output}")
    return output, picture


def _report(evaluation: scoring.Evaluation, output: str, picture: pathlib.Path) -> None:
    """Writes the results and prints them."""
    names = evaluation.mask_classes
    rest = evaluation.num_classes - len(names)
    of_what = {
        "checkpoint": evaluation.checkpoint,
        "mask_classes": names,
        "ground_truth": evaluation.ground_truth,
    }
    report.write_json({**of_what, **evaluation.results}, output)
    write_atomically(picture, curves.draw(evaluation.curves))
    print(f"{evaluation.checkpoint}; A: {len(names)} classes with masks, B: {rest} without")
    listed = set(names) if flags.FLAGS.per_class else None
    print(report.format_table(evaluation.results, listed))
    written = [output, str(picture)]
    if evaluation.error_page:
        written.append(str(pathlib.Path(output).with_suffix(".html")))
        write_atomically(written[-1], evaluation.error_page)
        print(f"\n{report.format_errors(evaluation.results['errors'])}")
    print(f"written: {', '.join(written)}")


if __name__ == "__main__":
    define_flags()
    cli.run(main)
