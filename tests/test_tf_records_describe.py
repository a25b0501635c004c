"""`tf_records.describe`: its table, warnings, json and picture."""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from maskx_tf.data.records.manifest import Manifest
from maskx_tf.errors import UserError
from tests import corruption, harness
from tf_records import coco, describe
from tf_records.describe_sheet import draw_sheet
from tf_records.describe_statistics import gather
from tf_records.output import Output

TRIANGLE = [[2, 2, 38, 2, 2, 38]]


@pytest.fixture
def directory(tmp_path):
    annotations = [
        harness.annotation(1, [2, 2, 36, 36], segmentation=TRIANGLE, area=648),
        harness.annotation(1, [10, 10, 9, 16]),
        harness.annotation(1, [0, 0, 1, 1], segmentation=[]),
        *(harness.annotation(2, [5 * k, 3, 4, 4], category_id=2) for k in range(10)),
        harness.annotation(2, [0, 0, 100, 100], category_id=2, iscrowd=1, segmentation=[]),
        harness.annotation(2, [90, 90, 30, 30], segmentation=[]),
    ]
    sizes = [(40, 60), (100, 100), (30, 60)]
    made = harness.write_coco(tmp_path / "coco", annotations, sizes=sizes)
    output = Output(str(tmp_path / "records"), "pets", 2, workers=1)
    coco.convert(*made, output)
    return output.directory


def summary_of(directory, workers=1):
    manifest = Manifest.load(directory)
    return describe.summarize(manifest, gather(directory, manifest, workers)), manifest


GOLDEN = """\
pets: 3 images, 14 boxes, 12 masks, 1 crowd; 3 classes, 2 shards, {megabytes} MB

                     smallest   median  largest
image height px            30       40      100
image width px             60       60      100
objects per image           0        3       11
box sides (root of the area): below 32 px 93%, to 96 px 7%, above 0%

                                                       box side, px
class  images   boxes   masks   crowd    median  smallest   largest
dog         1      10      10       1       4.0       4.0       4.0
cat         2       4       2       0      11.0       1.0      36.0

Warnings:
  masks that are just their box: 11 (cat 1, dog 10)
  classes with fewer than 10 boxes: 1 (cat 4)
  classes without boxes: 1 (bird)
  images without objects: 1
  images with a side below 32 px: 1
  boxes below 2 px: 1

Dropped, repaired or odd when the records were written:
        1 repaired: the box was clipped to the image (box_clipped: annotation 15, image 2)
        1 kept: iscrowd is 1: it stands for several objects, and nothing is trained on it \
(crowd: annotation 14, image 2)"""


def test_text(directory):
    summary, manifest = summary_of(directory)
    text = describe.format_text(summary, manifest)
    assert text == GOLDEN.format(megabytes=f"{summary['bytes'] / 1e6:.1f}")


def test_processes_count_the_same(directory):
    assert summary_of(directory, workers=2)[0] == summary_of(directory, workers=1)[0]


def test_files(directory, tmp_path):
    summary, manifest = summary_of(directory)
    describe.write(directory, manifest, str(tmp_path / "out"), summary, count=3)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "describe.json",
        "samples.jpg",
    ]
    assert json.loads((tmp_path / "out" / "describe.json").read_text()) == summary
    with Image.open(tmp_path / "out" / "samples.jpg") as picture:
        assert picture.format == "JPEG"


def test_sheet_shows_masks_where_they_are(directory):
    """The triangle's half of its box is tinted green, the other half is as in the image."""
    manifest = Manifest.load(directory)
    picture = draw_sheet(directory, manifest, count=1)
    factor = picture.shape[1] // 60
    plain = harness.random_image(40, 60, seed=1).astype(int)

    def gain(y, x):
        """How much greener than red the picture is than the image, at a pixel of the image."""
        r, g, _ = picture[y * factor + factor // 2, x * factor + factor // 2].astype(int)
        return (g - r) - (plain[y, x, 1] - plain[y, x, 0])

    assert gain(28, 5) > 30
    assert abs(gain(36, 35)) < 15
    assert draw_sheet(directory, manifest, count=9).shape[0] > picture.shape[0] - 1


def test_no_objects_at_all(tmp_path):
    made = harness.write_coco(tmp_path / "coco", [])
    coco.convert(*made, Output(str(tmp_path / "records"), "none", workers=1, most_dropped=1))
    summary, manifest = summary_of(str(tmp_path / "records"))
    assert "1 images, 0 boxes, 0 masks" in describe.format_text(summary, manifest)
    assert np.all(draw_sheet(str(tmp_path / "records"), manifest, 1).shape)


def test_damage_is_an_error(directory):
    path = Manifest.load(directory).shards[1].file
    corruption.damage(pathlib.Path(directory, path), "payload bit", 0)
    with pytest.raises(UserError, match=r"00001-of-00002.tfrecord, record 0 .*records verify"):
        summary_of(directory)
