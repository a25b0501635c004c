"""Mutated Visual Genome jsons: one line of an error, or every object kept or in the issues."""

import collections
import copy
import json
import math
import pathlib
import re

import numpy as np
import pytest

from maskx_tf.data.coco import issues as issues_lib
from maskx_tf.data.records import schema as records_lib
from maskx_tf.errors import UserError
from tests.harness import thorough
from tests.visual_genome_data import vg_entry, vg_image, vg_object, write
from tf_records.coco_objects import Settings
from tf_records.visual_genome import data as data_lib
from tf_records.visual_genome import items as items_lib
from tf_records.visual_genome.data import Options

SYNSETS = ("person.n.01", "bag.n.06", "tree.n.01", "sky.n.01")
KEYS = ("image_id", "id", "object_id", "objects", "synsets", "x", "y", "w", "h", "url", "coco_id")
VALUES = (
    *(None, True, False, -1, 0, 1, 2, 3, 39, 2**31, 2**53, 2**63, -(2**63), 10**400),
    *(0.5, -0.0, 1e308, -1e308, 1e-300, math.nan, math.inf, -math.inf, 2.0),
    *("", "1", "-1", "x", "tree.n.01", "person", "\ud800", "\x00", "é.n.01", "😀.n.01", "a" * 300),
    *([], {}, [[]], [1, 2, 3, 4], ["tree.n.01"], ["tree.n.01"] * 2, {"synset_name": "sky.n.01"}),
    *([None], [{"synset_name": 5}], {"objects": []}, {"image_id": 1}, "1.jpg", "../1.jpg"),
)


def base(random):
    """A valid data set of three images."""
    entries, number = [], 0
    for image_id in (1, 2, 3):
        objects = []
        for _ in range(random.integers(1, 4)):
            number += 1
            x, y = int(random.integers(-5, 55)), int(random.integers(-5, 35))
            box = (x, y, int(random.integers(1, 40)), int(random.integers(1, 40)))
            objects.append(vg_object(str(random.choice(SYNSETS)), box, number))
        entries.append(vg_entry(image_id, *objects))
    images = [vg_image(image_id, coco_id=50 + image_id) for image_id in (1, 2, 3)]
    return {"objects": entries, "image_data": images, "coco": [{"id": 51}, {"id": 9}]}


def mutate(value, random, depth=0):
    """Changes something at a random place, in place; the new value."""
    goes_on = random.random() < (0.99, 0.95, 0.9, 0.8)[min(depth, 3)]
    if isinstance(value, (list, dict)) and value and goes_on:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key = keys[random.integers(len(keys))]
        kind = random.random()
        if kind < 0.1:
            del value[key]
        elif kind < 0.2 and isinstance(value, list):
            value.insert(random.integers(len(value) + 1), copy.deepcopy(value[key]))
        elif kind < 0.2:
            value[KEYS[random.integers(len(KEYS))]] = VALUES[random.integers(len(VALUES))]
        else:
            value[key] = mutate(value[key], random, depth + 1)
        return value
    return copy.deepcopy(VALUES[random.integers(len(VALUES))])


def damage(path, random):
    """Changes the text itself."""
    text = pathlib.Path(path).read_bytes()
    place = int(random.integers(len(text) + 1))
    inserted = (b"", b"NaN", b"\xff", b"}", b"]", b",", b'"', b"9" * 5000, b"\xef\xbb\xbf", b" ")
    text = text[:place] + inserted[random.integers(len(inserted))]
    if random.random() < 0.7:
        text += pathlib.Path(path).read_bytes()[place + int(random.integers(2)) :]
    pathlib.Path(path).write_bytes(text)


def number_of(value):
    if isinstance(value, str):
        value = int(value) if re.fullmatch("[0-9]{1,16}", value) else None
    if type(value) is float and math.isfinite(value) and value == int(value):
        value = int(value)
    return value if type(value) is int and 0 <= value < 2**53 else None


def id_of(entry, key):
    return number_of(entry[key] if key in entry else entry.get("id"))


def expected_objects(entries, image_ids):
    """(number of objects, Counter of (image id, synset, box) of the valid ones)."""
    total, valid, seen = 0, collections.Counter(), set()
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("objects"), list):
            continue
        for item in entry["objects"]:
            total += 1
            image_id = id_of(entry, "image_id")
            if image_id not in image_ids or not isinstance(item, dict):
                continue
            synset, box = synset_of(item), box_of(item)
            if synset is None or box is None:
                continue
            raw = values_of(item)
            number = id_of(item, "object_id")
            if number is not None and (number, image_id, synset, *raw) in seen:
                continue
            seen.add((number, image_id, synset, *raw))
            valid[image_id, synset, box] += 1
    return total, valid


def synset_of(item):
    synsets = item.get("synsets")
    synsets = synsets if isinstance(synsets, list) else [synsets]
    names = [s.get("synset_name") if isinstance(s, dict) else s for s in synsets]
    if len(names) != 1 or not isinstance(names[0], str):
        return None
    good = names[0].isprintable() and re.fullmatch(r"[^\s#]\S*\.[a-z]\.\d+", names[0])
    return names[0] if good else None


def values_of(item):
    """x, y, w, h; whole numbers that were written as text are read."""
    values = [item.get(key) for key in "xywh"]
    return [float(v) if isinstance(v, str) and re.fullmatch("-?[0-9]+", v) else v for v in values]


def box_of(item):
    """Clipped (y1, x1, y2, x2), rounded to what float32 keeps of normalised coordinates."""
    box = values_of(item)
    if not all(type(value) in (int, float) and abs(value) <= 1.7e308 for value in box):
        return None
    x, y, w, h = box
    if w < 0.01 or h < 0.01:
        return None
    if min(box) >= 0 and max(box) <= 1 and any(value % 1 for value in box):
        return None  # normalised
    y1, x1, y2, x2 = max(y, 0), max(x, 0), min(y + h, 40), min(x + w, 60)
    if y2 - y1 < 0.01 or x2 - x1 < 0.01:
        return None
    return tuple(round(float(value), 3) for value in (y1, x1, y2, x2))


def convert_in_memory(paths):
    """(records, issues) of all images, as the command makes them, but without shards."""
    options = Options(num_classes=1000, test_images=0)
    data = data_lib.read(paths["objects"], paths["image_data"], paths["coco_annotations"], options)
    names = data.classes.vocabulary.names
    classes = {number: (number, name) for number, name in enumerate(names, start=1)}
    settings = items_lib.Settings(Settings(paths["images"], classes, 0, True), False)
    items = items_lib.Items(data.table, data.images.images, range(len(data.images.images)))
    encoded = [items_lib.encode_item(item, settings) for item in items]
    issues = [*data.issues, *(issue for result in encoded for issue in result.issues)]
    records = [records_lib.from_example(r.example) for r in encoded if r.example is not None]
    assert sum(map(len, data.splits.values())) == len(items)
    return records, issues, dict(zip(names, data.classes.synsets, strict=True))


def check(paths):
    """One line of an error, or nothing lost; what happened."""
    try:
        records, issues, synsets = convert_in_memory(paths)
    except UserError as error:
        assert len(str(error).splitlines()) == 1
        return "error"
    json.dumps(issues_lib.tabulate(issues)).encode()
    issues_lib.summary(issues_lib.tabulate(issues))
    entries = json.loads(pathlib.Path(paths["objects"]).read_text(encoding="utf-8-sig"))
    total, valid = expected_objects(entries, {record.image_id for record in records})
    kept = collections.Counter(
        (
            record.image_id,
            synsets[item.class_name],
            tuple(round(float(value), 3) for value in item.box_yxyx),
        )
        for record in records
        for item in record.objects
    )
    assert kept == valid
    effects = collections.Counter(
        issues_lib.REASONS[issue.reason][0]
        for issue in issues
        if not issue.reason.startswith(("image_", "objects_entry_"))
    )
    assert kept.total() + effects[issues_lib.DROPPED] == total
    return "repaired or dropped" if issues else "clean"


def run(count, seed, directory):
    random = np.random.default_rng(seed)
    outcomes = collections.Counter()
    write(directory, [], [])  # the image files
    for _ in range(count):
        content = base(random)
        for _ in range(random.integers(1, 4)):
            name = (*["objects"] * 6, *["image_data"] * 3, "coco")[random.integers(10)]
            content[name] = mutate(content[name], random)
        paths = {name: str(directory / f"{name}.json") for name in ("objects", "image_data")}
        paths |= {"images": str(directory / "images"),
                  "coco_annotations": str(directory / "coco.json")}  # fmt: skip
        pathlib.Path(paths["objects"]).write_text(json.dumps(content["objects"]))
        pathlib.Path(paths["image_data"]).write_text(json.dumps(content["image_data"]))
        coco = json.dumps({"images": content["coco"]})
        pathlib.Path(paths["coco_annotations"]).write_text(coco)
        if random.random() < 0.1:
            damage(list(paths.values())[random.choice([0, 1, 3])], random)
        try:
            outcomes[check(paths)] += 1
        except Exception as error:
            error.add_note(f"{content}")
            raise
    return outcomes


@pytest.mark.parametrize(
    ("count", "seed"),
    [(300, 0), thorough(2000, 1), pytest.param(10_000, 2, marks=pytest.mark.slow)],
)
def test_mutated_jsons(tmp_path, count, seed):
    outcomes = run(count, seed, tmp_path)
    assert outcomes["repaired or dropped"] > count / 2
    assert outcomes["error"] > count / 20
