"""Faults of record directories: what a person reads of them, and those that show only in the whole.

Those are files that are not as the manifest says, records that occur twice, and counts that differ.
"""

from __future__ import annotations

import collections
import dataclasses
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from maskx_tf.data.records.index import NO_ID
from maskx_tf.data.records.manifest import Manifest, Shard
from tf_records.verify_contents import Object


class Fault(NamedTuple):
    """A fault and where it is; None where that is unknown or does not apply."""

    path: str
    message: str
    record: int | None = None
    offset: int | None = None
    image_id: str | None = None

    def __str__(self) -> str:
        parts = [self.path]
        if self.record is not None:
            parts.append(f"record {self.record}")
        if self.offset is not None:
            parts.append(f"byte {self.offset}")
        if self.image_id is not None:
            parts.append(f"image {self.image_id}")
        return f"{', '.join(parts)}: {self.message}"


class Record(NamedTuple):
    """A record that was read; the checksum tells records with one image id apart."""

    path: str
    number: int
    offset: int
    image_id: str
    crc: int
    faults: tuple[str, ...]


@dataclasses.dataclass
class Report:
    """What was found in some directories."""

    faults: list[Fault] = dataclasses.field(default_factory=list)
    files: int = 0
    images: int = 0
    objects: int = 0
    masks: int = 0

    def summary(self) -> str:
        """One line: how much was read, how much is wrong."""
        read = (
            f"{self.files} files, {self.images} images, {self.objects} objects, "
            f"{self.masks} with mask"
        )
        if not self.faults:
            return f"{read}: no faults."
        places = len({fault.path for fault in self.faults})
        return f"{read}: {len(self.faults)} faults in {places} files. Write the records again."


def shard_faults(path: str, shard: Shard, count: int, digest: str | None) -> Iterator[Fault]:
    """Where a file differs from its manifest, given the records and the sha256 found."""
    size = pathlib.Path(path).stat().st_size
    if size != shard.bytes:
        yield Fault(path, f"has {size} bytes, the manifest says {shard.bytes}")
    if count != shard.count:
        yield Fault(path, f"{count} records can be told apart, the manifest says {shard.count}")
    if digest != shard.sha256:
        yield Fault(path, "the sha256 is not the one in the manifest")


def record_faults(records: Sequence[Record]) -> Iterator[Fault]:
    """The faults of single records, and those that occur twice."""
    first: dict[str, Record] = {}
    for record in records:
        place = (record.number, record.offset, record.image_id)
        for message in record.faults:
            yield Fault(record.path, message, *place)
        earlier = first.setdefault(record.image_id, record)
        if earlier is record or record.image_id == NO_ID:
            continue
        what = "the record is the same as" if earlier.crc == record.crc else "the image id is also"
        where = f"that of record {earlier.number} of {pathlib.Path(earlier.path).name}"
        yield Fault(record.path, f"{what} {where}", *place)


class Tally:
    """Counts over the records that can be read, to compare with the manifest's.

    Args:
      crowds_are_objects: count them as such, as manifests of before do.
    """

    def __init__(self, crowds_are_objects: bool) -> None:
        self._crowds_are_objects = crowds_are_objects
        self.crowds: collections.Counter[str] = collections.Counter()
        self.classes: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])
        self.sources: collections.Counter[str] = collections.Counter()
        self.weighted: collections.Counter[str] = collections.Counter()
        self.largest = 0

    def add(self, objects: Sequence[Object]) -> None:
        """Counts the objects of an image."""
        for name, source, is_weighted, is_crowd in objects:
            if is_crowd and not self._crowds_are_objects:
                self.crowds[name] += 1
                continue
            self.classes[name][0] += 1
            self.classes[name][1] += bool(source)
            self.sources.update([source] if source else [])
            self.weighted.update([source] if source and is_weighted else [])
        self.largest = max(self.largest, len(objects))

    def faults(self, path: str, manifest: Manifest) -> Iterator[Fault]:
        """Where the manifest, the file `path`, counts something else."""
        for name in sorted(manifest.class_counts.keys() | self.classes.keys()):
            said = tuple(manifest.class_counts.get(name, (0, 0)))
            found = tuple(self.classes.get(name, (0, 0)))
            if said != found:
                yield Fault(
                    path,
                    f"says {said[0]} objects of {name!r}, {said[1]} with mask; the records have "
                    f"{found[0]}, {found[1]} with mask",
                )
        said_crowds = manifest.crowd_counts or {}
        for name in sorted(said_crowds.keys() | self.crowds.keys()):
            if said_crowds.get(name, 0) != self.crowds[name]:
                message = f"says {said_crowds.get(name, 0)} crowds of {name!r}, the records have "
                yield Fault(path, f"{message}{self.crowds[name]}")
        for what, said_counts, counts in (
            ("masks", manifest.mask_sources, self.sources),
            ("weighted masks", manifest.weighted_masks, self.weighted),
        ):
            for name in sorted(said_counts.keys() | counts.keys()):
                said_masks = said_counts.get(name, 0)
                if said_masks != counts[name]:
                    message = f"says {said_masks} {what} of the source {name!r}, the records have "
                    yield Fault(path, f"{message}{counts[name]}")
        if self.largest != (said_largest := manifest.max_objects_per_image):
            message = f"says at most {said_largest} objects in an image, there are {self.largest}"
            yield Fault(path, message)
