"""Stage 2 computes its frozen part once: what the mask head sees, kept on disk.

With a frozen detector, the batch of a step, its RoIs and their features do not depend on the mask
head. Runs that differ in nothing but the head (the rows of the paper's tables 1a to 1c) train, and
are evaluated, on the same features. The results are those of runs without a cache.

A cache directory holds a directory for each key, a digest of all that the features follow from. A
cache is never wrong, only sometimes of no use; it can be deleted at any time.
"""

import dataclasses
import hashlib
import json
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from maskx_tf import objective
from maskx_tf.checkpoints import LoadedModel
from maskx_tf.checkpoints.model_dir import EMBEDDINGS
from maskx_tf.config import Config
from maskx_tf.data import supervision
from maskx_tf.data.records.manifest import find_records
from maskx_tf.errors import UserError
from maskx_tf.frozen.row_store import Array, RowStore
from maskx_tf.model import MaskXRCNN, is_of_masks, variable_key
from maskx_tf.system.progress import Progress

# Scopes of the options that the frozen features do not depend on; sources count by content.
FREE = ("bookkeeping", "source", "mask_head", "optimizer")


def check(config: Config, replicas: int = 1) -> None:
    """UserError where the configuration cannot use a cache."""
    if config.mode != "stage2_masks":
        raise UserError(
            "--feature_cache is for --mode=stage2_masks, where the features are frozen; this run "
            f"is --mode={config.mode}."
        )
    if config.has_point_head:
        raise UserError(
            f"--feature_cache keeps no features of single points, which --point_head="
            f"{config.point_head} reads where masks are uncertain: leave out --feature_cache."
        )
    if config.has_joint_scores:
        raise UserError(
            f"--feature_cache keeps detections, whose scores --loss_joint={config.loss_joint} "
            "changes: leave out --feature_cache."
        )
    if config.semantic_head != "none":
        raise UserError(
            f"--feature_cache keeps features of RoIs, not of whole images, which --semantic_head="
            f"{config.semantic_head} sees: leave out --feature_cache."
        )
    if replicas > 1:
        raise UserError(f"--feature_cache is for one device, not {replicas}: set --num_gpus.")


def key(
    model: MaskXRCNN, config: Config, records: Sequence[str], what: Sequence[int | str] = ()
) -> str:
    """A digest of what the features follow from.

    Args:
      model: its frozen variables count.
      config: all options count but those of the scopes `FREE`.
      records: what the features are of; content and order of the files count, not their place.
      what: anything else, such as set A where the choice of RoIs depends on it.
    """
    digest = hashlib.sha256()
    options = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.metadata["scope"] not in FREE
        if not field.metadata["is_later"] or getattr(config, field.name) != field.default
    }
    if config.mask_size != 2 * config.mask_roi_size:  # that it is twice as large was never said
        options["mask_size"] = config.mask_size
    if "cam" in config.mask_branches:  # the prior is part of the features
        options["cam"] = True
    digest.update(json.dumps([options, list(what)]).encode())
    files = find_records(records)
    shards = files.shards
    for path in files.paths:  # not all that the manifests list, and in the order of the examples
        digest.update(f"{shards[path].sha256 if path in shards else _sha256(path)}\n".encode())
    for variable in model.weights:
        name = variable_key(variable)
        if not is_of_masks(variable) and name != EMBEDDINGS:
            digest.update(name.encode() + variable.numpy().tobytes())
    return digest.hexdigest()[:20]


def _sha256(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def training_dataset(
    loaded: LoadedModel, batches: Callable[[int], tf.data.Dataset], start: int
) -> tf.data.Dataset:
    """Batches from step `start` on, computed where the cache lacks them.

    A batch is ({"features"}, {"classes", "targets", "valid", …}) of `objective.MaskExamples`.

    Args:
      loaded: the model with its options; those are of stage 2.
      batches: step -> batches of `data.pipeline` from that step on.
      start: first step.
    """
    model, config, _, mask_class_ids = loaded
    arrays = _arrays(config)
    kind = "train with boxes" if objective.learns_from_boxes(config) else "train"
    if config.has_mask_scoring:
        kind += " and areas"
    if arrays[-1].name == "weights":
        kind += " and weights"
    digest = key(model, config, config.train_records, [kind, *mask_class_ids])
    store = RowStore(pathlib.Path(config.feature_cache) / digest, arrays)
    if len(store) < config.train_steps:
        with store.filling():
            first = len(store)
            if first < config.train_steps:
                store.append(_compute(loaded, batches(first), first, arrays))

    def read(step: tf.Tensor) -> tuple[dict, dict]:
        values = tf.numpy_function(
            lambda s: store.read(int(s)), [step], [tf.as_dtype(array.dtype) for array in arrays]
        )
        labels = {
            array.name: tf.ensure_shape(value, [None, *array.shape])
            for array, value in zip(arrays, values, strict=True)
        }
        features = labels.pop("features")
        return {"features": features}, labels | {"targets": tf.cast(labels["targets"], tf.float32)}

    steps = tf.data.Dataset.range(start, config.train_steps)
    return steps.map(read, num_parallel_calls=2, deterministic=True).prefetch(4)


def _arrays(config: Config) -> tuple[Array, ...]:
    """Those of `objective.MaskExamples`, by name."""
    side, mask = config.mask_roi_size, config.mask_size
    others: list[Array] = []
    if objective.learns_from_boxes(config):
        others += (
            Array("boxes_yxyx", "float32", (4,)),
            Array("images_yxyx", "float32", (4,)),
            Array("colors", "float32", (mask, mask, 3)),
        )
    if config.has_mask_scoring:
        others.append(Array("areas", "float32"))
    # Caches of before there were weights have none, and are of runs where each is 1.
    if config.mask_source_weights or supervision.has_weights(find_records(config.train_records)):
        others.append(Array("weights", "float32"))
    return (
        Array("features", "float32", (side, side, config.fpn_filters)),
        Array("classes", "int32"),
        Array("targets", "uint8", (mask, mask)),
        Array("valid", "bool"),
        *others,
    )


def _compute(
    loaded: LoadedModel, batches: tf.data.Dataset, start: int, arrays: Sequence[Array]
) -> Iterator[list]:
    model, config, *_ = loaded

    @tf.function(autograph=False)
    def compute(features, labels, step):
        seed = tf.stack([config.seed, step])  # as `Trainer` has it on one device
        return objective.frozen_mask_examples(model, features, labels, seed)

    print(f"Computing the frozen features for {config.feature_cache}", file=sys.stderr)
    progress = Progress(config.train_steps, config.batch_size)
    progress.start(start)
    for step, batch in zip(range(start, config.train_steps), batches, strict=False):
        examples = compute(*batch, tf.constant(step))
        if not np.isfinite(examples.features).all():
            raise UserError(
                f"the frozen features of step {step + 1} are not finite; train without "
                "--feature_cache to learn why."
            )
        yield [np.asarray(getattr(examples, array.name)) for array in arrays]
        if (step + 1) % config.summary_interval == 0:
            progress(step + 1, {})
