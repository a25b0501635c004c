"""Reading a json in pieces gives what `json` gives, wherever the pieces end."""

import hashlib
import io
import json
import tracemalloc

import pytest

from maskx_tf.data.coco import instances, json_stream
from maskx_tf.data.coco.json_stream import JsonStream
from maskx_tf.errors import UserError

CONTENT = {
    "info": {"a": [1, 2.5, None], "é": "漢\u2028"},
    "empty": [],
    "images": [{"id": 1}, 12, -3.5e-7, 'x"y\\', None, True, [1, [2]], float("inf")],
    "n": 123456,
    "annotations": [{"p": [[1.25, 2.5]] * 20}] * 3,
}


def collected(data):
    stream = JsonStream(io.BytesIO(data), "x.json")
    found = {}
    for entry in stream.entries():
        if entry.index is None:
            found[entry.key] = entry.value
        else:
            assert entry.index == len(found[entry.key])
            found[entry.key].append(entry.value)
        if entry.index is not None or entry.value != []:
            assert json.loads(entry.text) == entry.value
    return found, stream.sha256


@pytest.mark.parametrize("chunk", [8, 9, 13, 64, 1000, 1 << 20])
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32-le"])
def test_entries_are_those_of_json(monkeypatch, chunk, indent, encoding):
    monkeypatch.setattr(json_stream, "_CHUNK_BYTES", chunk)
    data = json.dumps(CONTENT, indent=indent, ensure_ascii=False).encode(encoding)
    found, digest = collected(data)
    assert found == CONTENT == json.loads(data)
    assert digest == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("chunk", [8, 17, 1 << 20])
@pytest.mark.parametrize(
    "text",
    [
        "", "  ", "{", '{"a"', '{"a" 1}', '{"a": }', '{"a": 1', '{"a": 1 "b": 2}', "{1: 2}",
        '{"a": [1, 2}', '{"a": [1 2]}', '{"a": [1', '{"a": ["x]}', '{"a": ["\n"]}', '{"a": tru}',
        '{"a": 1} x', "[1, 2", "nul", '{\n "a": [\n1,\n {"b" 3}]}', '{"a": "\\x"}', '{"é": [é]}',
    ],
)  # fmt: skip
def test_errors_name_the_place_as_json_does(monkeypatch, chunk, text):
    monkeypatch.setattr(json_stream, "_CHUNK_BYTES", chunk)
    with pytest.raises(ValueError) as expected:
        json.loads(text)
    with pytest.raises(UserError) as error:
        collected(text.encode())
    message = f"x.json is not json: {expected.value}."
    assert str(error.value).startswith(message)
    cut_off = ("", "  ", "{", '{"a"', '{"a": 1', '{"a": [1', '{"a": ["x]}', "[1, 2")
    has_hint = text in ('{"a": }', '{"a": [1, 2}', '{"a": 1} x', *cut_off)
    assert (len(str(error.value)) > len(message)) == has_hint


def test_bytes_that_are_no_utf8(monkeypatch):
    monkeypatch.setattr(json_stream, "_CHUNK_BYTES", 8)
    with pytest.raises(UserError, match=r"not json: invalid start byte at byte 18"):
        collected(b'{"abcdefghijklmn": \xff}'[:18] + b"\xff")


def test_a_syntax_error_ends_the_reading_at_once(monkeypatch):
    monkeypatch.setattr(json_stream, "_CHUNK_BYTES", 64)
    file = io.BytesIO(b'{"a": [{"b" 1}, ' + b"1, " * 10_000 + b"1]}")
    with pytest.raises(UserError, match=r"column 13 \(char 12\)"):
        list(JsonStream(file, "x").entries())
    assert file.tell() < 1000


def test_memory_is_about_the_text_of_the_annotations(tmp_path, monkeypatch):
    monkeypatch.setattr(json_stream, "_CHUNK_BYTES", 1 << 16)
    polygon = [[round(i * 0.37, 2) for i in range(60)]]
    rows = [
        {"id": i, "image_id": i % 500 + 1, "category_id": 1, "bbox": [1, 2, 3, 4],
         "segmentation": polygon, "area": 1.5, "iscrowd": 0}
        for i in range(5_000)
    ]  # fmt: skip
    images = [{"id": i + 1, "file_name": f"{i}.jpg"} for i in range(500)]
    content = {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "a"}]}
    path = tmp_path / "x.json"
    path.write_text(json.dumps(content, indent=1))
    compact = sum(len(json.dumps(row, separators=(",", ":"))) for row in rows)
    tracemalloc.start()
    found = instances.read(str(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(len(item.annotations) for item in found.items) == 5_000
    assert peak < 2 * compact + 2e6, (peak, compact)
    first = json.loads(found.items[0].annotations[0].text)
    assert first == rows[0]
