"""What a conversion loses: it stops with the reason and its remedy, or says what looks wrong."""

import json
import re

import pytest

from maskx_tf.data import supervision
from maskx_tf.data.records.manifest import FILE_NAME, Manifest, find_records
from maskx_tf.errors import UserError
from tests import corruption, harness
from tests.harness import annotation, polygon_of
from tf_records import coco, describe, verify, writer
from tf_records.describe_statistics import gather
from tf_records.output import Output

BOX = [10, 5, 20, 12]
BAD = {"bbox": None, "segmentation": []}


def convert(tmp_path, items, most_dropped=0.5, sizes=((40, 60),), **options):
    paths = harness.write_coco(tmp_path / "coco", items, sizes=sizes)
    output = Output(str(tmp_path / "records"), "x", workers=1, most_dropped=most_dropped)
    return coco.convert(*paths, output, **options)


def boxes(count, **changes):
    return [annotation(1, [2 * i, 3, 9, 8], **changes) for i in range(count)]


@pytest.mark.parametrize(
    ("items", "reason"),
    [
        ([annotation(1, **BAD)], "box_missing"),
        ([annotation(1, **BAD)] * 3 + boxes(2), "3 of 5 objects, such as annotation 1, image 1"),
        (boxes(4, iscrowd=1), "crowd: 4 of 4 objects.*--crowds=objects"),
        (boxes(3, iscrowd=1) + boxes(2), "crowd: 3 of 5"),
        (boxes(2, segmentation=[[1, 2]]), "None of 2 masks .*mask_no_polygon: 2 of 2"),
        (boxes(3, segmentation=[[1, 2]]) + boxes(2), "mask_no_polygon: 3 of 5 masks"),
        ([], "There is no object"),
        ([annotation(1, [50 + i, 30, 50, 40]) for i in range(30)], "of photos of another size"),
        ([annotation(1, [0.1, 0.2, 0.3, 0.25], segmentation=[])], "multiply x and width"),
    ],
)
def test_a_great_loss_stops_and_writes_nothing(tmp_path, items, reason):
    with pytest.raises(UserError, match=reason) as error:
        convert(tmp_path, items)
    assert "--most_dropped=1" in str(error.value) and "\n" not in str(error.value)
    assert not list((tmp_path / "records").glob("*"))
    manifest = convert(tmp_path, items, most_dropped=1)  # told otherwise
    assert manifest.num_images == 1


@pytest.mark.parametrize(
    "items",
    [
        [annotation(1, **BAD)] * 2 + boxes(2),
        boxes(2, iscrowd=1) + boxes(2),
        boxes(2, segmentation=[[1, 2]]) + boxes(2),
        boxes(4, segmentation=[]),  # nobody asked for masks
    ],
)
def test_half_is_not_too_much(tmp_path, items):
    assert convert(tmp_path, items).num_objects


def test_the_share_is_an_option(tmp_path):
    items = [annotation(1, **BAD)] * 2 + boxes(2)
    with pytest.raises(UserError, match="More than 40% of the objects cannot be used"):
        convert(tmp_path, items, most_dropped=0.4)
    with pytest.raises(UserError, match=r"--most_dropped=1.5 must lie in \[0, 1\]"):
        convert(tmp_path, items, most_dropped=1.5)


def test_lost_images_count(tmp_path):
    items = [annotation(i, BOX) for i in (1, 2, 3)]
    images = [{"id": i, "file_name": f"{i}.jpg"} for i in (1, 2, 3)]  # of which the first is there
    paths = harness.write_coco(tmp_path / "coco", items, images=images)
    output = Output(str(tmp_path / "records"), "x", workers=1)
    with pytest.raises(UserError, match="image_missing: 2 of 3 images") as error:
        coco.convert(*paths, output, skip_bad_images=True)
    assert "--images" in str(error.value)
    with pytest.raises(UserError, match=r"2 of 3 image files are missing.*--skip_bad_images"):
        coco.convert(*paths, output)


def test_objects_that_are_lost_with_their_images_are_told_as_these(tmp_path):
    items = [annotation(2, BOX) for _ in range(9)] + [annotation(1, BOX), annotation(3, BOX)]
    paths = harness.write_coco(tmp_path / "coco", items, sizes=[(40, 60)] * 3)
    (tmp_path / "coco" / "images" / "2.jpg").write_bytes(b"version https://git-lfs")
    output = Output(str(tmp_path / "records"), "x", workers=1)
    cause = r"More than 50% of the objects cannot be used.*image_corrupt: 1 of 3 images.*replace"
    with pytest.raises(UserError, match=cause):
        coco.convert(*paths, output, skip_bad_images=True)


def test_a_directory_of_other_files_is_named_with_one_of_them(tmp_path):
    images = [{"id": 1, "file_name": "a.jpg"}]
    paths = harness.write_coco(tmp_path / "coco", [], images=images)
    with pytest.raises(UserError, match=r"1 of 1 image files .*There is '1\.jpg'") as error:
        coco.convert(*paths, Output(str(tmp_path / "records"), "x", workers=1))
    assert "--skip_bad_images" not in str(error.value)


def test_what_single_objects_have_by_chance_is_not_said(tmp_path):
    odd = annotation(1, [10, 5, 30, 17], segmentation=polygon_of(*BOX))  # as if of corners
    thin = annotation(1, [50, 9, 0.5, 9])
    manifest = convert(tmp_path / "few", [odd, thin, *boxes(250)], sizes=[(40, 600)])
    assert manifest.issues["box_is_corners"]["count"] == manifest.issues["box_thin"]["count"] == 1
    assert "Nothing was dropped or repaired" in writer.describe(manifest, "d")
    manifest = convert(tmp_path / "many", [odd, thin, *boxes(9)])
    said = writer.describe(manifest, "d")
    assert "1 kept" in said and "box_is_corners" in said and "box_thin" in said


def test_crowds_are_counted_apart(tmp_path):
    items = [*boxes(3), annotation(1, [1, 1, 30, 30], category_id=2, iscrowd=1)]
    manifest = convert(tmp_path, items)
    assert manifest.class_counts == {"cat": (3, 3)} and manifest.crowd_counts == {"dog": 1}
    assert manifest.max_objects_per_image == 4  # --max_objects has to take them, too
    assert manifest.mask_sources == {"human": 3}
    assert "3 objects, 3 with mask and 1 crowds" in writer.describe(manifest, "d")
    directory = str(tmp_path / "records")
    assert Manifest.load(directory) == manifest
    report = verify.verify([directory], workers=1)
    assert report.faults == [] and (report.objects, report.masks) == (3, 3)
    summary = describe.summarize(manifest, gather(directory, manifest, 1))
    assert (summary["boxes"], summary["masks"], summary["crowd"]) == (3, 3, 1)
    assert "classes of more crowds than objects, not trained on: 1 (dog 1)" in summary["warnings"]


def as_before(directory, objects, crowds):
    """Takes from a manifest what those of before lack; all objects are cats with masks."""
    path = directory / FILE_NAME
    content = json.loads(path.read_text())
    del content["crowd_counts"]
    content["class_counts"] = {"cat": [objects + crowds] * 2}
    content["mask_sources"] = {"human": objects + crowds}
    path.write_text(json.dumps(content))
    assert Manifest.load(directory).crowd_counts is None
    assert verify.verify([str(directory)], workers=1).faults == []


def test_training_on_crowds_of_records_of_before_is_refused(tmp_path):
    """Their manifests count crowds as objects, so that the records themselves are asked."""
    crowd = annotation(1, [1, 1, 30, 30], iscrowd=1)
    convert(tmp_path / "some", [crowd, *boxes(3)])
    as_before(tmp_path / "some" / "records", 3, 1)
    supervision.require_objects(find_records([str(tmp_path / "some" / "records")]))
    convert(tmp_path / "none", [crowd], most_dropped=1)
    directory = tmp_path / "none" / "records"
    as_before(directory, 0, 1)
    with pytest.raises(UserError, match="no object to train on, 1 crowds and 1 images"):
        supervision.require_objects(find_records([str(directory)]))
    corruption.damage(next(directory.glob("*.tfrecord")), "payload bit", 0)
    supervision.require_objects(find_records([str(directory)]))  # reading names the damage


def test_verify_counts_crowds(tmp_path):
    convert(tmp_path, [*boxes(3), annotation(1, [1, 1, 30, 30], iscrowd=1)])
    path = tmp_path / "records" / FILE_NAME
    path.write_text(path.read_text().replace('"cat": 1', '"cat": 2'))
    (fault,) = verify.verify([str(path.parent)], workers=1).faults
    assert fault.message == "says 2 crowds of 'cat', the records have 1"


def test_training_without_any_object_is_refused(tmp_path):
    convert(tmp_path, boxes(3, iscrowd=1), most_dropped=1)
    with pytest.raises(UserError, match="no object to train on, 3 crowds and 1 images"):
        supervision.require_objects(find_records([str(tmp_path / "records")]))
    with pytest.raises(UserError, match="has a mask in --train_records"):
        vocabulary = Manifest.load(tmp_path / "records").vocabulary
        supervision.check(find_records([str(tmp_path / "records")]), vocabulary, (1,))


def scaled(factor):
    """20 boxes over all of a photo of 120 x 80 times the factor."""
    boxes = [[8 * (i % 10), 6 * i, 8 * (10 - i % 10), 6] for i in range(20)]
    return [annotation(1, [value * factor for value in box]) for box in boxes]


@pytest.mark.parametrize(
    ("items", "sizes", "warning"),
    [
        ([annotation(1, [10, 5, 30, 17], segmentation=polygon_of(*BOX))], [], "x1, y1, x2, y2"),
        ([annotation(1, [20, 5, 20, 12], segmentation=polygon_of(*BOX))], [], "shifted"),
        (scaled(1), [(120, 80)], None),
        (scaled(0.5), [(120, 80)], "upper left 50% x 50%"),  # the photos are twice as large
        (scaled(1), [(1200, 800)], "in pixels"),  # percents, as some tools write
        ([*boxes(4), annotation(1, **BAD)], [], "20% of the objects: .*box_missing"),
        ([*boxes(10), annotation(1, **BAD)], [], None),
    ],
)
def test_what_is_odd_of_most_is_a_warning(tmp_path, items, sizes, warning):
    manifest = convert(tmp_path, items, sizes=sizes or [(40, 60)])
    assert "warning: " in writer.describe(manifest, "d") or not warning
    found = [line for line in manifest.warnings if warning and re.search(warning, line)]
    assert len(found) == 1 if warning else not manifest.warnings
    assert Manifest.load(tmp_path / "records").warnings == manifest.warnings


def test_the_same_photo_twice_is_listed(tmp_path):
    items = [annotation(i, BOX) for i in (1, 2)]
    images = [{"id": i, "file_name": "1.jpg"} for i in (1, 2)]
    paths = harness.write_coco(tmp_path / "coco", items, images=images)
    manifest = coco.convert(*paths, Output(str(tmp_path / "records"), "x", 2, workers=1))
    assert manifest.issues["image_repeated"]["ids"] == [[None, 2]]
