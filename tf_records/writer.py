"""Writes record shards from any sequence of work items, with several processes or machines.

Shards appear whole, manifest.json comes last, so a directory with a manifest is complete; a killed
run resumes where it was when it is repeated. The bytes do not depend on who writes them.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import tqdm

from maskx_tf.data.classes import Vocabulary
from maskx_tf.data.coco import issues as issues_lib
from maskx_tf.data.coco.issues import Issue
from maskx_tf.data.records import manifest as manifest_lib
from maskx_tf.data.records.manifest import Manifest
from maskx_tf.data.records.schema import ImageRecord, serialize_record
from maskx_tf.errors import UserError
from tf_records import beam, losses, pool
from tf_records.output import Output
from tf_records.plan import Plan
from tf_records.shards import Encoded, Part, load_parts, write_shard

Item = TypeVar("Item")


def encode(record: ImageRecord, issues: Sequence[Issue] = ()) -> Encoded:
    """The result for an image that is kept."""
    objects = [item for item in record.objects if not item.is_crowd]
    ends = [item.box_yxyx[2:] / (record.height, record.width) for item in objects]
    reach = np.max(ends, axis=0) if ends else np.zeros(2)
    return Encoded(
        serialize_record(record),
        tuple((item.class_name, item.mask is not None) for item in objects),
        tuple(issues),
        tuple(item.mask_source for item in objects if item.mask is not None),
        tuple(item.class_name for item in record.objects if item.is_crowd),
        (record.image_id, hashlib.blake2b(record.encoded, digest_size=8).hexdigest()),
        (float(reach[0]), float(reach[1])),
        tuple(item.mask_source for item in objects if item.mask_weight != 1),
    )


def write(
    function: Callable[[Item], Encoded],
    items: Sequence[Item],
    output: Output,
    *,
    vocabulary: Vocabulary,
    source: Mapping[str, Any],
    issues: Sequence[Issue] = (),
    set_a: Sequence[str] | None = None,
    class_attributes: Mapping[str, Mapping[str, str]] | None = None,
) -> Manifest:
    """Writes `function(item)` for all items, in order, and the manifest.

    Finished shards of a killed run with the same source and settings are kept.

    Args:
      function: picklable; depends on its item only. A UserError of it ends the run.
      items: picklable work items, one for each image.
      output: where to and by whom; see there for what happens to records that are there.
      vocabulary: classes of the records.
      source: json-like description of the input and settings, kept in the manifest.
      issues: what was found wrong before encoding.
      set_a: class names kept in the manifest.
      class_attributes: kept in the manifest.

    Raises:
      UserError: too much was dropped, see `losses`; nothing is written then.
    """
    kept = output.reusable(source, len(items))
    if kept is not None and not output.leftovers():
        return kept
    with output.locked():
        kept = output.reusable(source, len(items))
        if kept is None:
            parts = _write_parts(function, items, output, [vocabulary.categories(), dict(source)])
            kept = _manifest(output.name, parts, vocabulary, source, issues, set_a)
            kept = dataclasses.replace(kept, class_attributes=class_attributes or {})
            if loss := losses.too_much(kept, output.most_dropped):
                output.remove_old()
                raise UserError(loss)
            kept.save(output.directory)
        output.sweep(finished=True)
    return kept


def _write_parts(
    function: Callable[[Item], Encoded], items: Sequence[Item], output: Output, source: Any
) -> list[Part]:
    """Writes the shards that are not there yet; what all of them hold, in order."""
    plan = Plan.make(output.directory, output.name, len(items), output.num_shards, source)
    if output.overwrite:
        output.remove_old()
    output.sweep(finished=False)
    parts = load_parts(plan)
    missing = [index for index in range(plan.num_shards) if index not in parts]
    if parts:
        print(
            f"{output.directory}: {len(parts)} of {plan.num_shards} shards are finished already.",
            file=sys.stderr,
        )
    if missing:
        done = len(items) - sum(map(plan.size, missing))
        with tqdm.tqdm(
            total=len(items), initial=done, desc=output.name, unit=" images", dynamic_ncols=True
        ) as bar:
            if output.runner == "beam":
                parts |= beam.write_shards(function, items, plan, missing, output, bar)
            else:
                parts |= _write_shards(function, items, plan, missing, output.workers, bar)
    return [parts[index] for index in range(plan.num_shards)]


def _write_shards(
    function: Callable[[Item], Encoded],
    items: Sequence[Item],
    plan: Plan,
    missing: Sequence[int],
    wanted_workers: int,
    bar: tqdm.tqdm,
) -> dict[int, Part]:
    workers = pool.num_workers(wanted_workers, sum(map(plan.size, missing)))
    with pool.mapper(function, workers, decodes=True) as run:
        results = run(plan.items(items, missing))
        return {
            index: write_shard(
                plan.path(index), _take(results, plan.size(index), bar), plan.fingerprint
            )
            for index in missing
        }


def _take(results: Iterator[Encoded], count: int, bar: tqdm.tqdm) -> Iterator[Encoded]:
    for _ in range(count):
        yield next(results)
        bar.update()


def _manifest(
    name: str,
    parts: Sequence[Part],
    vocabulary: Vocabulary,
    source: Mapping[str, Any],
    issues: Sequence[Issue],
    set_a: Sequence[str] | None,
) -> Manifest:
    counts: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])
    sources: collections.Counter[str] = collections.Counter()
    weighted: collections.Counter[str] = collections.Counter()
    crowds: collections.Counter[str] = collections.Counter()
    for part in parts:
        sources.update(part.mask_sources)
        weighted.update(part.weighted_masks)
        crowds.update(part.crowds)
        for class_name, (objects, masks) in part.classes.items():
            counts[class_name][0] += objects
            counts[class_name][1] += masks
    manifest = Manifest(
        name=name,
        shards=tuple(part.shard for part in parts),
        vocabulary=vocabulary,
        class_counts={
            class_name: (counts[class_name][0], counts[class_name][1])
            for class_name in vocabulary.names
            if class_name in counts
        },
        max_objects_per_image=max((part.max_objects for part in parts), default=0),
        set_a=None if set_a is None else tuple(set_a),
        issues=issues_lib.tabulate(_all_issues(issues, parts)),
        source=dict(source),
        mask_sources=dict(sorted(sources.items())),
        crowd_counts=dict(sorted(crowds.items())),
        weighted_masks=dict(sorted(weighted.items())),
    )
    reach = [max((part.reach[axis] for part in parts), default=0.0) for axis in (0, 1)]
    return dataclasses.replace(manifest, warnings=losses.warnings(manifest, reach))


def _all_issues(issues: Sequence[Issue], parts: Iterable[Part]) -> Iterator[Issue]:
    yield from issues
    first: dict[str, int] = {}
    for part in parts:
        yield from part.issues
        for image_id, photo in part.photos:
            if first.setdefault(photo, image_id) != image_id:
                yield Issue("image_repeated", image_id)


def describe(manifest: Manifest, directory: str) -> str:
    """A few lines for the console: what was written, and what was dropped or repaired."""
    megabytes = sum(shard.bytes for shard in manifest.shards) / 1e6
    crowds = f" and {manifest.num_crowds} crowds" if manifest.num_crowds else ""
    head = (
        f"{directory}: {manifest.num_images} images, {manifest.num_objects} objects, "
        f"{manifest.num_masks} with mask{crowds}, "
        f"{len(manifest.shards)} shards, {megabytes:.1f} MB."
    )
    found = issues_lib.summary(manifest.issues, manifest.num_objects)
    lines = [head, "Nothing was dropped or repaired."]
    if found:
        lines = [head, f"Dropped, repaired or odd (all ids: {manifest_lib.FILE_NAME}):", found]
    return "\n".join([*lines, *(f"warning: {warning}" for warning in manifest.warnings)])
