"""Labelled boxes through every format and back; the readers follow the formats' definitions."""

import base64
import decimal
import io
import json
import pathlib
import urllib.parse
import xml.etree.ElementTree as ElementTree
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from PIL import Image
from pycocotools import mask as mask_api

from maskx_tf.labeling import objects, source
from maskx_tf.labeling.formats import coco, cvat, fiftyone, label_studio
from maskx_tf.labeling.labeler import Labels, Mask
from maskx_tf.ops import masks as mask_ops
from tests import harness

SIZES = ((60, 90), (80, 41))  # (height, width): neither is square
BOXES = ([10.5, 7.25, 40.0, 30], [3, 5.125, 31.7, 60.3], [1, 2, 0, 9])
NAMES = ("cat", 'dog & "bird" <x>')


def iou(a, b):
    a, b = np.asarray(a, bool), np.asarray(b, bool)
    return (a & b).sum() / (a | b).sum()


def blob(height, width, box, seed):
    """A mask with a hole, inside a box, on an image of the size."""
    rng = np.random.default_rng(seed)
    probabilities = np.kron(rng.uniform(0.3, 1, (7, 7)), np.ones((4, 4)))
    probabilities[12:16, 12:16] = 0
    x, y, w, h = box
    return mask_ops.paste_mask(probabilities, (y, x, y + h, x + w), height, width)


@pytest.fixture
def labelled(tmp_path):
    """Two images: a box that got a mask, one with a mask by hand, a box without area."""
    annotations = [
        harness.annotation(1, BOXES[0], segmentation=[], note={"deep": [1.50, 1e2, "x"]}),
        harness.annotation(2, BOXES[1], category_id=2, segmentation=[[5, 6, 30, 6, 30, 60, 5, 60]]),
        harness.annotation(1, BOXES[2], segmentation=[]),
    ]
    path, images = harness.write_coco(tmp_path, annotations, sizes=SIZES, names=NAMES)
    text = pathlib.Path(path).read_text().replace("1.5,", "1.50,").replace("40.0", "4.00e1")
    pathlib.Path(path).write_text(text)
    read = source.read(path, pathlib.Path(images))
    rle = mask_ops.encode_rle(blob(*SIZES[0], BOXES[0], 0))
    labels = Labels({0: Mask(rle, 0.875, 0.75)}, [])
    return read, labels, pathlib.Path(images)


@pytest.fixture
def expected():
    """(image, bbox, class, mask) of the objects with a mask."""
    by_hand = mask_ops.decode_rle(
        mask_ops.segmentation_to_rle([[5, 6, 30, 6, 30, 60, 5, 60]], *SIZES[1])
    )
    return [
        (0, BOXES[0], NAMES[0], blob(*SIZES[0], BOXES[0], 0)),
        (1, BOXES[1], NAMES[1], by_hand),
    ]


def check(found, expected, exact=True):
    assert [item[0] for item in found] == [item[0] for item in expected]
    for (_, box, name, mask), (_, wanted_box, wanted_name, wanted) in zip(
        found, expected, strict=True
    ):
        assert name == wanted_name
        if exact:
            assert [float(v) for v in box] == wanted_box
        else:
            np.testing.assert_allclose(box, wanted_box, rtol=0, atol=1e-9)
        assert mask.shape == wanted.shape
        assert iou(mask, wanted) >= 0.99


@pytest.mark.parametrize("polygon_iou", [None, 0.99, 1.0])
def test_coco(labelled, expected, polygon_iou, tmp_path):
    read, labels, _ = labelled
    path = tmp_path / "labelled.json"
    path.write_text(coco.to_text(read, labels, {"cat"}, polygon_iou))
    from pycocotools.coco import COCO

    index = COCO(str(path))
    first, second, third = index.dataset["annotations"]
    found = [
        (a["image_id"] - 1, a["bbox"], NAMES[a["category_id"] - 1], index.annToMask(a))
        for a in (first, second)
    ]
    check(found, expected)
    assert first["area"] == expected[0][3].sum()
    assert (first["mask_source"], first["mask_score"], first["mask_seen"]) == (
        "maskx_tf",
        0.875,
        True,
    )
    assert first["mask_agreement"] == 0.75
    assert second["mask_source"] == "human" and "mask_score" not in second
    assert "mask_source" not in third
    if polygon_iou is not None:
        assert isinstance(first["segmentation"], list)


def test_coco_keeps_every_byte_of_boxes_and_unknown_fields(labelled):
    read, labels, _ = labelled
    text = coco.to_text(read, labels, set(), None)
    assert '"bbox": [10.5, 7.25, 4.00e1, 30]' in text
    assert '"note": {"deep": [1.50, 100.0, "x"]}' in text
    again = json.loads(text)
    for key in ("images", "categories"):
        assert again[key] == [json.loads(item) for item in read.members[key]]
    for index, annotation in enumerate(again["annotations"]):
        before = source.members_of(read.text(index))
        changed = {"segmentation", "area"} if index == 0 else set()
        for key in before.keys() - changed:
            assert json.loads(before[key]) == annotation[key]


def cvat_objects(text):
    """Boxes with the masks of their group, out of CVAT's XML."""
    found = []
    for image in ElementTree.fromstring(text).findall("image"):
        height, width = int(image.get("height")), int(image.get("width"))
        for box in image.findall("box"):
            corners = [decimal.Decimal(box.get(key)) for key in ("xtl", "ytl", "xbr", "ybr")]
            bbox = [*corners[:2], corners[2] - corners[0], corners[3] - corners[1]]
            canvas = Image.new("L", (width, height))
            shapes = 0
            for shape in image:
                if shape.tag == "box" or shape.get("group_id") != box.get("group_id"):
                    continue
                assert shape.get("label") == box.get("label")
                shapes += 1
                if shape.tag == "mask":
                    counts = [int(count) for count in shape.get("rle").split(",")]
                    values = np.repeat(np.arange(len(counts)) % 2, counts)
                    part = values.reshape(int(shape.get("height")), int(shape.get("width")))
                    at = int(shape.get("left")), int(shape.get("top"))
                    canvas.paste(Image.fromarray((255 * part).astype(np.uint8)), at)
                else:
                    points = [
                        tuple(map(float, p.split(","))) for p in shape.get("points").split(";")
                    ]
                    canvas = fill(canvas, points)
            if shapes:
                number = int(image.get("id"))
                found.append((number, bbox, box.get("label"), np.asarray(canvas) > 0))
    return found


def fill(canvas, points):
    """Fills a polygon (pixel edges are whole numbers), by its centres, with pycocotools."""
    height, width = canvas.size[::-1]
    rle = mask_api.frPyObjects([[v for point in points for v in point]], height, width)
    mask = mask_api.merge(rle)
    return Image.fromarray(np.maximum(np.asarray(canvas), 255 * mask_api.decode(mask)))


@pytest.mark.parametrize("polygon_iou", [None, 0.99])
def test_cvat(labelled, expected, polygon_iou):
    read, labels, _ = labelled
    made, problems = objects.labelled_images(read, labels)
    assert not problems
    assert [problem.reason for problem in read.problems] == ["box_empty"]
    text = cvat.to_text(made, read.names, polygon_iou)
    check(cvat_objects(text), expected)
    root = ElementTree.fromstring(text)
    assert root.findtext("version") == "1.1"
    assert [label.findtext("name") for label in root.iter("label")] == list(NAMES)
    assert len(root.findall("image/box")) == 2
    kinds = {
        shape.get("source") for shape in root.findall("image[@id='0']/*") if shape.tag != "box"
    }
    assert kinds == {"auto"}


def brush_mask(rle, height, width):
    """Label Studio's decoder of brush masks: a bit stream of runs and literals."""
    bits = "".join(f"{byte:08b}" for byte in rle)
    position = 0

    def take(count):
        nonlocal position
        position += count
        return int(bits[position - count : position], 2)

    count, word = take(32), take(5) + 1
    sizes = [take(4) + 1 for _ in range(4)]
    values = []
    while len(values) < count:
        is_run = take(1)
        length = take(sizes[take(2)]) + 1
        values += [take(word)] * length if is_run else [take(word) for _ in range(length)]
    pixels = np.array(values).reshape(height, width, 4)
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 3] > 0


def label_studio_objects(text):
    found = []
    for number, task in enumerate(json.loads(text)):
        by_object = {}
        for result in task["predictions"][0]["result"]:
            by_object.setdefault(result["id"].split("-")[0], []).append(result)
        for box, *rest in by_object.values():
            height, width = box["original_height"], box["original_width"]
            value = box["value"]
            bbox = [value["x"] * width, value["y"] * height]
            bbox = [v / 100 for v in (*bbox, value["width"] * width, value["height"] * height)]
            canvas = Image.new("L", (width, height))
            for result in rest:
                if result["type"] == "brushlabels":
                    mask = brush_mask(result["value"]["rle"], height, width)
                    canvas = Image.fromarray((255 * mask).astype(np.uint8))
                else:
                    points = np.array(result["value"]["points"]) * (width, height) / 100
                    canvas = fill(canvas, points.tolist())
            if rest:
                name = value["rectanglelabels"][0]
                found.append((number, bbox, name, np.asarray(canvas) > 0))
    return found


@pytest.mark.parametrize("polygon_iou", [None, 0.99])
def test_label_studio(labelled, expected, polygon_iou):
    read, labels, _ = labelled
    made, _ = objects.labelled_images(read, labels)
    text = label_studio.to_text(made, "/data/local-files/?d=", polygon_iou)
    check(label_studio_objects(text), expected, exact=False)
    tasks = json.loads(text)
    assert tasks[0]["data"]["image"] == "/data/local-files/?d=1.jpg"
    assert tasks[0]["predictions"][0]["score"] == 0.875
    assert tasks[0]["predictions"][0]["result"][0]["meta"]["bbox"] == BOXES[0]
    config = ElementTree.fromstring(label_studio.labeling_config(read.names, polygon_iou))
    names = {tag.get("name") for tag in config if tag.get("name") != "image"}
    used = {r["from_name"] for task in tasks for r in task["predictions"][0]["result"]}
    assert used == names


@pytest.mark.parametrize(
    ("prefix", "name", "url"),
    [
        ("/data/local-files/?d=", "d e/a+b&c#1=ö.jpg", "d%20e/a%2Bb%26c%231%3D%C3%B6.jpg"),
        ("/data/local-files/?d=set/", "50%20.jpg", "50%2520.jpg"),
        ("s3://bucket/", "d e/a+b&c#1.jpg", "d e/a+b&c#1.jpg"),
    ],
)
def test_label_studio_gets_urls_that_hold_any_file_name(labelled, prefix, name, url):
    read, labels, _ = labelled
    (first, *_), _ = objects.labelled_images(read, labels)
    first = first._replace(entry=first.entry._replace(file_name=name))
    (task,) = json.loads(label_studio.to_text([first], prefix, None))
    assert task["data"]["image"] == prefix + url
    if "?" in prefix:
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(task["data"]["image"]).query)
        assert query == {"d": [prefix.partition("d=")[2] + name]}


def test_fiftyone(labelled, expected):
    read, labels, _ = labelled
    made, _ = objects.labelled_images(read, labels)
    found = []
    for number, sample in enumerate(json.loads(fiftyone.to_text(made))["samples"]):
        width, height = sample["metadata"]["width"], sample["metadata"]["height"]
        assert pathlib.Path(sample["filepath"]).is_file()
        for detection in sample["ground_truth"]["detections"]:
            bbox = np.array(detection["bounding_box"]) * (width, height, width, height)
            if "mask" not in detection:
                continue
            packed = base64.b64decode(detection["mask"]["$binary"]["base64"])
            part = np.load(io.BytesIO(zlib.decompress(packed)))
            assert part.dtype == bool
            assert detection.get("mask_agreement") == (None if number else 0.75)
            x, y = round(bbox[0]), round(bbox[1])
            mask = np.zeros((height, width), bool)
            mask[y : y + part.shape[0], x : x + part.shape[1]] = part
            found.append((number, bbox, detection["label"], mask))
            assert detection["coco_bbox"] == expected[number][1]
    check(found, expected, exact=False)


masks = st_numpy.arrays(
    np.uint8, st_numpy.array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.integers(0, 1)
)


@settings(max_examples=60, deadline=None)
@given(masks)
def test_brush_masks_and_row_runs_decode(mask):
    height, width = mask.shape
    decoded = brush_mask(label_studio.brush_rle(mask_ops.encode_rle(mask)), height, width)
    np.testing.assert_array_equal(decoded, mask)
    runs = cvat.row_runs(mask)
    np.testing.assert_array_equal(np.repeat(np.arange(len(runs)) % 2, runs), mask.ravel())


def test_brush_runs_longer_than_sixteen_bits():
    mask = np.zeros((300, 301), np.uint8)
    mask[150:] = 1
    decoded = brush_mask(label_studio.brush_rle(mask_ops.encode_rle(mask)), 300, 301)
    np.testing.assert_array_equal(decoded, mask)
