"""From record shards to batches: `make_dataset`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import tensorflow as tf
from absl import logging

from maskx_tf.config import Config
from maskx_tf.data import augmentation, preprocessing
from maskx_tf.data.classes import Vocabulary
from maskx_tf.data.manifest import Manifest, find_manifests, find_shards
from maskx_tf.data.records import parse_example
from maskx_tf.errors import UserError

_OPEN_SHARDS = 8  # read in turns while training


def make_dataset(
    records: Sequence[str],
    config: Config,
    vocabulary: Vocabulary,
    mask_class_ids: Iterable[int],
    *,
    training: bool,
    seed: int,
) -> tf.data.Dataset:
    """Batches of (features, labels).

    With B images, canvas H x W, M = config.max_objects and S = config.mask_crop_size:

      features: image uint8 [B, H, W, 3], RGB, zero padded right and below;
        image_size float32 [B, 2], (height, width) of the valid part;
        image_scale float32 [B, 2], network-input pixels per original pixel (y, x);
        original_size int32 [B, 2]; image_id int64 [B].
      labels: boxes_yxyx float32 [B, M, 4], network-input pixels, zeros as padding;
        classes int32 [B, M], 0 as padding; is_crowd bool [B, M];
        has_mask bool [B, M], the record has a mask, its class is in `mask_class_ids`, no crowd;
        masks uint8 {0, 1} [B, M, S, S], the mask stretched over its box; zeros without mask.

    Unless the canvas is square, a batch holds images of one orientation. Training: shuffled,
    augmented, repeated without end, the same for equal seeds. Evaluation: one pass in record
    order (with bucketing: within each orientation), the last batches smaller.

    Args:
      records: directories with manifest.json, or glob patterns.
      config: options of the data section.
      vocabulary: classes of the model; those of the records are matched to it by name.
      mask_class_ids: set A; masks of other classes are withheld.
      training: see above.
      seed: of order and augmentation.

    Raises:
      UserError: records are missing or damaged, or have a class that the vocabulary lacks.
    """
    paths = [str(path) for path in find_shards(records)]
    for manifest in find_manifests(records):
        _check_manifest(manifest, config, vocabulary, training)
    dataset = _read(paths, config, training, seed)
    table = _class_table(vocabulary)
    in_set_a = np.zeros([vocabulary.num_classes + 1], bool)
    in_set_a[list(mask_class_ids)] = True

    def load(index: tf.Tensor, path: tf.Tensor, serialized: tf.Tensor) -> tuple[dict, dict]:
        example = _check_record(parse_example(serialized), path)
        example["classes"] = _look_up(table, example, path)
        example["has_mask"] &= tf.gather(in_set_a, example["classes"]) & ~example["is_crowd"]
        image = _check_size(preprocessing.decode_image(example["encoded"]), example, path)
        random = augmentation.draw(config, training, tf.stack([seed, index]))
        return augmentation.to_features_and_labels(image, example, random, config)

    dataset = dataset.map(load, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return _batch(dataset, config, training).prefetch(tf.data.AUTOTUNE)


def _read(paths: list[str], config: Config, training: bool, seed: int) -> tf.data.Dataset:
    """(index int64 [], path string [], serialized string [])."""

    def with_path(path: tf.Tensor) -> tf.data.Dataset:
        return tf.data.TFRecordDataset(path).map(lambda serialized: (path, serialized))

    files = tf.data.Dataset.from_tensor_slices(paths)
    if training:
        files = files.shuffle(len(paths), seed=seed, reshuffle_each_iteration=True)
        dataset = files.interleave(with_path, cycle_length=min(_OPEN_SHARDS, len(paths)))
        dataset = dataset.shuffle(config.shuffle_buffer, seed=seed, reshuffle_each_iteration=True)
        dataset = dataset.repeat()
    else:
        dataset = files.flat_map(with_path)
    return dataset.enumerate().map(lambda index, item: (index, *item))


def _batch(dataset: tf.data.Dataset, config: Config, training: bool) -> tf.data.Dataset:
    size = config.batch_size
    short, long = preprocessing.canvas_sides(config.image_min_side, config.image_max_side)
    if short == long:
        return dataset.batch(size, drop_remainder=training)

    def orientation(features: dict, labels: dict) -> tf.Tensor:
        del labels
        shape = tf.shape(features["image"])
        return tf.cast(shape[0] > shape[1], tf.int64)

    return dataset.group_by_window(
        key_func=orientation,
        reduce_func=lambda _, window: window.batch(size, drop_remainder=training),
        window_size=size,
    )


def _class_table(vocabulary: Vocabulary) -> tf.lookup.StaticHashTable:
    ids = tf.range(1, vocabulary.num_classes + 1, dtype=tf.int32)
    names = tf.constant(vocabulary.names)
    return tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(names, ids), -1)


def _look_up(
    table: tf.lookup.StaticHashTable, example: dict[str, tf.Tensor], path: tf.Tensor
) -> tf.Tensor:
    """int32 [N] ids of the record's classes in the model's vocabulary."""
    classes = table.lookup(example["class_names"])
    unknown = tf.boolean_mask(example["class_names"], classes < 0)
    message = ["classes that the vocabulary lacks:", unknown, "image", example["image_id"], path]
    with tf.control_dependencies([tf.debugging.Assert(tf.size(unknown) == 0, message)]):
        return tf.identity(classes)


def _check_record(example: dict[str, tf.Tensor], path: tf.Tensor) -> dict[str, tf.Tensor]:
    """The example unchanged; an error that names file and image where it cannot be right."""
    encoded = example["encoded"]
    is_png = tf.strings.substr(encoded, 0, 4) == b"\x89PNG"
    where = ["image", example["image_id"], example["file_name"], "of", path]
    checks = [
        tf.debugging.Assert(
            tf.io.is_jpeg(encoded) | is_png, ["neither JPEG nor PNG data:", *where]
        ),
        tf.debugging.Assert(
            tf.size(example["class_names"]) == tf.size(example["mask_pngs"]),
            ["object features differ in length:", *where],
        ),
    ]
    with tf.control_dependencies(checks):
        return {key: tf.identity(value) for key, value in example.items()}


def _check_size(image: tf.Tensor, example: dict[str, tf.Tensor], path: tf.Tensor) -> tf.Tensor:
    """The image unchanged; an error if it is of another size than the boxes were made for."""
    found, expected = tf.shape(image)[:2], example["original_size"]
    message = ["image size", found, "not as recorded:", expected, example["file_name"], "of", path]
    with tf.control_dependencies([tf.debugging.Assert(tf.reduce_all(found == expected), message)]):
        return tf.identity(image)


def _check_manifest(
    manifest: Manifest, config: Config, vocabulary: Vocabulary, training: bool
) -> None:
    unknown = [name for name in manifest.class_counts if name not in vocabulary.names]
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
