"""The functions of `import maskx_tf as mx`: load, build, train and evaluate; see docs/python.md."""

from __future__ import annotations

import functools
import os
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import numpy as np
import tensorflow as tf

from maskx_tf import config as config_lib
from maskx_tf import training
from maskx_tf.assembly import build_model
from maskx_tf.checkpoints.listing import resolved
from maskx_tf.config import Config
from maskx_tf.errors import UserError
from maskx_tf.evaluation import checkpoint as scoring
from maskx_tf.inference import mask_post as post
from maskx_tf.inference.detector import Detector, is_export, load_checkpoint, load_export
from maskx_tf.inference.tiling import tiling_of
from maskx_tf.model import MaskXRCNN
from maskx_tf.ops import dense_crf
from maskx_tf.system.interruption import Interrupted
from maskx_tf.training import devices

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def in_python(text: str) -> str:
    """A message of the commands without the dashes of their flags; a whole command keeps them."""
    return re.sub(
        r"(python -m [^;)]*|maskx [^;)]*)|(?<![\w-])--(?=[a-z])", lambda m: m[1] or "", text
    )


def _for_python(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """The function with errors as a Python program expects them."""

    @functools.wraps(function)
    def wrapped(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        try:
            return function(*args, **kwargs)
        except UserError as error:
            raise type(error)(in_python(str(error))) from None
        except Interrupted as interrupted:
            if interrupted.signal_name == "SIGINT":
                raise KeyboardInterrupt from None
            raise

    return wrapped


@_for_python
def load(path: str | os.PathLike[str]) -> Detector:
    """A model ready to use.

    Args:
      path: a run (its `model_dir`, of which the latest checkpoint is taken), a checkpoint of a run
        (`RUN/ckpt-STEP`, or `RUN@best` with `keep_best`), or an exported model (the directory of
        versions, or a version).

    Returns:
      A `Detector`, to be called with images.

    Raises:
      UserError: there is no model.
    """
    directory = pathlib.Path(resolved(path)).expanduser()
    if is_export(directory):
        return load_export(str(directory))
    if not (directory.is_dir() or directory.with_name(f"{directory.name}.index").is_file()):
        raise UserError(
            f"There is no {directory}; give the directory of a run, a checkpoint in it such as "
            "RUN/ckpt-1000, or an exported model."
        )
    return load_checkpoint(str(directory))


@_for_python
def build(config: Config, num_classes: int, embeddings: np.ndarray | None = None) -> MaskXRCNN:
    """A Keras model with new weights, which follow from `config.seed`.

    Args:
      config: its options.
      num_classes: K, without background.
      embeddings: float [K, D], the class vectors that T takes with transfer_input="embedding".
    """
    return build_model(config, num_classes, embeddings)


@_for_python
def train(config: Config, dataset: tf.data.Dataset | None = None) -> dict:
    """Trains the run that `config` describes, or resumes it where its last checkpoint is.

    Args:
      config: the options.
      dataset: batches to train on in place of `config.train_records`, with the classes of
        `config.vocabulary`; `maskx_tf.data.batch` describes them.

    Returns:
      The last evaluation, as of `evaluate`; empty without `config.eval_records`.

    Raises:
      UserError: something that `config` names does not exist or does not fit.
      KeyboardInterrupt: Ctrl-C; the last step is saved, and the same call resumes.
    """
    return training.train(config, dataset)


@_for_python
def evaluate(
    run: str | os.PathLike[str],
    records: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
    *,
    annotations: str | os.PathLike[str] = "",
    masks: str = "model",
    mask_post: str = "none",
    crf_weight: float = dense_crf.Parameters().weight,
    crf_color: float = dense_crf.Parameters().color,
    crf_reach: float = dense_crf.Parameters().reach,
    per_class: bool = False,
    engine: str = "faster_coco_eval",
    tile: int = 0,
    overlap: float = 0.25,
    progress: bool = True,
    **options: Any,
) -> dict:
    """Box and mask AP of a run, or of an export.

    Args:
      run: a run's directory, a checkpoint in it, or RUN@best; or an exported model.
      records: directories of records to evaluate on; the run's own `eval_records` if not given.
      annotations: COCO json of the same images: exact masks instead of those in the records.
      masks: what segments the detected boxes, "model", "grabcut", or the "box" or "ellipse" itself.
      mask_post: "crf": a dense CRF draws the model's masks to the image's edges.
      crf_weight: weight of colours in the CRF.
      crf_color: grey levels of 255 that alike pixels differ by in the CRF.
      crf_reach: how far colours count in it, over the side of the box.
      per_class: also list the AP of every class.
      engine: "faster_coco_eval" or "pycocotools"; the results are the same.
      tile: side in pixels of overlapping tiles that images are looked at in, in their own size; 0:
        whole images.
      overlap: share of a side that neighbouring tiles have in common.
      progress: show a progress bar.
      **options: of the data and of detections, as `maskx evaluate --help` lists them,
        such as mask_classes="voc" or max_detections=300.

    Returns:
      {"box": {"all": {"AP", "AP50", "AP75", "APs", "APm", "APl"}, "A": …, "B": …}}; likewise "mask"
      and "mask_given_boxes" of a model with masks; with `per_class` also {"per_class": {name: AP}};
      of LVIS's records or json also "APr", "APc" and "APf".
      Values in [0, 1]; None where there is no object of the kind.

    Raises:
      UserError: the run or the records cannot be used, or an option is one of training.
    """
    for name in options:
        if name not in scoring.changeable():
            raise UserError(
                f"{name}={options[name]!r} cannot differ from the training run; in an evaluation, "
                f"these can: {', '.join(scoring.changeable())}."
            )
    if records:
        options["eval_records"] = records
    if "num_gpus" in options:
        devices.use_gpus(options["num_gpus"])
    common: dict[str, Any] = {
        "annotations": os.fspath(annotations),
        "crf": post.crf_of(mask_post, crf_weight, crf_color, crf_reach),
        "engine": engine,
        "per_class": per_class,
        "tiling": tiling_of(tile, overlap),
        "progress": progress,
    }
    if is_export(pathlib.Path(run).expanduser()):
        given = [name for name in config_lib.names(at_test="detections") if name in options]
        given += ["masks"] if masks != "model" else []
        if given:
            raise UserError(f"{given[0]} is of a run; an export cannot change it.")
        config = Config(**options)
        return scoring.evaluate_export(os.path.expanduser(run), config, **common).results
    run = os.path.expanduser(run)
    change = lambda trained: trained.replace(**options)  # noqa: E731
    return scoring.evaluate(run, change, masks=masks, **common).results
