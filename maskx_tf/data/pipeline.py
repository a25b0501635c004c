"""From record shards to batches: `make_dataset`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import tensorflow as tf
from absl import logging

from maskx_tf.config import Config
from maskx_tf.data import augmentation, copy_paste, decoding, preprocessing, repeats
from maskx_tf.data.classes import Vocabulary
from maskx_tf.data.order import TrainingOrder
from maskx_tf.data.records import index, reader
from maskx_tf.data.records.manifest import Found, Manifest, find_records
from maskx_tf.data.records.schema import parse_example
from maskx_tf.errors import UserError

_NO_END = 2**62  # epochs


def make_dataset(
    records: Sequence[str],
    config: Config,
    vocabulary: Vocabulary,
    mask_class_ids: Iterable[int],
    *,
    training: bool,
    seed: int,
    start_step: int = 0,
    context: tf.distribute.InputContext | None = None,
) -> tf.data.Dataset:
    """Batches of (features, labels).

    Their structure is that of `data.batch`, with M = config.max_objects and S =
    config.mask_crop_size. has_mask: the record has a mask, its class is in `mask_class_ids`, it is
    no crowd, and in training its source is one of `config.mask_sources`, if these are given.
    mask_weight: the record's, in training times that of its source. There
    are three more features: image_scale float32 [B, 2], network-input pixels per original pixel
    (y, x); original_size int32 [B, 2]; image_id int64 [B].

    Unless the canvas is square, a batch holds images of one orientation. Training: shuffled over
    all records, augmented, repeated without end; batch n is a function of records, options, seed
    and n only. Evaluation: one pass in record order (with bucketing: within each orientation), the
    last batches smaller.

    A damaged record, or an image that cannot be decoded, ends the iteration; `reading_errors` of
    `reader` names it. Training with `config.skip_corrupt_records` first reads all records and
    decodes their images, names and counts the damaged ones, and goes without them. Evaluation
    does not: scores of other images are not comparable.

    Args:
      records: directories with manifest.json, or glob patterns.
      config: options of the data section.
      vocabulary: classes of the model; those of the records are matched to it by name.
      mask_class_ids: set A; masks of other classes are withheld.
      training: see above.
      seed: of order and augmentation.
      start_step: number of training batches to leave out, at no cost.
      context: of training on several devices: each batch is cut into as many parts as there are
        replicas, and the dataset holds the parts of this worker's replicas, one after the other.

    Raises:
      UserError: records are missing or damaged, or have a class that the vocabulary lacks.
    """
    skip_corrupt = training and config.skip_corrupt_records
    files = find_records(records, check_sizes=not skip_corrupt)
    for manifest in files.manifests.values():
        _check_manifest(manifest, config, vocabulary, training)
    if training:
        _check_mask_sources(files, config)
    found = index.build(files.paths, files.counts, skip_corrupt)
    examples = _examples(found, config, training, seed, start_step, context)
    class_ids = _ClassIds(vocabulary)
    in_set_a = np.zeros([vocabulary.num_classes + 1], bool)
    in_set_a[list(mask_class_ids)] = True

    def decoded(serialized: tf.Tensor, where: tf.Tensor) -> tuple[tf.Tensor, dict]:
        example = _check_record(parse_example(reader.check(serialized, where)), where)
        example["classes"] = class_ids(example, where)
        example["has_mask"] &= tf.gather(in_set_a, example["classes"]) & ~example["is_crowd"]
        if training and config.mask_sources:
            wanted = tf.constant(config.mask_sources)
            example["has_mask"] &= tf.reduce_any(example["mask_sources"][:, None] == wanted, -1)
        if training and config.mask_source_weights:
            example["mask_weights"] *= _of_sources(example["mask_sources"], config.source_weights)
        return _check_size(decoding.decode(example["encoded"]), example, where), example

    @tf.autograph.experimental.do_not_convert
    def load(number: tf.Tensor, *record: tf.Tensor) -> tuple[dict, dict]:
        random = augmentation.draw(config, training, tf.stack([seed, number]))
        return augmentation.to_features_and_labels(*decoded(*record), random, config)

    @tf.autograph.experimental.do_not_convert
    def load_and_paste(one: tuple, other: tuple) -> tuple[dict, dict]:
        features, labels = load(*one)
        own = tf.stack([seed, other[0]])
        draws = [tf.random.experimental.stateless_fold_in(own, i) for i in range(3)]

        def pasted() -> tuple[dict, dict]:
            shape = tf.shape(features["image"])
            random = augmentation.draw(config, training, draws[0])
            other_features, other_labels = augmentation.to_features_and_labels(
                *decoded(*other[1:]), random, config, is_landscape=shape[0] <= shape[1]
            )
            parts = (features, labels, other_features["image"], other_labels)
            return copy_paste.paste(*parts, draws[1], config.max_objects)

        is_pasted = tf.random.stateless_uniform([], draws[2]) < config.copy_paste
        return tf.cond(is_pasted, pasted, lambda: (features, labels))

    @tf.autograph.experimental.do_not_convert
    def padded(features: dict, labels: dict) -> tuple[dict, dict]:
        return features, augmentation.pad(labels, config.max_objects)

    dataset, step = reader.read(found, examples), load
    if training and config.copy_paste:
        others = examples.map(lambda example: _other(example, len(found), seed))
        dataset, step = tf.data.Dataset.zip((dataset, reader.read(found, others))), load_and_paste
    dataset = dataset.map(
        lambda *elements: padded(*step(*elements)), tf.data.AUTOTUNE, deterministic=True
    )
    if context:
        config = config.replace(batch_size=context.get_per_replica_batch_size(config.batch_size))
    return _batch(dataset, config, training).prefetch(tf.data.AUTOTUNE)


def _examples(
    found: index.Index,
    config: Config,
    training: bool,
    seed: int,
    start_step: int,
    context: tf.distribute.InputContext | None,
) -> tf.data.Dataset:
    """int64 [2] elements in order: (record, number of the example)."""
    if not training:
        records = np.arange(len(found))
        return tf.data.Dataset.from_tensor_slices(np.stack([records] * 2, axis=-1))
    threshold = config.repeat_threshold
    factors = repeats.repeat_factors(found, threshold) if threshold else None
    order = TrainingOrder(found.portrait & _is_bucketed(config), config.batch_size, seed, factors)
    worker = context.input_pipeline_id if context else 0
    # Examples of a batch that this worker reads.
    count = config.batch_size // (context.num_input_pipelines if context else 1)

    def examples_of(epoch: tf.Tensor) -> tf.data.Dataset:
        part = order.batches(epoch)[:, worker * count : (worker + 1) * count]
        return tf.data.Dataset.from_tensor_slices(tf.reshape(part, [-1, 2]))

    epoch, place = order.find(start_step)
    dataset = tf.data.Dataset.range(epoch, _NO_END).flat_map(examples_of)
    return dataset.skip(place * count)


def _other(example: tf.Tensor, count: int, seed: int) -> tf.Tensor:
    """A record by chance, whose objects are pasted over an example: int64 [2] as that."""
    own = tf.stack([tf.constant(seed, tf.int64), example[1]])
    draw = tf.random.experimental.stateless_fold_in(own, 3)
    record = tf.random.stateless_uniform([], draw, 0, count, tf.int64)
    return tf.stack([record, example[1]])


def _is_bucketed(config: Config) -> bool:
    short, long = preprocessing.canvas_sides(config.image_min_side, config.image_max_side)
    return short != long


def _batch(dataset: tf.data.Dataset, config: Config, training: bool) -> tf.data.Dataset:
    size = config.batch_size
    if training or not _is_bucketed(config):  # the order of training has whole batches of a group
        return dataset.batch(size, drop_remainder=training)

    def orientation(features: dict, labels: dict) -> tf.Tensor:
        del labels
        shape = tf.shape(features["image"])
        return tf.cast(shape[0] > shape[1], tf.int64)

    return dataset.group_by_window(
        key_func=orientation,
        reduce_func=lambda _, window: window.batch(size),
        window_size=size,
    )


class _ClassIds:
    """Looks class names up in a vocabulary.

    By hashes and not in a hash table: tables have a state, and with op determinism (training on the
    CPU) TensorFlow runs functions with a state in one thread.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        hashes = self._hash(tf.constant(vocabulary.names)).numpy()
        order = np.argsort(hashes)
        self._hashes = hashes[order]
        self._names = np.array(vocabulary.names, object)[order]
        self._ids = (order + 1).astype(np.int32)

    def __call__(self, example: dict[str, tf.Tensor], where: tf.Tensor) -> tf.Tensor:
        """int32 [N] ids of the record's classes."""
        names = example["class_names"]
        places = tf.searchsorted(tf.constant(self._hashes), self._hash(names))
        places = tf.minimum(places, len(self._ids) - 1)
        unknown = tf.boolean_mask(names, tf.gather(self._names.tolist(), places) != names)
        place = ["image", example["image_id"], "in", where]
        message = ["classes that the vocabulary lacks:", unknown, *place]
        with tf.control_dependencies([tf.debugging.Assert(tf.size(unknown) == 0, message)]):
            return tf.gather(self._ids, places)

    def _hash(self, names: tf.Tensor) -> tf.Tensor:
        return tf.strings.to_hash_bucket_fast(names, 2**62)


def _check_record(example: dict[str, tf.Tensor], where: tf.Tensor) -> dict[str, tf.Tensor]:
    """The example unchanged; an error that names file and image where it cannot be right."""
    place = [example["file_name"], "image", example["image_id"], "in", where]
    checks = [
        tf.debugging.Assert(
            (tf.size(example["class_names"]) == tf.size(example["mask_pngs"]))
            & (tf.size(example["class_names"]) == tf.size(example["mask_sources"]))
            & (tf.size(example["class_names"]) == tf.size(example["mask_weights"])),
            ["object features differ in length:", *place],
        ),
        # Clipped to the image they would look like any other box.
        tf.debugging.Assert(
            tf.reduce_all(tf.math.is_finite(example["boxes_yxyx"])),
            ["boxes that are NaN or infinite:", *place],
        ),
    ]
    with tf.control_dependencies(checks):
        return {key: tf.identity(value) for key, value in example.items()}


def _check_size(image: tf.Tensor, example: dict[str, tf.Tensor], where: tf.Tensor) -> tf.Tensor:
    """The image unchanged; an error if it is of another size than the boxes were made for."""
    found, expected = tf.shape(image)[:2], example["original_size"]
    place = [example["file_name"], "image", example["image_id"], "in", where]
    message = ["image size", found, "not as recorded:", expected, *place]
    with tf.control_dependencies([tf.debugging.Assert(tf.reduce_all(found == expected), message)]):
        return tf.identity(image)


def _check_manifest(
    manifest: Manifest, config: Config, vocabulary: Vocabulary, training: bool
) -> None:
    names = {**manifest.class_counts, **(manifest.crowd_counts or {})}
    unknown = [name for name in names if name not in vocabulary.names]
    if unknown:
        raise UserError(
            f"Records {manifest.name!r} hold objects of {len(unknown)} classes that the vocabulary "
            f"lacks: {', '.join(map(repr, unknown[:10]))}. Use a --vocabulary that has them, or "
            "write the records without them."
        )
    if training and manifest.max_objects_per_image > config.max_objects:
        logging.warning(
            "Records %r have images of up to %d objects; --max_objects=%d keeps the largest.",
            manifest.name,
            manifest.max_objects_per_image,
            config.max_objects,
        )


def _of_sources(sources: tf.Tensor, weights: Mapping[str, float]) -> tf.Tensor:
    """The weights of masks by their sources, string [N]: float32 [N], 1 of one without weight."""
    is_of = sources[:, None] == tf.constant(list(weights))  # [N, number of weights]
    weight = tf.reduce_sum(tf.where(is_of, tf.constant(list(weights.values())), 0.0), axis=-1)
    return tf.where(tf.reduce_any(is_of, axis=-1), weight, 1.0)


def _check_mask_sources(files: Found, config: Config) -> None:
    """A source that no record has is a slip, and would leave the mask loss at 0.

    What files without a manifest hold is not known; they may have masks of any source.
    """
    shards = files.shards
    if any(path not in shards for path in files.paths):
        return
    sources = {name for manifest in files.manifests.values() for name in manifest.mask_sources}
    weights = config.source_weights
    for option, names in (("mask_sources", config.mask_sources), ("mask_source_weights", weights)):
        if missing := [name for name in names if name not in sources]:
            raise UserError(
                f"--{option}={','.join(getattr(config, option))}: no record has a mask of "
                f"{', '.join(missing)}; there are masks of: "
                f"{', '.join(sorted(sources)) or 'no source'}."
            )
    used = sources.intersection(config.mask_sources or sources)
    if used and not any(weights.get(name, 1.0) for name in used):
        raise UserError(
            f"--mask_source_weights={','.join(config.mask_source_weights)} leaves no mask to train "
            f"on: there are masks of {', '.join(sorted(used))} alone, and each has weight 0."
        )
