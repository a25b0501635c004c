"""The framing of TFRecord files: where records lie, whether their checksums fit, what is damaged.

A record is its length (uint64), the checksum of those 8 bytes, the payload, and its checksum; all
numbers little-endian, checksums masked CRC-32C. A file has neither head nor end, so that one that
is cut between two records reads without any fault.
"""

from __future__ import annotations

import os
import pathlib
import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import google_crc32c

HEADER_BYTES, FOOTER_BYTES = 12, 4
_CHUNK_BYTES = 1 << 20
_ZEROS = bytes(512)  # of what is compressed, no record has so many in a row


class Frame(NamedTuple):
    """A record: `offset` of its header in the file, and bytes of its payload."""

    offset: int
    length: int

    @property
    def end(self) -> int:
        """Offset of the byte after the record."""
        return self.offset + HEADER_BYTES + self.length + FOOTER_BYTES


class Fault(NamedTuple):
    """Bytes between two records that are none, and what is wrong with them."""

    offset: int
    message: str


def masked_crc(data: bytes) -> int:
    """The checksum that the format stores of `data`."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def read_at(file: BinaryIO, offset: int, count: int) -> bytes:
    """Up to `count` bytes from `offset`; fewer only at the end of the file."""
    file.seek(offset)
    return file.read(count)


def walk(path: str | os.PathLike[str]) -> Iterator[Frame | Fault]:
    """The records of a file in order, by their headers alone: payloads are not looked at.

    After a header that does not fit, goes on with the next one that does; what lies between is one
    fault. Records without a fault before, between and after them fill the file.

    Raises:
      OSError: the file cannot be read.
    """
    size = pathlib.Path(path).stat().st_size
    offset = 0
    with open(path, "rb", buffering=0) as file:
        while offset < size:
            frame = _frame_at(file, offset, size)
            if frame is None:
                following = _next_header(file, offset + 1, size)
                yield Fault(offset, _diagnosis(file, offset, size, following))
                offset = following
            else:
                yield frame
                offset = frame.end


def read_payload(file: BinaryIO, frame: Frame) -> tuple[bytes, str | None]:
    """The payload of a record, and what is wrong with it; None: its checksum fits."""
    data = read_at(file, frame.offset + HEADER_BYTES, frame.length + FOOTER_BYTES)
    payload = data[: frame.length]
    if len(data) < frame.length + FOOTER_BYTES:
        return payload, f"the file ends {frame.length + FOOTER_BYTES - len(data)} bytes too early"
    if int.from_bytes(data[frame.length :], "little") == masked_crc(payload):
        return payload, None
    zeros = payload.find(_ZEROS)
    if zeros < 0:
        return payload, "the payload does not match its checksum"
    count = len(payload) - zeros - len(payload[zeros:].lstrip(b"\0"))
    at = frame.offset + HEADER_BYTES + zeros
    return payload, f"the payload does not match its checksum: {count} zero bytes from byte {at}"


def _frame_at(file: BinaryIO, offset: int, size: int) -> Frame | None:
    header = read_at(file, offset, HEADER_BYTES)
    if not _fits(header):
        return None
    frame = Frame(offset, int.from_bytes(header[:8], "little"))
    return frame if frame.end <= size else None


def _fits(header: bytes) -> bool:
    """Whether the header is whole and its length has the checksum that follows."""
    return len(header) == HEADER_BYTES and masked_crc(header[:8]) == _checksum(header)


def _checksum(header: bytes) -> int:
    return int.from_bytes(header[8:], "little")


def _next_header(file: BinaryIO, start: int, size: int) -> int:
    """Offset of the next record that fits; the file's size if there is none."""
    for base in range(start, size, _CHUNK_BYTES):
        chunk = read_at(file, base, _CHUNK_BYTES + HEADER_BYTES - 1)
        place = chunk.find(bytes(4), 4)  # the upper half of a length below 4 GiB
        while place >= 0:
            at = place - 4
            if _fits(chunk[at : at + HEADER_BYTES]) and _frame_at(file, base + at, size):
                return base + at
            place = chunk.find(bytes(4), place + 1)
    return size


def _diagnosis(file: BinaryIO, offset: int, size: int, following: int) -> str:
    """What happened to the header at `offset`, given where the next record that fits begins."""
    header = read_at(file, offset, HEADER_BYTES)
    lost = f"; the bytes up to {following} are lost"
    if len(header) < HEADER_BYTES:
        return f"the file ends inside a header, after {len(header)} of {HEADER_BYTES} bytes"
    length = int.from_bytes(header[:8], "little")
    if _fits(header):
        missing = Frame(offset, length).end - size
        return f"the file ends inside the record, {missing} of its bytes are missing"
    if not any(header):
        span = read_at(file, offset, min(following - offset, _CHUNK_BYTES))
        return f"{len(span) - len(span.lstrip(bytes(1)))} zero bytes{lost}"
    frame = Frame(offset, length)
    if frame.end <= size and read_payload(file, frame)[1] is None:
        return f"the checksum of the length is damaged{lost}, though the payload is whole"
    true_length = following - offset - HEADER_BYTES - FOOTER_BYTES
    if masked_crc(struct.pack("<Q", max(true_length, 0))) == _checksum(header):
        return f"the length is damaged: {length} in place of {true_length}{lost}"
    return f"the length does not match its checksum{lost}"
