"""From the blobs of a file to a model directory; what the importing commands share."""

from __future__ import annotations

import dataclasses
import io
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from maskx_tf import checkpoints
from maskx_tf import config as config_lib
from maskx_tf.assembly import build_model
from maskx_tf.checkpoints import LoadedModel
from maskx_tf.config import Config
from maskx_tf.data.classes import COCO, Vocabulary, load_mask_classes
from maskx_tf.errors import UserError
from maskx_tf.model import variable_key
from maskx_tf.system import files
from maskx_tf.weights import architecture, caffe2
from maskx_tf.weights.blobs import Blobs, assign

TABLE = "imported_blobs.txt"
EMBEDDINGS = "embeddings.npy"


class Imported(NamedTuple):
    """A model with weights of another program."""

    loaded: LoadedModel
    blobs: Blobs
    embeddings: np.ndarray | None  # [K, D] in vocabulary order, of a T that takes them

    @property
    def title(self) -> str:
        """What kind of model it is, in a line."""
        config = self.loaded.config
        backbone = config.backbone.replace("resnet", "R-")
        if not config.has_masks:
            kind = f"Faster R-CNN {backbone}-FPN"
        elif config.mask_output == "transfer":
            kind = (
                f"Mask^X R-CNN {backbone}-FPN (T: {config.transfer_input}, "
                f"{config.transfer_layers} layers, {config.transfer_activation}"
                f"{'; MLP branch' if config.mask_mlp else ''})"
            )
        else:
            output = config.mask_output.replace("_", "-")
            mlp = " with MLP branch" if config.mask_mlp else ""
            kind = f"Mask R-CNN {backbone}-FPN, {output}{mlp}"
        classes = self.loaded.vocabulary.num_classes
        return f"{kind}, {classes} classes, conventions: {config.conventions}"


def build(
    blobs: Blobs,
    options: Mapping[str, Any],
    overrides: Mapping[str, Any],
    *,
    embedding: str = "",
    stale: Callable[[str], str] = lambda name: "",
) -> Imported:
    """A model of the blobs, by Detectron's names.

    Args:
      blobs: of one file.
      options: of `Config`, that the file's format brings.
      overrides: options of `Config` that the user gave; `vocabulary` and `mask_classes` among them.
      embedding: the blob of T's class embeddings, where the file holds several.
      stale: name -> why a blob that was not used is left out on purpose, or "".

    Raises:
      UserError: the file is not such a model, is incomplete, or does not fit the vocabulary.
    """
    found, embedding = architecture.read(blobs, embedding)
    if embedding:
        found["transfer_embeddings"] = EMBEDDINGS
    for name in found.keys() & overrides.keys():
        if overrides[name] != found[name]:
            raise UserError(f"{blobs.source} has {name}={found[name]}, not {overrides[name]}.")
    if "mode" in found:  # the checkpoint of a detector need not hold an untrained MLP branch
        options = {**options, "mask_classes": "none", "mask_mlp": False}
    config = Config(**{**options, **overrides, **found})
    count = blobs.shape("cls_score_w")[0] - 1
    vocabulary = _vocabulary(config.vocabulary, count, blobs.source)
    mask_class_ids = load_mask_classes(config.mask_classes, vocabulary)
    rows = blobs.arrays[embedding][1:] if embedding else None
    model = build_model(config, count, rows)
    variables = {variable_key(v): v for v in model.weights}
    if not config.has_masks:
        rules = caffe2.detector_rules(config)
        variables = {name: variable for name, variable in variables.items() if name in rules}
    else:
        rules = caffe2.rules(config, embedding)
    assign(variables, rules, blobs)
    for name in blobs.unexpected:
        if reason := stale(name):
            blobs.ignore([name], reason)
    return Imported(LoadedModel(model, config, vocabulary, mask_class_ids), blobs, rows)


def _vocabulary(path: str, count: int, source: str) -> Vocabulary:
    vocabulary = Vocabulary.load(path or COCO)
    if vocabulary.num_classes == count:
        return vocabulary
    if not path:
        raise UserError(
            f"{source} has {count} classes and does not name them; give their names in the order "
            "of its rows with --vocabulary (a .txt, or a json with categories)."
        )
    raise UserError(
        f"--vocabulary={path} has {vocabulary.num_classes} classes, {source} has {count}; give the "
        "list that the model was trained with."
    )


def save(imported: Imported, output_dir: str) -> str:
    """Writes a model directory: a checkpoint, options, vocabulary, set A and the table of blobs.

    Returns:
      A report of a few lines.

    Raises:
      UserError: the directory holds a model already, or cannot be written.
    """
    checkpoints.check_new(output_dir)
    directory, loaded = pathlib.Path(output_dir), imported.loaded
    if imported.embeddings is not None:
        path, content = directory / EMBEDDINGS, io.BytesIO()
        np.save(content, imported.embeddings)
        files.write_atomically(path, content.getvalue())
        loaded = loaded._replace(config=loaded.config.replace(transfer_embeddings=str(path)))
    files.write_atomically(directory / TABLE, imported.blobs.table())
    checkpoints.save_new(loaded, output_dir)
    seen, classes = loaded.mask_class_ids, loaded.vocabulary.num_classes
    return "\n".join(
        (
            imported.title,
            f"Set A, the classes with mask training: {len(seen)} of {classes} (--mask_classes).",
            imported.blobs.summary(),
            f"written: {output_dir}; every blob is listed in {directory / TABLE}",
        )
    )


def define_flags() -> None:
    """Defines the flags of the importing commands: the model's options and where to read."""
    config_lib.define_flags()
    flags.DEFINE_string("weights", "", "File to import.")
    flags.DEFINE_string("output_dir", "", "Model directory to write.")


def overrides() -> dict[str, Any]:
    """The options of `Config` given on the command line."""
    values = flags.FLAGS
    wanted = config_lib.from_flags(values)
    names = [field.name for field in dataclasses.fields(Config) if values[field.name].present]
    return {name: getattr(wanted, name) for name in names}


def run(load: Callable[[str, Mapping[str, Any]], Imported]) -> None:
    """What both commands do: imports --weights into --output_dir and prints the report."""
    for name in ("weights", "output_dir"):
        if not flags.FLAGS[name].value:
            raise UserError(f"--{name} is needed.")
    checkpoints.check_new(flags.FLAGS.output_dir)  # files of weights take long to read
    imported = load(flags.FLAGS.weights, overrides())
    print(save(imported, flags.FLAGS.output_dir))
    if imported.blobs.unexpected:
        print("The unexpected blobs were not used: is it the model you mean?", file=sys.stderr)
