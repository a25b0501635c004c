"""Where every record of a data set lies and which way its image lies, from the files' headers.

It takes 30 µs a record (4 s for COCO) and no record is held, so that any record can be read at any
time: shuffling is global, and a run is resumed at any step without reading what came before.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import BinaryIO

import numpy as np
from absl import logging

from maskx_tf.data.records import framing, schema
from maskx_tf.data.records.example_peek import peek, peek_features
from maskx_tf.data.records.framing import Fault, Frame
from maskx_tf.errors import UserError

REMEDY = "maskx records verify {} lists all damage; write the records again"
_MAX_LISTED = 10  # places of damage in a message
_THREADS = 8  # they wait for the disk
_SIZE_KEYS = ("image/height", "image/width")
_ID_KEY = "image/source_id"
NO_ID = "unknown"  # what `image_id` gives where there is none


@dataclasses.dataclass(frozen=True)
class Index:
    """N records in the order of their files.

    Attributes:
      paths: the files.
      shard: int64 [N], index of the record's file.
      number: int64 [N], place of the record in its file, from 0.
      offset: int64 [N], of the record's header in the file.
      length: int64 [N], bytes of the payload.
      portrait: bool [N], the image is higher than wide.
    """

    paths: tuple[str, ...]
    shard: np.ndarray
    number: np.ndarray
    offset: np.ndarray
    length: np.ndarray
    portrait: np.ndarray

    def __len__(self) -> int:
        return len(self.shard)


def build(
    paths: Sequence[pathlib.Path], counts: Mapping[pathlib.Path, int], skip_corrupt: bool
) -> Index:
    """Finds the records of files.

    Args:
      paths: the files.
      counts: number of records that a file should hold, where it is known.
      skip_corrupt: read all records and decode their images, leave out those that are damaged, and
        warn of them; else payloads are not read and damage between records is an error.

    Raises:
      UserError: a file is missing, holds no record, or its framing is damaged.
    """
    scanned = _scan_all(paths, payloads=skip_corrupt)
    messages = {
        path: message
        for path, (rows, faults) in zip(paths, scanned, strict=True)
        if (message := _loss(path, len(rows), counts.get(path), faults))
    }
    for path, message in messages.items():
        if not skip_corrupt:
            remedy = REMEDY.format(path.parent)
            raise UserError(f"{message} {remedy}, or train with --skip_corrupt_records.")
        logging.warning("%s", message)
    rows = np.concatenate([rows for rows, _ in scanned])  # [N, 4]
    if messages:
        whole = len(rows)
        logging.warning("%d files are damaged; %d intact records are used.", len(messages), whole)
    if not len(rows):
        raise UserError(f"There is no intact record in {', '.join(map(str, paths[:5]))}.")
    lengths = [len(rows) for rows, _ in scanned]
    return Index(
        paths=tuple(map(str, paths)),
        shard=np.repeat(np.arange(len(paths)), lengths),
        number=rows[:, 0],
        offset=rows[:, 1],
        length=rows[:, 2],
        portrait=rows[:, 3] > 0,
    )


def features_of(found: Index, keys: Sequence[str]) -> list[list[bytes]]:
    """Some features of every record, as bytes of a tf.train.Feature; b"" where there is none.

    Raises:
      UserError: a file cannot be read.
    """

    def read_file(shard: int) -> list[list[bytes]]:
        rows = []
        path = found.paths[shard]
        try:
            with open(path, "rb", buffering=0) as file:
                for place in np.flatnonzero(found.shard == shard):
                    frame = Frame(int(found.offset[place]), int(found.length[place]))
                    read = functools.partial(_read_inside, file, frame)
                    features = peek_features(read, frame.length, keys)
                    rows.append([features.get(key, b"") for key in keys])
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}.") from None
        return rows

    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        return [row for rows in pool.map(read_file, range(len(found.paths))) for row in rows]


def damaged_files(paths: Sequence[pathlib.Path]) -> list[str]:
    """A sentence for each file with records that training cannot use; all of them are read."""
    scanned = zip(paths, _scan_all(paths, payloads=True), strict=True)
    return [_loss(path, len(rows), None, faults) for path, (rows, faults) in scanned if faults]


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a record lies."""

    path: pathlib.Path
    frame: Frame

    def read(self) -> bytes:
        """The payload; UserError if it is damaged."""
        with open(self.path, "rb", buffering=0) as file:
            payload, damage = framing.read_payload(file, self.frame)
        if damage:
            remedy = REMEDY.format(self.path.parent)
            raise UserError(f"{self.path}, byte {self.frame.offset}: {damage}; {remedy}.")
        return payload


def places_by_image_id(paths: Sequence[pathlib.Path]) -> dict[int, Place]:
    """The records of files by image id, the first of several with one id.

    Raises:
      UserError: there is damage between records, or in one whose id cannot be found.
    """
    places: dict[int, Place] = {}
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            for item in framing.walk(path):
                if isinstance(item, Fault):
                    remedy = REMEDY.format(path.parent)
                    raise UserError(f"{path}, byte {item.offset}: {item.message}; {remedy}.")
                place = Place(path, item)
                number = _image_id(functools.partial(_read_inside, file, item), item.length)
                if number == NO_ID:
                    place.read()  # which tells where it is damaged
                    remedy = REMEDY.format(path.parent)
                    raise UserError(f"{path}, byte {item.offset}: no image id; {remedy}.")
                places.setdefault(int(number), place)
    return places


def image_sizes(paths: Sequence[pathlib.Path]) -> dict[int, tuple[int, int]]:
    """Image id -> (height, width), as far as the headers of records tell."""
    sizes = {}
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            for item in framing.walk(path):
                if isinstance(item, Frame):
                    read = functools.partial(_read_inside, file, item)
                    number = _image_id(read, item.length)
                    size = peek(read, item.length, _SIZE_KEYS)
                    if number != NO_ID and len(size) == len(_SIZE_KEYS):
                        sizes[int(number)] = (int(size[_SIZE_KEYS[0]]), int(size[_SIZE_KEYS[1]]))
    return sizes


def image_id(payload: bytes) -> str:
    """The image id in a perhaps damaged record, as decimal text; `NO_ID` if there is none."""
    return _image_id(lambda at, count: payload[at : at + count], len(payload))


def _image_id(read: Callable[[int, int], bytes], length: int) -> str:
    value = peek(read, length, [_ID_KEY]).get(_ID_KEY, b"")
    text = value.decode(errors="replace") if isinstance(value, bytes) else ""
    return text if re.fullmatch("-?[0-9]+", text) else NO_ID


def describe_damage(path: pathlib.Path, number: int, offset: int) -> str:
    """What is wrong with the record at a byte of a file, with its image id as far as known."""
    place = f"{path}, record {number} at byte {offset}"
    try:
        with open(path, "rb", buffering=0) as file:
            header = framing.read_at(file, offset, 8)
            frame = Frame(offset, int.from_bytes(header, "little"))
            if frame.end > path.stat().st_size:
                return f"{place}: the file is shorter than when it was opened"
            payload, fault = framing.read_payload(file, frame)
    except OSError as error:
        return f"{place}: {error.strerror}"
    return f"{place} (image {image_id(payload)}): {fault or 'it could not be read'}"


def _scan_all(
    paths: Sequence[pathlib.Path], payloads: bool
) -> list[tuple[np.ndarray, list[Fault]]]:
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(functools.partial(_scan, payloads=payloads), paths))


def _scan(path: pathlib.Path, payloads: bool) -> tuple[np.ndarray, list[Fault]]:
    """int64 [n, 4]: number, offset, length, 1 for portrait; and the damage.

    Numbers count the records that can be told apart, damaged payloads included.
    """
    rows, faults = [], []
    number = 0
    try:
        with open(path, "rb", buffering=0) as file:
            for item in framing.walk(path):
                fault = item if isinstance(item, Fault) else None
                if isinstance(item, Frame):
                    fault = _payload_fault(file, item, number) if payloads else None
                    portrait = _is_portrait(file, item)
                    if fault is None:
                        rows.append((number, item.offset, item.length, int(portrait)))
                    number += 1
                if fault is not None:
                    faults.append(fault)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    return np.array(rows, np.int64).reshape(-1, 4), faults


def _payload_fault(file: BinaryIO, frame: Frame, number: int) -> Fault | None:
    """What is wrong with a record: damage, or what training would stumble on."""
    payload, fault = framing.read_payload(file, frame)
    if fault is None:
        try:
            fault = schema.image_fault(schema.columns_of(payload)[0])
        except UserError as error:
            fault = str(error).rstrip(".")
    where = f"record {number}, image {image_id(payload)}"
    return Fault(frame.offset, f"{where}: {fault}") if fault else None


def _is_portrait(file: BinaryIO, frame: Frame) -> bool:
    size = peek(functools.partial(_read_inside, file, frame), frame.length, _SIZE_KEYS)
    height, width = (int(size.get(key, 0)) for key in _SIZE_KEYS)
    return height > width


def _read_inside(file: BinaryIO, frame: Frame, offset: int, count: int) -> bytes:
    return framing.read_at(file, frame.offset + framing.HEADER_BYTES + offset, count)


def _loss(path: pathlib.Path, found: int, expected: int | None, faults: Sequence[Fault]) -> str:
    """What of a file is not there; empty if nothing is missing."""
    places = [f"byte {fault.offset}: {fault.message}" for fault in faults[:_MAX_LISTED]]
    if len(faults) > _MAX_LISTED:
        places.append(f"{len(faults) - _MAX_LISTED} more")
    if expected is None or expected == found:
        return f"{path} is damaged at {'; '.join(places)}." if faults else ""
    lost = f"{path}: {found} of the {expected} records of its manifest are intact"
    return f"{lost} ({'; '.join(places) or 'the file ends between two records'})."
