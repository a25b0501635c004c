"""Mutated COCO jsons: a counted reason or one line of error, and no valid box lost."""

import collections
import functools
import json
import math
import os
import pathlib
import random
import shutil

import pytest

from maskx_tf.data.coco import instances, issues, json_stream
from maskx_tf.data.coco.images import locate
from maskx_tf.data.records import manifest as manifest_lib
from maskx_tf.data.records import schema as records_lib
from maskx_tf.errors import UserError
from tests import coco_habits, harness, json_mutations
from tests.harness import annotation, polygon_of
from tf_records import coco, coco_objects, writer
from tf_records.coco_objects import Settings
from tf_records.output import Output

SIZES = {"1.jpg": (40, 60), "2.jpg": (30, 50)}
OBJECT_REASONS = {
    reason
    for reason in issues.REASONS.keys() - issues.OF_IMAGES
    if issues.REASONS[reason].effect == issues.DROPPED
}


@pytest.fixture(scope="module")
def data_set(tmp_path_factory):
    """(json content, image directory, file to write mutations to)."""
    rle = {"size": [40, 60], "counts": [605, 12, 28, 12, 28, 12, 1703]}
    squares = polygon_of(3, 4, 9, 9) + polygon_of(15, 4, 9, 9)
    items = [
        annotation(1, [10, 5, 20, 12], category_id=1),
        annotation(1, [3, 4, 21, 9], category_id=2, segmentation=squares, area=162.0),
        annotation(1, [15, 5, 3, 12], category_id=3, segmentation=rle, iscrowd=1, area=36),
        annotation(2, [0, 0, 50, 30], category_id=1),
        annotation(2, [1.5, 2.25, 10.5, 7.75], category_id=2, area=80.0),
    ]
    directory = tmp_path_factory.mktemp("coco")
    path, images = harness.write_coco(directory, items, sizes=list(SIZES.values()))
    return json.loads(pathlib.Path(path).read_text()), images, directory / "mutated.json"


def mutations(content, count, seed):
    rng = random.Random(seed)
    text = json.dumps(content)
    for _ in range(count):
        if rng.random() < 0.2:
            yield json_mutations.mutated_text(text, rng), rng
        else:
            yield json_mutations.dumps(json_mutations.mutated(content, rng)).encode(), rng


def number(value):
    """A number of a json, also as text, said once more in plain words; None of anything else."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return None if isinstance(value, int) and abs(value) > 1e300 else value


def whole(value):
    """An id."""
    value = number(value)
    return value if value is not None and abs(value) < 2**53 and value % 1 == 0 else None


def is_valid(item, sizes):
    """Whether an annotation is an object that has to be kept, said once more in plain words."""
    if not isinstance(item, dict) or whole(item.get("image_id")) not in sizes:
        return False
    box = item.get("bbox")
    if not isinstance(box, list) or len(box) != 4:
        return False
    box = [number(value) for value in box]
    if None in box or not all(map(math.isfinite, box)):
        return False
    x, y, w, h = box
    if min(box) >= 0 and max(box) <= 1 and any(value % 1 for value in box):  # normalised
        return False
    height, width = sizes[whole(item["image_id"])]
    inside = (min(x + w, width) - max(x, 0), min(y + h, height) - max(y, 0))
    return min(w, h) >= 0.01 and min(inside) >= 0.01


def expected_objects(content):
    """image id -> number of objects that have to be kept, at least: doubles may go."""
    sizes = {
        whole(image["id"]): SIZES[image["file_name"]]
        for image in content["images"]
        if image.get("file_name") in SIZES
    }
    expected = collections.Counter()
    seen = set()
    for item in content["annotations"]:
        if not is_valid(item, sizes):
            continue
        key = [whole(item.get("id")), item["image_id"], item["category_id"], item["bbox"]]
        if key[0] is None or repr(key) not in seen:
            expected[whole(item["image_id"])] += 1
        seen.add(repr(key))
    return expected


def check(data, data_set, rng):
    """Converts one mutated json; the error, or the number of issues."""
    _, images, path = data_set
    path.write_bytes(data)
    try:
        content, is_json = json.loads(data), True
    except (ValueError, RecursionError):
        is_json = False
    skip = rng.random() < 0.7
    try:
        found = instances.read(str(path))
        items, _ = locate(found.items, images)
        coco._check_files([] if skip else items, images)
        names = enumerate(found.vocabulary.names, start=1)
        pairs = zip(found.vocabulary.external_ids, names, strict=True)
        settings = Settings(images, dict(pairs), rng.choice((112, 8, 0)), skip)
        encoded = [coco_objects.encode_image(item, settings) for item in items]
    except UserError as error:
        message = str(error)
        assert "\n" not in message, message
        assert str(path) in message or "Image " in message or images in message, message
        if not is_json:
            assert "is not json" in message, (data[:200], message)
        return message
    assert is_json
    listed = [*found.issues, *(issue for result in encoded for issue in result.issues)]
    assert {issue.reason for issue in listed} <= set(issues.REASONS)
    issues.summary(issues.tabulate(listed))
    kept = collections.Counter()
    for item, result in zip(found.items, encoded, strict=True):
        if result.example is not None:
            record = records_lib.from_example(result.example)
            assert record.image_id == item.image_id
            kept[item.image_id] = len(record.objects)
    dropped = sum(issue.reason in OBJECT_REASONS for issue in listed)
    assert kept.total() + dropped == len(content["annotations"]), listed
    for image_id, least in expected_objects(content).items():
        assert kept[image_id] >= least, (image_id, listed)
    return len(listed)


def check_many(data_set, count, seed):
    """Error messages, and numbers of issues, of `count` mutations."""
    outcomes = []
    for data, rng in mutations(data_set[0], count, seed):
        try:
            outcomes.append(check(data, data_set, rng))
        except Exception as error:
            raise AssertionError(f"{type(error).__name__}: {error} for {data!r}") from error
    errors = sum(isinstance(outcome, str) for outcome in outcomes)
    assert 0.1 * count < errors < 0.7 * count  # neither side goes untested
    assert sum(outcome not in (0, "") for outcome in outcomes) > 0.7 * count


@pytest.fixture
def photos_read_once(monkeypatch):
    """Decodes each photo once for all mutations of a test."""
    monkeypatch.setattr(coco_objects, "read_image", functools.cache(coco_objects.read_image))


@pytest.mark.usefixtures("photos_read_once")
def test_1000_mutations(data_set, monkeypatch):
    monkeypatch.setattr(json_stream, "_CHUNK_BYTES", 256)  # entries cross the chunks' borders
    check_many(data_set, 1_000, seed=0)


@pytest.mark.slow
@pytest.mark.usefixtures("photos_read_once")
@pytest.mark.parametrize("chunk", [8, 1 << 22])
def test_10000_mutations(data_set, monkeypatch, chunk):
    monkeypatch.setattr(json_stream, "_CHUNK_BYTES", chunk)
    check_many(data_set, 10_000, seed=chunk)


@pytest.mark.parametrize("count", [40, pytest.param(2_000, marks=pytest.mark.slow)])
def test_whole_conversions_of_mutations(data_set, tmp_path, capsys, count):
    """They end well only if something to train on is left."""
    _, images, path = data_set
    finished = 0
    for number, (data, _) in enumerate(mutations(data_set[0], count, seed=count)):
        path.write_bytes(data)
        output = Output(str(tmp_path / str(number)), "x", workers=1)
        try:
            manifest = coco.convert(str(path), images, output, skip_bad_images=True)
        except UserError as error:
            assert "\n" not in str(error)
            assert not (tmp_path / str(number) / "manifest.json").exists()
            continue
        finished += 1
        assert manifest.num_objects, data
        print(writer.describe(manifest, "x"))
        assert manifest == manifest_lib.Manifest.load(tmp_path / str(number))
    assert finished > count / 4


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """The directory of the photos of `coco_habits`."""
    _, images = harness.write_coco(tmp_path_factory.mktemp("photos"), [], sizes=coco_habits.SIZES)
    return images


def must_stop(data_set):
    """Whether too much is lost to go on: all objects, all masks, or most for one reason."""
    expected, objects = data_set.expected.values(), data_set.objects()
    lost = collections.Counter()
    for item in expected:
        lost.update(item.reasons if item.box_xywh is None else ["crowd"] if item.is_crowd else [])
    lost_masks = collections.Counter(
        reason
        for item in objects
        if not item.has_mask
        for reason in item.reasons
        if issues.REASONS[reason].effect == issues.MASK_DROPPED
    )
    masks = sum(item.has_mask for item in objects)
    return (
        not objects
        or (lost_masks and not masks)
        or max(lost.values(), default=0) > 0.5 * len(expected)
        or max(lost_masks.values(), default=0) > 0.5 * (masks + lost_masks.total())
    )


def check_habits(data_set, photos, directory):
    """Converts a data set whose outcome is known; whether it may be written."""
    directory.mkdir()
    path = directory / "data.json"
    path.write_text(json.dumps(data_set.content))
    output = Output(str(directory / "records"), "x", workers=1)
    if must_stop(data_set):
        with pytest.raises(UserError) as error:
            coco.convert(str(path), photos, output)
        assert any(f"({reason}: " in str(error.value) for reason in data_set.reasons())
        assert not list((directory / "records").glob("*"))
        return False
    manifest = coco.convert(str(path), photos, output)
    counts = {reason: entry["count"] for reason, entry in manifest.issues.items()}
    assert counts == data_set.reasons()
    for reason, entry in manifest.issues.items():
        assert all(reason in data_set.expected[number].reasons for number, _ in entry["ids"])
    objects = data_set.objects()
    assert manifest.num_objects == len(objects)
    assert manifest.num_masks == sum(item.has_mask for item in objects)
    left = {number: e for number, e in data_set.expected.items() if e.box_xywh is not None}
    records = records_lib.read_records(manifest_lib.find_shards([output.directory]))
    for item in (item for record in records for item in record.objects):
        expected = left.pop(item.annotation_id)
        y1, x1, y2, x2 = item.box_yxyx.tolist()
        assert [x1, y1, x2 - x1, y2 - y1] == pytest.approx(expected.box_xywh, abs=1e-3)
        assert item.is_crowd == expected.is_crowd
        assert (item.mask is not None) == expected.has_mask
    assert not left
    return True


@pytest.mark.usefixtures("photos_read_once")
@pytest.mark.parametrize("count", [100, pytest.param(10_000, marks=pytest.mark.slow)])
def test_each_annotation_becomes_what_its_making_says(photos, tmp_path, count, monkeypatch):
    """Boxes, masks, crowds, causes and status, of data sets as tools and people write them."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    rng = random.Random(count)
    written = 0
    for number in range(count):
        data_set, directory = coco_habits.data_set(rng), tmp_path / str(number)
        try:
            written += check_habits(data_set, photos, directory)
        except (Exception, pytest.fail.Exception) as error:
            raise AssertionError(f"{error} for {json.dumps(data_set.content)}") from error
        shutil.rmtree(directory)
    assert 0.4 * count < written < 0.95 * count


@pytest.mark.parametrize("habit", coco_habits.HABITS)
def test_each_habit(photos, tmp_path, habit):
    """Each once, beside annotations without it."""
    data_set = coco_habits.data_set_of(habit)
    assert check_habits(data_set, photos, tmp_path / "x")
