"""Mutated label files of each format: a line of error, or every usable box and counted losses."""

import collections
import copy
import json
import random
from xml.etree import ElementTree

import pytest

from maskx_tf.data.coco import instances, issues
from maskx_tf.data.coco.objects import read_objects
from maskx_tf.errors import UserError
from tests import folder_formats, json_mutations
from tests.folder_formats import SIDE
from tf_records.folder import READERS
from tf_records.folders import labels

ODD = (
    "", " ", "0", "-1", "7", "1e999", "nan", "inf", "0.5", "-0.25", "3.75", "1e30", "9" * 20, "x",
    "1,2", "1;2", "%", "\u2603", "\u202e", "\x85", "0x10", "1_0", "\u0663", "[]", "../../x",
    "a" * 300,
)  # fmt: skip


def yolo_mutation(text, rng):
    """Lines with words changed, lost, doubled or exchanged."""
    lines = [line.split(" ") for line in text.splitlines()]
    for _ in range(rng.choice((1, 1, 3))):
        words = rng.choice(lines)
        place = rng.randrange(len(words)) if words else 0
        change = rng.randrange(5)
        if change == 0:
            words[place : place + 1] = [rng.choice(ODD)]
        elif change == 1:
            del words[place : place + rng.choice((1, 1, 5))]
        elif change == 2:
            words[place:place] = words[place : place + 2]
        elif change == 3:
            rng.shuffle(words)
        else:
            lines.append(rng.choice([[], ["#"], words[:5], list(words)]))
    return "\n".join(" ".join(words) for words in lines).encode("utf-8", "replace")


def xml_mutation(text, rng):
    """Elements changed, lost, doubled, renamed or moved."""
    tree = ElementTree.fromstring(text)
    for _ in range(rng.choice((1, 1, 3))):
        parent = rng.choice([one for one in tree.iter() if len(one)] or [tree])
        child = rng.choice(list(parent) or [tree])
        change = rng.randrange(6)
        if change == 0:
            child.text = rng.choice(ODD)
        elif change == 1 and child.attrib:
            child.set(rng.choice(list(child.attrib)), rng.choice(ODD))
        elif change == 2 and child is not tree:
            parent.remove(child)
        elif change == 3 and child is not tree:
            parent.append(copy.deepcopy(child))
        elif change == 4 and child is not tree:
            child.tag = rng.choice([one.tag for one in tree.iter()] + ["skeleton", "track"])
        else:
            rng.choice(list(tree.iter())).append(copy.deepcopy(child))
    return ElementTree.tostring(tree)


def json_mutation(text, rng):
    return json_mutations.dumps(json_mutations.mutated(json.loads(text), rng)).encode()


def yolo_check(before, after, found):
    """Lines that are as they were are objects; all others are objects or losses."""
    lines = [line for line in after.decode("utf-8-sig", "replace").splitlines() if line.strip()]
    assert len(lines) == len(found.objects) + len(found.losses)
    original = set(before.decode().splitlines())
    numbers = {int(one.place.rpartition(":")[2]) for one in found.objects}
    texts = after.decode("utf-8-sig", "replace").splitlines()
    same = {number for number, line in enumerate(texts, start=1) if line in original}
    assert same <= numbers


def voc_check(before, after, found):
    try:
        tree = ElementTree.fromstring(after)
    except (ElementTree.ParseError, ValueError, LookupError):
        assert [loss.reason for loss in found.losses] == ["label_file_unreadable"]
        return
    original = {one.strip() for one in texts_of(before, "object")}
    elements = tree.findall("object")
    masks = [loss for loss in found.losses if loss.reason.startswith("mask_")]
    assert len(elements) == len(found.objects) + len(found.losses) - len(masks)
    same = {
        place
        for place, one in enumerate(elements, start=1)
        if ElementTree.tostring(one, "unicode").strip() in original
    }
    assert same <= {int(one.place.rpartition(" ")[2]) for one in found.objects}


def texts_of(data, path):
    return [
        ElementTree.tostring(one, "unicode") for one in ElementTree.fromstring(data).iterfind(path)
    ]


def cvat_check(before, after, found):
    """Boxes that are as they were, and alone in their group, have their corners."""
    tree = ElementTree.fromstring(after)
    original = {one.strip() for one in texts_of(before, "image/box")}
    expected = 0
    boxes = collections.Counter(tuple(one.bbox) for one in found.objects if one.bbox)
    for image in tree.findall("image"):
        groups = collections.defaultdict(list)
        for number, shape in enumerate(image):
            label, group = shape.get("label", "").strip(), shape.get("group_id", "")
            if shape.tag not in ("box", "polygon", "ellipse", "mask") or not label:
                expected += 1
            elif group in ("1", "2", "3", "4", "5", "6", "7"):
                groups[label, group].append(shape)
            else:
                groups[label, f"alone {number}"].append(shape)
        for members in groups.values():
            drawn = [one for one in members if one.tag == "box"]
            expected += 1 if len(drawn) <= 1 else len(members)
            for one in drawn:
                if image.get("name") and ElementTree.tostring(one, "unicode").strip() in original:
                    x1, y1, x2, y2 = (float(one.get(k)) for k in ("xtl", "ytl", "xbr", "ybr"))
                    boxes[x1, y1, x2 - x1, y2 - y1] -= 1
    odd_groups = any(one.get("group_id", "0") not in "01234567" for one in tree.iter())
    assert odd_groups or expected == len(found.objects) + len(found.losses)
    assert odd_groups or min(boxes.values(), default=0) >= 0


def label_studio_check(before, after, found):
    """Rectangles that are as they were are objects; all regions become something."""
    original = [
        region
        for task in json.loads(before)
        for region in task["annotations"][0]["result"]
        if region["type"] == "rectanglelabels"
    ]
    boxes = collections.Counter(tuple(one.bbox) for one in found.objects if shows_numbers(one.bbox))
    for task in json.loads(after):
        try:
            (annotation,) = task["annotations"]
            regions = annotation["result"] if not annotation.get("was_cancelled") else []
        except (TypeError, KeyError, ValueError, AttributeError):
            continue
        data = task.get("data")
        is_usable = isinstance(data, dict) and isinstance(data.get("image"), str)
        for region in regions if is_usable and isinstance(regions, list) else []:
            if region in original:
                value = region["value"]
                box = (value["x"], value["y"], value["width"], value["height"])
                boxes[tuple(round(number * SIDE / 100, 6) for number in box)] -= 1
    # Losses keep no box: count those whose image is lost.
    lost = sum(loss.reason == "label_without_image" for loss in found.losses)
    assert sum(-count for count in boxes.values() if count < 0) <= lost


def shows_numbers(bbox):
    return bbox is not None and all(isinstance(value, float) for value in bbox)


class Found(collections.namedtuple("Found", "objects losses")):
    """What a reader made of all images."""


FILES = {
    "yolo": ("train/labels/photo 000.txt", yolo_mutation, yolo_check),
    "voc": ("Annotations/photo 000.xml", xml_mutation, voc_check),
    "cvat": ("annotations.xml", xml_mutation, cvat_check),
    "label-studio": ("project-1.json", json_mutation, label_studio_check),
}
DROPPED = {
    reason
    for reason in issues.REASONS.keys() - issues.OF_IMAGES
    if issues.REASONS[reason].effect == issues.DROPPED
}


def through_coco_rules(folder, path):
    """Every object is kept by COCO's rules, or listed there with its reason."""
    for split in folder.splits.values():
        content, lost = labels.to_coco(split, folder.names)
        assert {issue.reason for issue in lost} <= issues.REASONS.keys()
        if not content["images"] or not content["categories"]:
            continue
        path.write_text(json.dumps(content))
        read = instances.read(str(path))
        listed, kept = [*read.issues], 0
        for item in read.items:
            objects, others = read_objects(item, (SIDE, SIDE), "ignored")
            kept += len(objects)
            listed += others
            for _, each in objects:
                each.mask(8)
        dropped = sum(issue.reason in DROPPED for issue in listed)
        assert kept + dropped == len(content["annotations"])


def check_many(name, directory, count):
    """How many of `count` mutations ended in an error."""
    images = folder_formats.data_set(7, 4, seed=3)
    folder_formats.WRITERS[name](directory / name, images)
    file_name, mutation, check = FILES[name]
    file = directory / name / file_name
    before = file.read_bytes()
    rng, errors = random.Random(count), 0
    for _ in range(count):
        text = before.decode()
        is_text = rng.random() < 0.25
        after = json_mutations.mutated_text(text, rng) if is_text else mutation(text, rng)
        file.write_bytes(after)
        try:
            if not READERS[name].recognise(directory / name):
                errors += 1
                continue
            folder = READERS[name].read(directory / name)
            splits = folder.splits.values()
            items = [item for split in splits for item in split.items]
            losses = [loss for split in splits for loss in split.losses]
            losses += [loss for item in items for loss in item.losses]
            check(before, after, Found([one for item in items for one in item.objects], losses))
            through_coco_rules(folder, directory / f"{name}.json")
        except UserError as error:
            assert "\n" not in str(error)
            errors += 1
        except Exception as error:
            raise AssertionError(f"{type(error).__name__}: {error} for {after!r}") from error
    return errors


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("count", [30, pytest.param(1_000, marks=pytest.mark.slow)])
def test_mutations(name, count, tmp_path):
    assert check_many(name, tmp_path, count) < 0.5 * count
