"""Shards and manifest: order, atomicity, what happens to records that are there."""

import functools
import hashlib
import json
import multiprocessing
import pathlib

import numpy as np
import pytest

from maskx_tf.data.classes import Vocabulary
from maskx_tf.data.coco.issues import Issue
from maskx_tf.data.records import manifest as manifest_lib
from maskx_tf.data.records.manifest import Manifest
from maskx_tf.data.records.schema import ImageRecord, ObjectRecord, read_records
from maskx_tf.errors import UserError
from tf_records import pool, writer
from tf_records.output import Output
from tf_records.writer import Encoded

VOCABULARY = Vocabulary.from_names(("cat", "dog"))


def make(item: int, fail_at: int = -1, drop_at: int = -1) -> Encoded:
    """An image with item % 3 objects: a cat with a mask, and a dog without."""
    if item == fail_at:
        raise UserError(f"item {item} is bad")
    if item == drop_at:
        return Encoded(None, issues=(Issue("image_corrupt", item),))
    box, mask = np.array([0, 0, 4, 4.0]), np.ones([4, 4], np.uint8)
    objects = [
        ObjectRecord(box, 1, "cat", 16, False, 0, mask),
        ObjectRecord(box, 2, "dog", 16, False, 1, None),
    ][: item % 3]
    return writer.encode(ImageRecord(item, f"{item}.jpg", b"\xff" * item, 40, 60, objects))


def write(directory, function=make, count=10, source=None, **options):
    options = {"name": "x", "workers": 1} | options
    output = Output(str(directory), **options)
    return writer.write(
        function, range(count), output, vocabulary=VOCABULARY, source=source or {"made": "up"}
    )


def image_ids(directory):
    shards = manifest_lib.find_shards([str(directory)])
    return [[record.image_id for record in read_records([path])] for path in shards]


def contents(directory):
    return {path.name: path.read_bytes() for path in pathlib.Path(directory).iterdir()}


def test_shards_hold_the_items_in_order(tmp_path):
    manifest = write(tmp_path, num_shards=3)
    assert image_ids(tmp_path) == [[0, 1, 2], [3, 4, 5], [6, 7, 8, 9]]
    names = [f"x-0000{index}-of-00003.tfrecord" for index in range(3)]
    assert [shard.file for shard in manifest.shards] == names
    assert sorted(contents(tmp_path)) == ["manifest.json", *names]


def test_manifest_describes_the_files(tmp_path):
    manifest = write(tmp_path, functools.partial(make, drop_at=4), num_shards=2)
    assert Manifest.load(tmp_path) == manifest
    for shard in manifest.shards:
        data = (tmp_path / shard.file).read_bytes()
        assert (shard.bytes, shard.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert [shard.count for shard in manifest.shards] == [4, 5]
    assert manifest.class_counts == {"cat": (5, 5), "dog": (3, 0)}
    assert (manifest.num_images, manifest.num_objects, manifest.num_masks) == (9, 8, 5)
    assert manifest.max_objects_per_image == 2
    entry = {"effect": "dropped", "count": 1, "ids": [[None, 4]]}
    assert manifest.issues == {"image_corrupt": entry}


def test_description_of_a_run(tmp_path):
    manifest = write(tmp_path, functools.partial(make, drop_at=4))
    assert writer.describe(manifest, "data/x").splitlines() == [
        "data/x: 9 images, 8 objects, 5 with mask, 1 shards, 0.0 MB.",
        "Dropped, repaired or odd (all ids: manifest.json):",
        "        1 dropped: the image cannot be decoded (image_corrupt: image 4)",
    ]
    assert "Nothing was dropped or repaired." in writer.describe(write(tmp_path / "y"), "y")


@pytest.mark.parametrize("workers", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_bytes_do_not_depend_on_the_number_of_processes(tmp_path, workers):
    write(tmp_path / "one", count=40, num_shards=3)
    write(tmp_path / "more", count=40, num_shards=3, workers=workers)
    assert contents(tmp_path / "one") == contents(tmp_path / "more")
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_leaves_no_manifest_and_nothing_temporary(tmp_path, workers):
    with pytest.raises(UserError, match="item 7 is bad"):
        write(tmp_path, functools.partial(make, fail_at=7), num_shards=2, workers=workers)
    assert sorted(contents(tmp_path)) == ["x-00000-of-00002.done.json", "x-00000-of-00002.tfrecord"]
    assert not multiprocessing.active_children()


class Counted:
    """`make` that lists the items it was called for."""

    def __init__(self, **options):
        self.options, self.calls = options, []

    def __call__(self, item):
        self.calls.append(item)
        return make(item, **self.options)


def interrupted(directory, **options):
    """A run that stops in its last shard of three."""
    with pytest.raises(UserError, match="item 7 is bad"):
        write(directory, functools.partial(make, fail_at=7, drop_at=1), num_shards=3, **options)


def test_a_repeated_run_goes_on_where_it_stopped(tmp_path, capsys):
    whole = write(tmp_path / "whole", functools.partial(make, drop_at=1), num_shards=3)
    interrupted(tmp_path / "x")
    first = (tmp_path / "x" / "x-00000-of-00003.tfrecord").stat()
    function = Counted(drop_at=1)
    assert write(tmp_path / "x", function, num_shards=3) == whole
    assert function.calls == [6, 7, 8, 9]
    assert (tmp_path / "x" / "x-00000-of-00003.tfrecord").stat() == first
    assert contents(tmp_path / "x") == contents(tmp_path / "whole")
    assert "2 of 3 shards are finished already" in capsys.readouterr().err


def test_unfinished_records_of_another_source_are_refused(tmp_path):
    interrupted(tmp_path)
    before = contents(tmp_path)
    for changes in ({"source": {"made": "otherwise"}}, {"num_shards": 2}, {"count": 11}):
        with pytest.raises(UserError, match="unfinished run of another source .* --overwrite"):
            write(tmp_path, **({"num_shards": 3} | changes))
        assert contents(tmp_path) == before
    function = Counted()
    write(tmp_path, function, num_shards=2, overwrite=True)
    assert function.calls == list(range(10))
    assert len(contents(tmp_path)) == 3


def test_other_names_do_not_pass_for_finished_shards(tmp_path):
    interrupted(tmp_path)
    write(tmp_path, name="y", num_shards=3, overwrite=True)
    assert all(name == "manifest.json" or name.startswith("y-") for name in contents(tmp_path))


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damaged_shards_are_written_again(tmp_path, damage):
    whole = write(tmp_path / "whole", functools.partial(make, drop_at=1), num_shards=3)
    interrupted(tmp_path / "x")
    path = tmp_path / "x" / "x-00001-of-00003.tfrecord"
    data = bytearray(path.read_bytes())
    data[20] ^= 1
    path.write_bytes({"flip": data, "cut": data[:-1], "remove": b""}[damage])
    if damage == "remove":
        path.unlink()
    function = Counted(drop_at=1)
    assert write(tmp_path / "x", function, num_shards=3) == whole
    assert function.calls == [3, 4, 5, 6, 7, 8, 9]
    assert contents(tmp_path / "x") == contents(tmp_path / "whole")


def test_records_without_manifest_and_sidecar_are_refused(tmp_path):
    (tmp_path / "z-00000-of-00001.tfrecord").write_bytes(b"")
    with pytest.raises(UserError, match="records without a manifest, of another program"):
        write(tmp_path)
    write(tmp_path, overwrite=True)
    assert sorted(contents(tmp_path)) == ["manifest.json", "x-00000-of-00001.tfrecord"]


def test_only_one_process_may_write(tmp_path):
    directory = tmp_path / "x"
    with Output(str(directory), "x").locked():
        before = contents(directory)
        for options in ({}, {"overwrite": True}, {"reuse": True}):
            with pytest.raises(UserError, match="Another process is writing to"):
                write(directory, **options)
        assert contents(directory) == before
    (directory / "writing.lock").write_bytes(b"")  # as a killed process leaves it
    write(directory)
    assert sorted(contents(directory)) == ["manifest.json", "x-00000-of-00001.tfrecord"]


def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--output_dir=.* cannot be written: Not a directory"):
        write(tmp_path / "file" / "x")


def test_leftovers_of_a_killed_run_are_swept(tmp_path):
    (tmp_path / "x-00000-of-00009.tfrecord.tmp").write_bytes(b"half a reco")
    (tmp_path / "manifest.json.tmp").write_bytes(b"{")
    (tmp_path / "notes.txt").write_text("mine")
    write(tmp_path)
    assert sorted(contents(tmp_path)) == ["manifest.json", "notes.txt", "x-00000-of-00001.tfrecord"]


def test_finished_records_are_replaced_or_kept_only_when_told(tmp_path):
    write(tmp_path, num_shards=2)
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"holds finished records; add --reuse .* --overwrite"):
        write(tmp_path)
    assert write(tmp_path, reuse=True) == Manifest.load(tmp_path)
    assert contents(tmp_path) == before
    for changes in ({"source": {"made": "otherwise"}}, {"name": "y"}, {"num_shards": 3}):
        with pytest.raises(UserError, match="another source or other settings; add --overwrite"):
            write(tmp_path, reuse=True, **changes)
    assert contents(tmp_path) == before
    write(tmp_path, overwrite=True, num_shards=1)
    assert sorted(contents(tmp_path)) == ["manifest.json", "x-00000-of-00001.tfrecord"]


def test_damaged_records_are_not_reused(tmp_path):
    write(tmp_path)
    shard = tmp_path / "x-00000-of-00001.tfrecord"
    shard.write_bytes(shard.read_bytes()[:-3])
    with pytest.raises(UserError, match="its manifest says"):
        write(tmp_path, reuse=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is damaged"),
        ("[]", "is not a manifest of"),
        ('{"format": "other"}', "is not a manifest of"),
        ('{"format": "maskx_tf records, version 1"}', r"is damaged \(KeyError"),
    ],
)
def test_damaged_manifest(tmp_path, content, message):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=message):
        Manifest.load(tmp_path)


def test_no_more_shards_than_items(tmp_path):
    first = write(tmp_path, count=2, num_shards=5)
    assert len(first.shards) == 2
    for number in (0, 2, 3, 5):
        assert write(tmp_path, count=2, num_shards=number, reuse=True) == first
    with pytest.raises(UserError, match="other settings"):
        write(tmp_path, count=2, num_shards=1, reuse=True)
    assert len(write(tmp_path / "auto", count=1001).shards) == 2


def test_bad_settings(tmp_path):
    for options in (
        {"name": ""}, {"name": "a/b"}, {"num_shards": -1}, {"workers": -1}, {"runner": "spark"},
        {"beam_options": "--x"},
    ):  # fmt: skip
        with pytest.raises(UserError, match=rf"--{next(iter(options))}"):
            write(tmp_path / "x", **options)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        write(tmp_path / "file")


def test_no_more_items_are_in_flight_than_allowed():
    taken = []

    def items():
        for item in range(1000):
            taken.append(item)
            yield item

    with pool.mapper(float, workers=2) as run:
        results = run(items())
        assert next(results) == 0.0
        assert len(taken) <= 17
        assert [next(results) for _ in range(5)] == [1.0, 2.0, 3.0, 4.0, 5.0]


def test_manifest_is_json_with_one_line_per_entry(tmp_path):
    write(tmp_path, num_shards=2)
    lines = (tmp_path / "manifest.json").read_text().splitlines()
    assert '  {"id": 1, "name": "cat"},' in lines
    assert json.loads("\n".join(lines))["objects"] == 9
