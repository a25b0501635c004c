"""Writes record shards from any sequence of work items, with several processes.

A shard is written under a temporary name, synced and renamed; manifest.json comes last, so a
directory with a manifest is complete. The bytes do not depend on the number of processes.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import importlib
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import tqdm

from maskx_tf.data import manifest as manifest_lib
from maskx_tf.data.classes import Vocabulary
from maskx_tf.data.files import sync_directory
from maskx_tf.data.manifest import Manifest, Shard
from maskx_tf.data.records import ImageRecord, serialize_record
from tf_records import issues as issues_lib
from tf_records import pool
from tf_records.issues import Issue
from tf_records.output import TEMPORARY, Output

Item = TypeVar("Item")

_IMAGES_PER_SHARD = 1_000  # when the number of shards is left open


@dataclasses.dataclass(frozen=True)
class Encoded:
    """What a worker returns for an item.

    Attributes:
      example: the serialised record; None if the item was dropped.
      classes: (class name, has mask) of each object.
      issues: what was dropped or repaired.
    """

    example: bytes | None
    classes: tuple[tuple[str, bool], ...] = ()
    issues: tuple[Issue, ...] = ()


def encode(record: ImageRecord, issues: Sequence[Issue] = ()) -> Encoded:
    """The result for an image that is kept."""
    classes = tuple((item.class_name, item.mask is not None) for item in record.objects)
    return Encoded(serialize_record(record), classes, tuple(issues))


def write(
    function: Callable[[Item], Encoded],
    items: Sequence[Item],
    output: Output,
    *,
    vocabulary: Vocabulary,
    source: Mapping[str, Any],
    issues: Sequence[Issue] = (),
    set_a: Sequence[str] | None = None,
) -> Manifest:
    """Writes `function(item)` for all items, in order, and the manifest.

    Args:
      function: picklable; depends on its item only. A UserError of it ends the run.
      items: picklable work items, one for each image.
      output: where to; see there for what happens to records that are there.
      vocabulary: classes of the records.
      source: json-like description of the input and settings, kept in the manifest.
      issues: what was found wrong before encoding.
      set_a: class names kept in the manifest.
    """
    kept = output.reusable(source)
    if kept is not None:
        return kept
    directory = pathlib.Path(output.directory)
    directory.mkdir(parents=True, exist_ok=True)
    output.remove_old()
    importlib.import_module("tensorflow")  # takes seconds that the progress bar should not show
    tally = _Tally(list(issues))
    num_shards = output.num_shards or -(-len(items) // _IMAGES_PER_SHARD)
    num_shards = min(max(num_shards, 1), max(len(items), 1))
    bounds = [len(items) * index // num_shards for index in range(num_shards + 1)]
    workers = pool.num_workers(output.workers, len(items))
    shards = []
    with pool.mapper(function, workers) as run, _progress(len(items), output.name) as bar:
        results = run(items)
        for index in range(num_shards):
            path = directory / f"{output.name}-{index:05d}-of-{num_shards:05d}.tfrecord"
            results_of_shard = (next(results) for _ in range(bounds[index + 1] - bounds[index]))
            shards.append(_write_shard(path, tally.examples(results_of_shard, bar)))
    sync_directory(directory)
    counts = {name: tally.classes[name] for name in vocabulary.names if name in tally.classes}
    manifest = Manifest(
        name=output.name,
        shards=tuple(shards),
        vocabulary=vocabulary,
        class_counts={name: (pair[0], pair[1]) for name, pair in counts.items()},
        max_objects_per_image=tally.max_objects,
        set_a=None if set_a is None else tuple(set_a),
        issues=issues_lib.tabulate(tally.issues),
        source=dict(source),
    )
    manifest.save(directory)
    return manifest


def describe(manifest: Manifest, directory: str) -> str:
    """A few lines for the console: what was written, and what was dropped or repaired."""
    megabytes = sum(shard.bytes for shard in manifest.shards) / 1e6
    head = (
        f"{directory}: {manifest.num_images} images, {manifest.num_objects} objects, "
        f"{manifest.num_masks} with mask, {len(manifest.shards)} shards, {megabytes:.1f} MB."
    )
    found = issues_lib.summary(manifest.issues)
    if not found:
        return f"{head}\nNothing was dropped or repaired."
    return f"{head}\nDropped or repaired (all ids: {manifest_lib.FILE_NAME}):\n{found}"


@dataclasses.dataclass
class _Tally:
    """Counts over all results, in order."""

    issues: list[Issue]
    max_objects: int = 0
    classes: dict[str, list[int]] = dataclasses.field(
        default_factory=lambda: collections.defaultdict(lambda: [0, 0])
    )

    def examples(self, results: Iterator[Encoded], bar: tqdm.tqdm) -> Iterator[bytes]:
        for result in results:
            self.issues += result.issues
            self.max_objects = max(self.max_objects, len(result.classes))
            for name, has_mask in result.classes:
                self.classes[name][0] += 1
                self.classes[name][1] += has_mask
            if result.example is not None:
                yield result.example
            bar.update()


def _write_shard(path: pathlib.Path, examples: Iterator[bytes]) -> Shard:
    import tensorflow as tf  # here, since the worker processes import this module as well

    temporary = path.with_suffix(TEMPORARY)
    count = 0
    try:
        with tf.io.TFRecordWriter(str(temporary)) as writer:
            for count, example in enumerate(examples, start=1):  # noqa: B007
                writer.write(example)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return Shard(path.name, count, path.stat().st_size, digest)


@contextlib.contextmanager
def _progress(total: int, name: str) -> Iterator[tqdm.tqdm]:
    with tqdm.tqdm(total=total, desc=name, unit=" images", dynamic_ncols=True) as bar:
        yield bar
