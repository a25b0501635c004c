"""The ways in which a record file is damaged in tests."""

import pathlib

from maskx_tf.data.records import framing

KINDS = (
    "payload bit",
    "length byte",
    "length checksum",
    "cut in a record",
    "cut in a header",
    "cut between records",
    "4 kB of zeros",
)


def damage(path: pathlib.Path, kind: str, number: int) -> int:
    """Damages a file of several records at or after record `number`; returns that one's offset."""
    frames = list(framing.walk(path))
    frame, data = frames[number], bytearray(path.read_bytes())
    start = frame.offset + framing.HEADER_BYTES
    if kind == "payload bit":
        data[start + frame.length // 2] ^= 16
    elif kind == "length byte":
        data[frame.offset + 1] ^= 1
    elif kind == "length checksum":
        data[frame.offset + 9] ^= 1
    elif kind == "cut in a record":
        del data[start + 20 :]
    elif kind == "cut in a header":
        del data[frame.offset + 5 :]
    elif kind == "cut between records":
        del data[frame.offset :]
    else:
        assert kind == "4 kB of zeros" and len(data) > frame.offset + 5000
        data[frame.offset + 300 : frame.offset + 300 + 4096] = bytes(4096)
    path.write_bytes(data)
    return frame.offset
