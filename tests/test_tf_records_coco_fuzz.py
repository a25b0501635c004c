"""Mutated COCO jsons: a counted reason or one line of error, and no valid box lost."""

import collections
import json
import math
import pathlib
import random

import pytest

from maskx_tf.data.coco import instances, issues, json_stream
from maskx_tf.data.coco.images import locate
from maskx_tf.data.records import manifest as manifest_lib
from maskx_tf.data.records import schema as records_lib
from maskx_tf.errors import UserError
from tests import harness, json_mutations
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


def is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_id(value):
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def is_valid(item, sizes):
    """Whether an annotation is an object that has to be kept, said once more in plain words."""
    if not isinstance(item, dict) or item.get("image_id") not in sizes:
        return False
    box = item.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
        return False
    if any(isinstance(value, int) and abs(value) > 1e300 for value in box):
        return False
    if not all(map(math.isfinite, box)):
        return False
    x, y, w, h = box
    if min(box) >= 0 and max(box) <= 1 and any(value % 1 for value in box):  # normalised
        return False
    height, width = sizes[item["image_id"]]
    inside = (min(x + w, width) - max(x, 0), min(y + h, height) - max(y, 0))
    return min(w, h) >= 0.01 and min(inside) >= 0.01


def expected_objects(content):
    """image id -> number of objects that have to be kept, at least: doubles may go."""
    sizes = {
        image["id"]: SIZES[image["file_name"]]
        for image in content["images"]
        if image["file_name"] in SIZES
    }
    expected = collections.Counter()
    seen = set()
    for item in content["annotations"]:
        if not isinstance(item, dict) or not is_id(item.get("image_id")):
            continue
        if is_valid(item, sizes):
            key = [item.get("id"), item["image_id"], item["category_id"], item["bbox"]]
            if not is_id(item.get("id")) or repr(key) not in seen:
                expected[item["image_id"]] += 1
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


def test_1000_mutations(data_set, monkeypatch):
    monkeypatch.setattr(json_stream, "_CHUNK_BYTES", 256)  # entries cross the chunks' borders
    check_many(data_set, 1_000, seed=0)


@pytest.mark.slow
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
