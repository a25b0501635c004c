"""Scores a checkpoint or an export, for the command `maskx_tf.evaluate` and `mx.evaluate`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from maskx_tf import checkpoints
from maskx_tf import config as config_lib
from maskx_tf.assembly import rebuilt
from maskx_tf.config import Config
from maskx_tf.data import classes
from maskx_tf.data.classes import Vocabulary
from maskx_tf.data.coco.objects import AS_OBJECTS, IGNORED
from maskx_tf.data.records import index, manifest
from maskx_tf.data.records.reader import reading_errors
from maskx_tf.errors import UserError
from maskx_tf.evaluation import coco, controls, runner
from maskx_tf.evaluation import detector as scoring
from maskx_tf.evaluation import error_page as error_pages
from maskx_tf.evaluation.ground_truth import ground_truth_from_json
from maskx_tf.evaluation.record_images import RecordImages
from maskx_tf.evaluation.segmentation import Segment, by_crf, by_grabcut, by_shape
from maskx_tf.inference import detector
from maskx_tf.inference.tiling import Tiling
from maskx_tf.ops import dense_crf

MASKS = ("model", "grabcut", "box", "ellipse")  # what segments the detected boxes


def changeable() -> tuple[str, ...]:
    """The options that may differ from the training run; all others stay as it was trained."""
    return config_lib.names(at_test="data") + config_lib.names(at_test="detections")


class Evaluation(NamedTuple):
    """An evaluation.

    Attributes:
      checkpoint: the one that was scored, or the file of another tool's results.
      results: as of `runner.ModelEvaluator.evaluate`.
      curves: as of `coco.CocoEvaluator`.
      mask_classes: names of set A.
      num_classes: K.
      ground_truth: the json or the records that the model was compared with.
      error_page: HTML that shows the errors; empty unless asked for.
    """

    checkpoint: str
    results: dict
    curves: dict[str, dict[str, np.ndarray]]
    mask_classes: list[str]
    num_classes: int
    ground_truth: str | list[str]
    error_page: str = ""


def evaluate(
    run: str,
    change: Callable[[Config], Config],
    *,
    annotations: str = "",
    masks: str = "model",
    kernels: str = controls.OWN,
    crf: dense_crf.Parameters | None = None,
    engine: str = "faster_coco_eval",
    per_class: bool = False,
    error_page: bool = False,
    tiling: Tiling | None = None,
    progress: bool = True,
) -> Evaluation:
    """Scores a run's latest checkpoint, or one that is named, on `eval_records`.

    Args:
      run: a run's directory or a checkpoint in one.
      change: the options it was trained with -> those to evaluate with, which differ in
        `changeable` ones only.
      annotations: COCO json of the same images: exact masks instead of the records'.
      masks: one of `MASKS`.
      kernels: of the classes of B, one of `controls.KERNELS`.
      crf: refines the model's masks.
      engine: one of `coco.ENGINES`.
      per_class: also list the AP of every class.
      error_page: also sort the errors by kind, as "errors" of the results, and show them.
      tiling: look at the images in tiles, in their own size.
      progress: show a progress bar.

    Raises:
      UserError: the checkpoint, the records or the json cannot be used.
    """
    if masks not in MASKS:
        raise UserError(f"--masks={masks} is not one of: {', '.join(MASKS)}.")
    if crf and masks != "model":
        raise UserError(f"--mask_post=crf refines the model's masks; leave out --masks={masks}.")
    checkpoint, loaded = checkpoints.load_latest(run)
    model, trained, vocabulary, mask_class_ids = loaded
    config = change(trained)
    if crf:
        checkpoints.require_masks(loaded, run)
    of_detections = config_lib.names(at_test="detections")
    if any(getattr(config, name) != getattr(trained, name) for name in of_detections):
        model = rebuilt(model, config)
    if config.mask_classes != trained.mask_classes:
        mask_class_ids = classes.load_mask_classes(config.mask_classes, vocabulary)
    if kernels != controls.OWN:
        controls.replace_kernels(model, kernels, mask_class_ids, config.seed)
    ground_truth = exact_ground_truth(annotations, config, vocabulary) if annotations else None
    with (
        reading_errors(config.eval_records),
        _segment(model.conventions.paste_whole_pixels, config, masks, crf) as segment,
    ):
        if tiling:
            changed = checkpoints.LoadedModel(model, config, vocabulary, tuple(mask_class_ids))
            evaluator = scoring.evaluate(
                detector.of_model(changed, checkpoint),
                runner.records_of(config),
                mask_class_ids,
                ground_truth=ground_truth,
                engine=engine,
                tiling=tiling,
                segment=segment,
                progress=progress,
            )
            results = evaluator.evaluate(per_class)
        else:
            of_model = runner.ModelEvaluator(
                model,
                config,
                vocabulary,
                mask_class_ids,
                ground_truth=ground_truth,
                engine=engine,
                segment=segment,
            )
            results = of_model.evaluate(per_class, progress)
            assert of_model.evaluator
            evaluator = of_model.evaluator
    return report_of(checkpoint, evaluator, results, vocabulary, config, annotations, error_page)


def evaluate_export(
    path: str,
    config: Config,
    *,
    annotations: str = "",
    crf: dense_crf.Parameters | None = None,
    engine: str = "faster_coco_eval",
    per_class: bool = False,
    error_page: bool = False,
    tiling: Tiling | None = None,
    progress: bool = True,
) -> Evaluation:
    """Scores an export on `eval_records`, whose images it resizes itself.

    Args:
      path: as of `detector.load_export`.
      config: of which `eval_records` is read, and `mask_classes` where it is not "all"; A is else
        what the export says.
      annotations: as of `evaluate`, as all others.

    Raises:
      UserError: the export, the records or the json cannot be used.
    """
    exported, records = detector.load_export(path), runner.records_of(config)
    vocabulary, mask_class_ids = exported.vocabulary, exported.mask_class_ids
    if config.mask_classes != Config().mask_classes:
        mask_class_ids = classes.load_mask_classes(config.mask_classes, vocabulary)
    ground_truth = exact_ground_truth(annotations, config, vocabulary) if annotations else None
    with (
        reading_errors(config.eval_records),
        _segment(False, config, "model", crf) as segment,
    ):
        evaluator = scoring.evaluate(
            exported,
            records,
            mask_class_ids,
            ground_truth=ground_truth,
            engine=engine,
            tiling=tiling,
            segment=segment,
            progress=progress,
        )
        results = evaluator.evaluate(per_class)
    return report_of(path, evaluator, results, vocabulary, config, annotations, error_page)


def exact_ground_truth(annotations: str, config: Config, vocabulary: Vocabulary) -> dict:
    """The ground truth of a COCO json of the images of `config.eval_records`."""
    records = manifest.find_records(config.eval_records)
    # iscrowd means what it meant when the records were written of the json.
    meanings = {of.source.get("crowds", IGNORED) for of in records.manifests.values()}
    crowds = AS_OBJECTS if meanings == {AS_OBJECTS} else IGNORED
    sizes = index.image_sizes(records.paths)
    return ground_truth_from_json(annotations, vocabulary, sizes, crowds)


def report_of(
    what: str,
    evaluator: coco.CocoEvaluator,
    results: dict,
    vocabulary: Vocabulary,
    config: Config,
    annotations: str,
    error_page: bool,
) -> Evaluation:
    """The evaluation that an evaluator has made of a checkpoint, or of another thing's results."""
    names_of_a, page = vocabulary.names_of(evaluator.subsets["A"]), ""
    if error_page:
        results["errors"], page = error_pages.page(
            evaluator,
            vocabulary.names,
            RecordImages(config.eval_records),
            title=what,
            about=f"{len(names_of_a)} classes have masks in training (A), "
            f"{vocabulary.num_classes - len(names_of_a)} have boxes alone (B).",
        )
    return Evaluation(
        what,
        results,
        evaluator.curves,
        names_of_a,
        vocabulary.num_classes,
        annotations or list(config.eval_records),
        page,
    )


def _segment(
    whole_pixels: bool, config: Config, masks: str, crf: dense_crf.Parameters | None
) -> contextlib.AbstractContextManager[Segment | None]:
    """What makes or refines masks on the original images, if anything does."""
    if masks == "grabcut":
        return Segment(config.eval_records, by_grabcut)
    if masks in ("box", "ellipse"):
        return Segment(config.eval_records, by_shape(masks))
    if crf:
        segment_box = by_crf(crf, whole_pixels)
        return Segment(config.eval_records, segment_box, refines=True)
    return contextlib.nullcontext()
