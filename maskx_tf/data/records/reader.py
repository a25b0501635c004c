"""Reads single records wherever they lie, in the graph, and names those that cannot be used.

TensorFlow's own reader does it: a Python function in the pipeline deadlocks with the deletion of
its iterator, which waits for the function while it holds Python's lock.
"""

from __future__ import annotations

import contextlib
import pathlib
import re
from collections.abc import Iterator, Sequence

import tensorflow as tf
from absl import logging

from maskx_tf.data.records import framing
from maskx_tf.data.records.index import REMEDY, Index, damaged_files, describe_damage
from maskx_tf.data.records.manifest import find_records
from maskx_tf.errors import UserError

_DAMAGED = "damaged record:"
_OPEN_FILES = 4  # they wait for the disk
_MAX_FILES = 3  # damaged ones in a message


def read(index: Index, examples: tf.data.Dataset) -> tf.data.Dataset:
    """The bytes of records, in the order of `examples`.

    Args:
      index: where the records are.
      examples: int64 [2] elements: record in the index, number of the example.

    Returns:
      Elements (number int64 [], payload string [], place of the record for messages string []).
      A damaged record is the empty payload, which `check` makes an error of.
    """
    # Not `from_tensors`, and not `map` in place of `interleave`: TensorFlow takes them for stateful
    # and then, with op determinism (training on the CPU), runs all that follows in one thread.
    nothing = tf.data.Dataset.from_tensor_slices([""])

    @tf.autograph.experimental.do_not_convert
    def open_at_record(example: tf.Tensor) -> tf.data.Dataset:
        path = tf.gather(index.paths, tf.gather(index.shard, example[0]))
        offset = tf.gather(index.offset, example[0])
        length = tf.gather(index.length, example[0])
        variant = tf.raw_ops.TFRecordDatasetV2(
            filenames=path[tf.newaxis],
            compression_type="",
            buffer_size=length + framing.HEADER_BYTES + framing.FOOTER_BYTES,
            byte_offsets=offset[tf.newaxis],
        )
        dataset = tf.data.experimental.from_variant(variant, tf.TensorSpec([], tf.string))
        dataset = dataset.take(1).ignore_errors().concatenate(nothing)
        number = tf.strings.as_string(tf.gather(index.number, example[0]))
        byte = tf.strings.as_string(offset)
        where = tf.strings.join([path, ", record ", number, " at byte ", byte])
        return dataset.take(1).map(lambda payload: (example[1], payload, where))

    return examples.interleave(
        open_at_record, cycle_length=_OPEN_FILES, num_parallel_calls=_OPEN_FILES, deterministic=True
    )


def check(payload: tf.Tensor, where: tf.Tensor) -> tf.Tensor:
    """The payload unchanged; an error that `reading_errors` understands if there is none."""
    with tf.control_dependencies([tf.debugging.Assert(payload != "", [_DAMAGED, where])]):
        return tf.identity(payload)


@contextlib.contextmanager
def reading_errors(records: Sequence[str] = ()) -> Iterator[None]:
    """Turns what TensorFlow reports of a record that cannot be used into a UserError.

    Around everything that takes batches from a dataset of `pipeline.make_dataset`.

    Args:
      records: of these datasets. TensorFlow does not tell of which record an image cannot be
        decoded: they are searched for it.
    """
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        message = error.message
        if found := re.search(rf"\[{_DAMAGED}\] \[(.*), record (\d+) at byte (\d+)\]", message):
            path, number, offset = pathlib.Path(found[1]), int(found[2]), int(found[3])
            damage = describe_damage(path, number, offset)
            raise UserError(
                f"{damage}. {REMEDY.format(path.parent)}, or train with --skip_corrupt_records."
            ) from None
        found = re.search(r"assertion failed: (.*?)\n", message, re.DOTALL)
        if found and " at byte " in found[1]:
            text = found[1].replace("] [", " ").strip("[]")
            raise UserError(f"A record cannot be used: {text}.") from None
        if not records or not re.search("jpeg|png|image", message, re.IGNORECASE):
            raise
        paths = find_records(records, check_sizes=False).paths
        logging.warning("An image cannot be decoded; looking for it in %d files.", len(paths))
        if faults := damaged_files(paths):
            remedy = REMEDY.format(paths[0].parent)
            raise UserError(
                f"{' '.join(faults[:_MAX_FILES])} {remedy}, or train with --skip_corrupt_records."
            ) from None
        raise
