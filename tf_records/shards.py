"""One shard of records: written whole or not at all, with a sidecar that lets a later run adopt it.

The sidecar is there before the shard gets its name, so that a shard without one is never of a
killed run. Both are written under temporary names of their own: two processes that write the same
shard at once, as runners of several machines may do, leave one whole file of equal bytes.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import os
import pathlib
import struct
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from maskx_tf.data.coco.issues import Issue
from maskx_tf.data.records.framing import masked_crc
from maskx_tf.data.records.manifest import Shard
from maskx_tf.errors import UserError
from maskx_tf.system.files import sync_directory, write_atomically
from tf_records.plan import Plan

TEMPORARY = ".tmp"  # end of every file that is not finished
SIDECAR = ".done.json"
STEM = "*-[0-9][0-9][0-9][0-9][0-9]-of-[0-9][0-9][0-9][0-9][0-9]"  # of a shard, for glob
_BUFFER_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class Encoded:
    """What a worker returns for an item.

    Attributes:
      example: the serialised record; None if the item was dropped.
      classes: (class name, has mask) of each object; crowds are none.
      issues: what was dropped or repaired.
      mask_sources: of each of their masks, see `schema.ObjectRecord`.
      crowds: class names of crowds.
      photo: (image id, hash of the image file); None: none of its own.
      reach: (y, x) of the farthest end of a box, as a share of the image's height and width.
      weighted_masks: of each mask with a weight other than 1, its source.
    """

    example: bytes | None
    classes: tuple[tuple[str, bool], ...] = ()
    issues: tuple[Issue, ...] = ()
    mask_sources: tuple[str, ...] = ()
    crowds: tuple[str, ...] = ()
    photo: tuple[int, str] | None = None
    reach: tuple[float, float] = (0.0, 0.0)
    weighted_masks: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Part:
    """What a finished shard adds to the manifest; its sidecar says the same.

    Attributes:
      shard: name, count, bytes and sha256.
      max_objects: largest number of objects in an image, crowds included.
      classes: class name -> (objects, objects with mask), without crowds.
      issues: of its items, in order.
      mask_sources: source -> number of masks.
      crowds: class name -> number of crowds.
      photos: see `Encoded.photo`.
      reach: see `Encoded.reach`.
      weighted_masks: source -> number of masks with a weight other than 1.
    """

    shard: Shard
    max_objects: int
    classes: Mapping[str, tuple[int, int]]
    issues: tuple[Issue, ...]
    mask_sources: Mapping[str, int]
    crowds: Mapping[str, int]
    photos: tuple[tuple[int, str], ...]
    reach: tuple[float, float]
    weighted_masks: Mapping[str, int]


def write_shard(path: pathlib.Path, results: Iterable[Encoded], fingerprint: str) -> Part:
    """Writes the records of `results`, synced, then the sidecar, then renames the shard.

    Raises:
      UserError: the disk is full or the directory cannot be written.
    """
    temporary = path.with_suffix(f".{uuid.uuid4().hex}{TEMPORARY}")
    tally = _Tally()
    try:
        digest = _write_records(temporary, tally.examples(results))
        shard = Shard(path.name, tally.count, temporary.stat().st_size, digest)
        part = tally.part(shard)
        _write_sidecar(path, part, fingerprint)
        temporary.replace(path)
        sync_directory(path.parent)
        return part
    except OSError as error:
        raise UserError(
            f"{path} cannot be written: {error.strerror}. Fix that and repeat the command: "
            "finished shards are kept."
        ) from None
    finally:
        temporary.unlink(missing_ok=True)


def _write_records(path: pathlib.Path, examples: Iterable[bytes]) -> str:
    """Writes a synced TFRecord file without TensorFlow, whose import takes seconds; its sha256."""
    digest = hashlib.sha256()
    with open(path, "wb", buffering=_BUFFER_BYTES) as file:
        for example in examples:
            length = struct.pack("<Q", len(example))
            for data in (length + _checksum(length), example, _checksum(example)):
                file.write(data)
                digest.update(data)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _checksum(data: bytes) -> bytes:
    return struct.pack("<I", masked_crc(data))


def load_parts(plan: Plan) -> dict[int, Part]:
    """The shards of the plan that are there whole, as their sidecars tell.

    Raises:
      UserError: a sidecar is of another source or other settings.
    """
    paths = {sidecar_of(plan.path(index)): index for index in range(plan.num_shards)}
    for sidecar in plan.directory.glob(f"{STEM}{SIDECAR}"):
        if sidecar not in paths or _read_sidecar(sidecar).get("fingerprint") != plan.fingerprint:
            raise UserError(
                f"{plan.directory} holds an unfinished run of another source or other settings; "
                "repeat the command that began it, add --overwrite to replace it, or name another "
                "directory."
            )
    found = {index: load_part(plan.path(index), plan.fingerprint) for index in paths.values()}
    return {index: part for index, part in found.items() if part is not None}


def load_part(path: pathlib.Path, fingerprint: str, *, check_hash: bool = True) -> Part | None:
    """What the shard `path` holds, as its sidecar tells; None if one of them is not whole."""
    content = _read_sidecar(sidecar_of(path))
    if content.get("fingerprint") != fingerprint:
        return None
    shard = Shard(**content["shard"])
    if not path.is_file() or path.stat().st_size != shard.bytes:
        return None
    if check_hash:
        with open(path, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
                return None
    classes = {name: (pair[0], pair[1]) for name, pair in content["classes"].items()}
    issues = tuple(Issue(*issue) for issue in content["issues"])
    return Part(
        shard,
        content["max_objects"],
        classes,
        issues,
        content["mask_sources"],
        content["crowds"],
        tuple((image_id, digest) for image_id, digest in content["photos"]),
        (content["reach"][0], content["reach"][1]),
        content.get("weighted_masks", {}),  # absent from those of before weights
    )


def _read_sidecar(path: pathlib.Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def sidecar_of(path: pathlib.Path) -> pathlib.Path:
    """The sidecar of the shard `path`."""
    return path.with_suffix(SIDECAR)


def _write_sidecar(path: pathlib.Path, part: Part, fingerprint: str) -> None:
    content = {"fingerprint": fingerprint, **vars(part), "shard": vars(part.shard)}
    own = path.with_suffix(f".{uuid.uuid4().hex}{SIDECAR}{TEMPORARY}")
    write_atomically(own, json.dumps(content))
    own.replace(sidecar_of(path))


class _Tally:
    """Counts over the results of a shard, in order."""

    def __init__(self) -> None:
        self.count = 0
        self._max_objects = 0
        self._issues: list[Issue] = []
        self._classes: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])
        self._mask_sources: collections.Counter[str] = collections.Counter()
        self._weighted_masks: collections.Counter[str] = collections.Counter()
        self._crowds: collections.Counter[str] = collections.Counter()
        self._photos: list[tuple[int, str]] = []
        self._reach = (0.0, 0.0)

    def examples(self, results: Iterable[Encoded]) -> Iterator[bytes]:
        for result in results:
            self._issues += result.issues
            self._mask_sources.update(result.mask_sources)
            self._weighted_masks.update(result.weighted_masks)
            self._crowds.update(result.crowds)
            self._photos += [result.photo] if result.photo else []
            self._reach = (
                max(self._reach[0], result.reach[0]),
                max(self._reach[1], result.reach[1]),
            )
            count = len(result.classes) + len(result.crowds)
            self._max_objects = max(self._max_objects, count)
            for name, has_mask in result.classes:
                self._classes[name][0] += 1
                self._classes[name][1] += has_mask
            if result.example is not None:
                self.count += 1
                yield result.example

    def part(self, shard: Shard) -> Part:
        classes = {name: (pair[0], pair[1]) for name, pair in self._classes.items()}
        return Part(
            shard,
            self._max_objects,
            classes,
            tuple(self._issues),
            dict(self._mask_sources),
            dict(self._crowds),
            tuple(self._photos),
            self._reach,
            dict(self._weighted_masks),
        )
