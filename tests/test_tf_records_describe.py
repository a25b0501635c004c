"""`tf_records.describe`: its table, warnings, json and picture."""

import itertools
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from maskx_tf import visualize
from maskx_tf.data import decoding
from maskx_tf.data.records.manifest import Manifest, find_shards
from maskx_tf.data.records.schema import read_records
from maskx_tf.errors import UserError
from tests import corruption, harness
from tf_records import coco, describe, describe_sheet
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


def test_weights_of_masks(tmp_path):
    items = [harness.annotation(1, [2, 2, 30, 30], mask_weight=w) for w in (0, 0.5, 1, 1)]
    items.append(harness.annotation(1, [2, 2, 30, 30], mask_weight=0.1, segmentation=[]))
    made = harness.write_coco(tmp_path / "coco", items)
    coco.convert(*made, Output(str(tmp_path / "records"), "pets", 1, workers=1))
    summary, manifest = summary_of(str(tmp_path / "records"))
    assert summary["mask_weights"] == {"below_1": 2, "zero": 1, "mean": 0.625}
    text = describe.format_text(summary, manifest)
    assert "weights of masks: mean 0.62, 2 below 1, of which 1 are 0" in text


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


def test_files_are_written_before_anything_is_printed(directory, tmp_path):
    """Which may end it, as in `… | head -1`."""
    command = [sys.executable, "-m", "tf_records.describe", str(directory), "--workers=1"]
    process = subprocess.Popen(
        [*command, f"--output_dir={tmp_path / 'out'}"],
        cwd=harness.REPOSITORY,
        stdout=subprocess.PIPE,
    )
    process.stdout.close()
    assert process.wait(timeout=60) == 141
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"describe.json", "samples.jpg"}


class TestSheet:
    def test_masks_are_where_they_are(self, directory):
        """The triangle's half of its box is tinted, the other half is as in the image."""
        picture = draw_sheet(directory, Manifest.load(directory), count=1).astype(int)
        factor = picture.shape[1] / 60
        plain = harness.random_image(40, 60, seed=1).astype(int)

        def change(y, x):
            return np.abs(
                picture[round((y + 0.5) * factor), round((x + 0.5) * factor)] - plain[y, x]
            )

        assert change(28, 5).max() > 30
        assert change(36, 35).max() < 15

    def test_each_object_has_its_colour_and_crowds_are_named(self, tmp_path, monkeypatch):
        boxes = [[2, 2, 20, 15], [22, 2, 20, 15], [2, 20, 20, 16], [30, 20, 20, 16]]
        annotations = [harness.annotation(1, box, iscrowd=int(box == boxes[3])) for box in boxes]
        made = harness.write_coco(tmp_path / "coco", annotations)
        (tmp_path / "coco" / "images" / "1.jpg").write_bytes(
            harness.encode_image(np.full((40, 60, 3), 128, np.uint8))
        )
        coco.convert(*made, Output(str(tmp_path / "records"), "x", workers=1))
        written = []

        def no_labels(picture, boxes, labels, colors):
            written.extend(labels)
            return picture

        monkeypatch.setattr(visualize, "draw_labels", no_labels)
        manifest = Manifest.load(tmp_path / "records")
        picture = draw_sheet(str(tmp_path / "records"), manifest, 1).astype(int)
        assert sorted(written) == ["cat", "cat", "cat", "crowd: cat"]
        factor = picture.shape[1] / 60
        centers = [(x + w / 2, y + h / 2) for x, y, w, h in boxes]
        colors = [picture[round(y * factor), round(x * factor)] for x, y in centers]
        for first, second in itertools.combinations(colors, 2):
            assert np.abs(first - second).max() > 30
        assert np.ptp(colors[3]) < 8 < min(np.ptp(color) for color in colors[:3])  # a grey

    def test_names_and_ids_are_under_the_images(self, directory, monkeypatch):
        captions, captioned = [], visualize.captioned

        def recorded(picture, caption, ending, below):
            captions.append(caption + ending)
            return captioned(picture, caption, ending, below)

        monkeypatch.setattr(visualize, "captioned", recorded)
        draw_sheet(directory, Manifest.load(directory), count=9)
        assert captions == [f"{i}.jpg · image {i}" for i in (1, 2, 3)]

    @pytest.mark.parametrize("seed", range(5))
    def test_images_fill_it(self, seed):
        rng = np.random.default_rng(seed)
        aspects = rng.uniform(0.4, 4, rng.integers(1, 30)).tolist()
        rows = describe_sheet._rows(aspects)
        assert [i for row in rows for i, _ in row] == list(range(len(aspects)))
        widths = {sum(width for _, (_, width) in row) for row in rows}
        assert len(widths) == 1
        for row in rows:
            assert len({height for _, (height, _) in row}) == 1
            for i, (height, width) in row:
                assert abs(width - aspects[i] * height) < 4

    def test_small_images_are_as_large_as_others(self, tmp_path):
        sizes = [(20, 30), (900, 1350), (10, 40)]
        made = harness.write_coco(
            tmp_path / "coco", [harness.annotation(1, [2, 2, 9, 9])], sizes=sizes
        )
        coco.convert(*made, Output(str(tmp_path / "records"), "x", workers=1))
        picture = draw_sheet(str(tmp_path / "records"), Manifest.load(tmp_path / "records"), 9)
        assert (picture == 255).all(axis=-1).mean() < 0.12  # the lines of names, and gaps

    def test_what_training_decodes_is_shown(self, directory, monkeypatch):
        shown = np.full((40, 60, 3), (9, 99, 199), np.uint8)
        monkeypatch.setattr(decoding, "to_array", lambda encoded: shown)
        picture = draw_sheet(directory, Manifest.load(directory), count=1)
        np.testing.assert_array_equal(picture[5, -20], shown[0, 0])

    def test_an_image_that_training_cannot_decode_is_named(self, directory, monkeypatch):
        record = next(read_records(find_shards([directory])))
        record.encoded = record.encoded[:200] + bytes(200)
        monkeypatch.setattr(describe_sheet.schema, "from_example", lambda _: record)
        with pytest.raises(UserError, match=r"00000-of-00002.tfrecord: image 1 \(1.jpg\): .*zeros"):
            draw_sheet(directory, Manifest.load(directory), count=1)


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
