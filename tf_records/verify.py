"""Finds every damage of record directories.

Example:
  maskx records verify records/mine/train records/mine/val
"""

from __future__ import annotations

import collections
import functools
import hashlib
import itertools
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import BinaryIO, NamedTuple

import tqdm
from absl import flags

from maskx_tf.data.records import framing
from maskx_tf.data.records.framing import Frame
from maskx_tf.data.records.index import image_id
from maskx_tf.data.records.manifest import Manifest
from maskx_tf.errors import UserError
from maskx_tf.system import cli
from tf_records import directories, pool, verify_report
from tf_records.verify_contents import Contents, Object, examine
from tf_records.verify_report import Fault, Record, Report, Tally

_RECORDS_PER_TASK = 32

Objects = tuple[Object, ...]


class _Task(NamedTuple):
    """Records (number, frame) of a file to read; none: the file to hash."""

    path: str
    records: tuple[tuple[int, Frame], ...] = ()


def verify(records: Sequence[str], workers: int = 0) -> Report:
    """Checks directories: files against manifest, framing, checksums, contents.

    Goes on after a fault wherever the next record can be found.

    Args:
      records: directories, each with manifest.json.
      workers: processes; 0: one per core.

    Raises:
      UserError: a directory has no readable manifest.
    """
    report = Report()
    for directory in records:
        _verify_directory(pathlib.Path(directory), Manifest.load(directory), workers, report)
    return report


def _verify_directory(
    directory: pathlib.Path, manifest: Manifest, workers: int, report: Report
) -> None:
    shards = {str(directory / shard.file): shard for shard in manifest.shards}
    before = len(report.faults)
    for file in sorted(directory.glob("*.tfrecord*")):
        if str(file) not in shards:
            report.faults.append(Fault(str(file), "is not in the manifest"))
    present = {path: shard for path, shard in shards.items() if pathlib.Path(path).is_file()}
    for path in sorted(shards.keys() - present.keys()):
        report.faults.append(Fault(path, f"is missing ({shards[path].count} records)"))
    workers = pool.num_workers(workers, manifest.num_images)
    function = functools.partial(_run, names=manifest.vocabulary.names)
    records: list[Record] = []
    tally = Tally(manifest.crowd_counts is None)
    hashes: dict[str, str] = {}
    walked: dict[str, list[Fault]] = {path: [] for path in present}
    with (
        pool.mapper(function, workers, decodes=True) as run,
        tqdm.tqdm(total=manifest.num_images, desc=manifest.name, unit=" images") as bar,
    ):
        for result in run(_tasks(walked)):
            if isinstance(result, tuple):
                hashes[result[0]] = result[1]
                continue
            for record, objects in result:
                records.append(record)
                tally.add(objects)
            bar.update(len(result))
    counts = collections.Counter(record.path for record in records)
    for path, shard in present.items():
        report.faults += walked[path]
        report.faults += verify_report.shard_faults(path, shard, counts[path], hashes.get(path))
    report.faults += verify_report.record_faults(records)
    if len(report.faults) == before:
        report.faults += tally.faults(str(directory / "manifest.json"), manifest)
    report.files += len(present)
    report.images += len(records)
    report.objects += sum(objects for objects, _ in tally.classes.values())
    report.masks += sum(masks for _, masks in tally.classes.values())


def _tasks(walked: dict[str, list[Fault]]) -> Iterator[_Task]:
    """The work on some files; damage between records is noted in `walked` on the way."""
    for path, faults in walked.items():
        yield _Task(path)
        frames = _frames(path, faults)
        while group := tuple(itertools.islice(frames, _RECORDS_PER_TASK)):
            yield _Task(path, group)


def _frames(path: str, faults: list[Fault]) -> Iterator[tuple[int, Frame]]:
    number = 0
    try:
        for item in framing.walk(path):
            if isinstance(item, Frame):
                yield number, item
            else:
                faults.append(Fault(path, item.message, number, item.offset))
            number += 1
    except OSError as error:
        faults.append(Fault(path, f"cannot be read: {error.strerror}", number))


def _run(task: _Task, names: Sequence[str]) -> tuple[str, str] | list[tuple[Record, Objects]]:
    """The path and sha256 of a file, or its records with their objects."""
    try:
        with open(task.path, "rb", buffering=0) as file:
            if not task.records:
                return task.path, hashlib.file_digest(file, "sha256").hexdigest()
            return [_read(task.path, file, *item, names) for item in task.records]
    except OSError as error:
        raise UserError(f"{task.path} cannot be read: {error.strerror}.") from None


def _read(
    path: str, file: BinaryIO, number: int, frame: Frame, names: Sequence[str]
) -> tuple[Record, Objects]:
    payload, damage = framing.read_payload(file, frame)
    found = Contents(image_id(payload), (), (damage,)) if damage else examine(payload, names)
    crc = framing.masked_crc(payload)
    return Record(path, number, frame.offset, found.image_id, crc, found.faults), found.objects


def define_flags() -> None:
    """Defines this command's flags."""
    directories.define_flags()
    flags.DEFINE_integer("workers", 0, "Processes; 0: one per core.")


def main() -> None:
    """Prints each fault and the counts; exit code 1 if there are faults."""
    report = verify(directories.from_flags(), flags.FLAGS.workers)
    for fault in report.faults:
        print(fault)
    print(report.summary())
    if report.faults:
        sys.exit(1)


if __name__ == "__main__":
    define_flags()
    sys.argv = directories.to_flag(sys.argv)
    cli.run(main)
