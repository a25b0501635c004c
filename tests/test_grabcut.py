"""GrabCut: the foreground it finds, as masks of detections and as masks of records."""

import concurrent.futures
import json
import math

import numpy as np
import pytest
from pycocotools import mask as mask_utils

from maskx_tf import checkpoints
from maskx_tf.assembly import build_model
from maskx_tf.data.records import manifest as manifest_lib
from maskx_tf.data.records import schema as records_lib
from maskx_tf.errors import UserError
from maskx_tf.evaluation.segmentation import Segment, by_grabcut, by_shape
from maskx_tf.ops import grabcut, masks
from tests import commands, harness, tiny
from tf_records import coco, describe, verify
from tf_records.describe_statistics import gather
from tf_records.output import Output

HEIGHT, WIDTH = 60, 80
BOX = (10.0, 20.0, 50.0, 60.0)  # of the disc

FILES = {"model": "evaluation.json", "grabcut": "evaluation_grabcut.json"}


def disc(height=HEIGHT, width=WIDTH, box_yxyx=BOX) -> np.ndarray:
    """bool [height, width]: the ellipse in a box."""
    y1, x1, y2, x2 = box_yxyx
    y, x = np.mgrid[:height, :width] + 0.5
    cy, cx = (y1 + y2) / 2, (x1 + x2) / 2
    return ((y - cy) / (y2 - y1)) ** 2 + ((x - cx) / (x2 - x1)) ** 2 <= 0.25


def picture(inside: np.ndarray, seed: int = 0) -> np.ndarray:
    """uint8 [H, W, 3]: orange on blue, both noisy."""
    colours = np.where(inside[..., None], [230, 130, 30], [40, 60, 140])
    noise = np.random.default_rng(seed).normal(0, 12, [*inside.shape, 3])
    return np.clip(colours + noise, 0, 255).astype(np.uint8)


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


def whole(found, height=HEIGHT, width=WIDTH) -> np.ndarray:
    region, top, left = found
    mask = np.zeros([height, width], bool)
    mask[top : top + region.shape[0], left : left + region.shape[1]] = region
    return mask


class TestSegment:
    def test_finds_what_differs_from_its_surroundings(self):
        inside = disc()
        found = whole(grabcut.segment(picture(inside), BOX))
        assert iou(found, inside) > 0.95

    def test_a_large_box_is_segmented_small_and_scaled_back(self):
        box = (100.0, 80.0, 500.0, 620.0)
        inside = disc(600, 700, box)
        found = whole(grabcut.segment(picture(inside), box), 600, 700)
        assert iou(found, inside) > 0.95

    def test_nothing_outside_of_the_box_is_set(self):
        region, top, left = grabcut.segment(picture(disc()), (20.3, 30.2, 45.5, 52.0))
        assert (region.shape, top, left) == ((26, 22), 20, 30)

    @pytest.mark.parametrize(
        "box",
        [
            (0.0, 0.0, HEIGHT, WIDTH),  # no background is known
            (-5.0, -5.0, HEIGHT + 5, WIDTH + 5),
            (30.0, 30.0, 31.0, 31.0),  # fewer pixels than clusters
        ],
    )
    def test_where_nothing_can_be_told_the_mask_is_the_box(self, box):
        region, _, _ = grabcut.segment(picture(disc()), box)
        assert region.size and region.all()

    def test_an_even_image_gives_the_box(self):
        image = np.full([HEIGHT, WIDTH, 3], 90, np.uint8)
        assert grabcut.segment(image, BOX)[0].all()

    @pytest.mark.parametrize("box", [(90, 90, 99, 99), (5, 5, 5, 20), (-9, -9, -1, -1)])
    def test_a_box_outside_has_no_pixel(self, box):
        assert grabcut.segment(picture(disc()), box)[0].size == 0

    @pytest.mark.parametrize(
        ("height", "width", "box"),
        [
            (480, 640, (0, 0, 1, 640)),
            (480, 640, (479.2, 3, 480, 637)),
            (600, 1000, (300, 0, 301, 1000)),
            (2000, 4000, (1000, 200, 1005, 3800)),
        ],
    )
    def test_thin_boxes(self, height, width, box):
        """Scaled down, a side of them would be less than a pixel."""
        noise = np.random.default_rng(0).integers(0, 256, [height, width, 3], np.uint8)
        for image, (y1, x1, y2, x2) in (
            (noise, box),
            (noise.transpose(1, 0, 2), [box[i] for i in (1, 0, 3, 2)]),
        ):
            region, top, left = grabcut.segment(image, (y1, x1, y2, x2))
            assert (top, left) == (math.floor(y1), math.floor(x1))
            assert region.shape == (math.ceil(y2) - top, math.ceil(x2) - left)
            assert region.any()

    def test_any_box_has_a_mask_of_its_pixels(self):
        rng = np.random.default_rng(1)
        for _ in range(200):
            height, width = np.exp(rng.uniform(0, np.log(1500), 2)).astype(int)
            image = rng.integers(0, 256, [height, width, 3], np.uint8)
            start = rng.uniform(0, [height - 1e-3, width - 1e-3])
            sides = np.exp(rng.uniform(np.log(0.1), np.log(1500), 2))
            end = np.minimum(start + sides, [height, width])
            region, top, left = grabcut.segment(image, (*start, *end))
            assert (top, left) == tuple(np.floor(start))
            assert region.shape == tuple(np.ceil(end) - (top, left))
            assert region.any()

    def test_equal_in_any_thread_and_in_any_order_of_channels(self):
        image = picture(disc())
        first = grabcut.segment(image, BOX)[0]
        other = grabcut.segment(np.ascontiguousarray(image[..., ::-1]), BOX)[0]
        assert iou(first > 0, other > 0) > 0.98
        with concurrent.futures.ThreadPoolExecutor(3) as threads:
            for found in threads.map(lambda _: grabcut.segment(image, BOX), range(6)):
                np.testing.assert_array_equal(found[0], first)


@pytest.fixture
def data(tmp_path):
    """(json, images) of three discs: one with the annotated box as mask, one crowd, one without."""
    x, y, side = 20, 10, 40
    annotations = [
        harness.annotation(1, [x, y, side, side], id=5),
        harness.annotation(2, [x, y, side, side], id=6, iscrowd=1),
        harness.annotation(2, [x, y, side, side], id=7, segmentation=[], category_id=2),
        harness.annotation(2, [0, 0, WIDTH, HEIGHT], id=8, segmentation=[]),
    ]
    paths = harness.write_coco(tmp_path / "coco", annotations, sizes=[(HEIGHT, WIDTH)] * 2)
    for index in (1, 2):
        encoded = harness.encode_image(picture(disc(), seed=index))
        (tmp_path / "coco" / "images" / f"{index}.jpg").write_bytes(encoded)
    return paths


def converted(data, directory, **options):
    manifest = coco.convert(*data, Output(str(directory), "x", workers=1), **options)
    found = records_lib.read_records(manifest_lib.find_shards([str(directory)]))
    return manifest, {item.annotation_id: item for record in found for item in record.objects}


class TestRecords:
    def test_masks_of_all_boxes(self, data, tmp_path):
        manifest, objects = converted(data, tmp_path / "all", masks="grabcut")
        sources = {number: item.mask_source for number, item in objects.items()}
        assert sources == {5: "grabcut", 6: "human", 7: "grabcut", 8: "grabcut"}
        for number in (5, 7):
            assert iou(objects[number].mask > 0, disc()[10:50, 20:60]) > 0.95
        assert objects[6].mask.all()  # of a crowd, as annotated
        assert manifest.mask_sources == {"grabcut": 3}  # crowds have none
        assert manifest.issues["mask_is_box"]["ids"] == [[8, 2]]

    def test_masks_of_boxes_without_any(self, data, tmp_path):
        manifest, objects = converted(data, tmp_path / "missing", masks="grabcut_missing")
        sources = {number: item.mask_source for number, item in objects.items()}
        assert sources == {5: "human", 6: "human", 7: "grabcut", 8: "grabcut"}
        assert objects[5].mask.all()
        assert manifest.mask_sources == {"grabcut": 2, "human": 1}

    def test_annotated_masks_are_the_default(self, data, tmp_path):
        manifest, objects = converted(data, tmp_path / "annotated")
        assert manifest.mask_sources == {"human": 1}
        assert objects[7].mask is None and objects[7].mask_source == ""

    def test_size_of_masks(self, data, tmp_path):
        _, objects = converted(data, tmp_path / "small", masks="grabcut", mask_size=16)
        assert objects[5].mask.shape == (16, 16)

    def test_records_of_other_masks_are_not_taken_for_these(self, data, tmp_path):
        converted(data, tmp_path / "x")
        output = Output(str(tmp_path / "x"), "x", workers=1, reuse=True)
        with pytest.raises(UserError, match="another source or other settings"):
            coco.convert(*data, output, masks="grabcut")

    def test_verify_and_describe_know_the_source(self, data, tmp_path):
        directory = tmp_path / "all"
        manifest, _ = converted(data, directory, masks="grabcut")
        assert verify.verify([str(directory)], 1).faults == []
        summary = describe.summarize(manifest, gather(str(directory), manifest, 1))
        text = describe.format_text(summary, manifest)
        assert "3 boxes, 3 masks (grabcut 3), 1 crowd" in text
        path = directory / manifest_lib.FILE_NAME
        content = json.loads(path.read_text())
        content["mask_sources"] = {"grabcut": 4}
        path.write_text(json.dumps(content))
        assert [fault.message for fault in verify.verify([str(directory)], 1).faults] == [
            "says 4 masks of the source 'grabcut', the records have 3",
        ]

    def test_manifests_of_before_tell_of_annotated_masks(self, data, tmp_path):
        directory = tmp_path / "old"
        converted(data, directory)
        path = directory / manifest_lib.FILE_NAME
        content = json.loads(path.read_text())
        del content["mask_sources"]
        path.write_text(json.dumps(content))
        assert manifest_lib.Manifest.load(directory).mask_sources == {"human": 1}


class TestEvaluation:
    def test_masks_of_boxes_on_the_original_images(self, data, tmp_path):
        converted(data, tmp_path / "records")
        with Segment((str(tmp_path / "records"),), by_grabcut) as segment:
            for image_id in (2, 1):
                found = segment(image_id, np.array([BOX, (0, 0, 5, 5)]))
                assert len(found) == 2
                assert iou(masks.decode_rle(found[0]) > 0, disc()) > 0.95
            assert segment(1, np.zeros([0, 4])) == []

    @pytest.mark.parametrize("where", ["in the image", "in the name of the id"])
    def test_damaged_records_are_named(self, data, tmp_path, where):
        converted(data, tmp_path / "records")
        (path,) = (tmp_path / "records").glob("*.tfrecord")
        content = bytearray(path.read_bytes())
        in_image = where == "in the image"
        content[len(content) // 4 if in_image else content.index(b"image/source_id")] ^= 1
        path.write_bytes(content)
        with (
            pytest.raises(UserError, match="does not match its checksum.*records verify"),
            Segment((str(tmp_path / "records"),), by_grabcut) as segment,
        ):
            segment(1, np.array([BOX]))

    @pytest.mark.thorough
    def test_command(self, data, tmp_path, capsys):
        """Given boxes of discs GrabCut is right; without it a detector has boxes alone."""
        converted(data, tmp_path / "full", mask_size=0, masks="grabcut")
        run = tmp_path / "run"
        names = ("cat", "dog", "bird")
        options = tiny.config(
            model_dir=str(run), mode="stage1_boxes", mask_classes="none",
            eval_records=(str(tmp_path / "full"),),
        )  # fmt: skip
        vocabulary = tiny.Vocabulary.from_names(names)
        checkpoints.save_run(options, vocabulary, ())
        model = build_model(options, len(names))
        tiny.tf.train.Checkpoint(model=model).save(str(run / "ckpt"))
        given, printed = {}, ""
        for who in ("model", "grabcut"):
            options = f"--model_dir={run}", f"--masks={who}", "--errors"
            done = commands.in_process("maskx_tf.evaluate", *options)
            assert done.returncode == 0, done.stderr
            printed += done.stdout
            given[who] = json.loads((run / FILES[who]).read_text())
        assert given["model"]["box"] == given["grabcut"]["box"]
        assert given["model"].keys() == {
            *("checkpoint", "mask_classes", "ground_truth", "box", "operating_point", "errors")
        }
        for who, name in FILES.items():
            page = (run / name).with_suffix(".html").read_text()
            assert "missed" in page and page.count("<img ") == 2
            assert set(given[who]["errors"]) == {"A", "B", "all"}
        assert given["model"]["mask_classes"] == []
        assert given["model"]["ground_truth"] == [str(tmp_path / "full")]
        assert given["grabcut"]["mask_given_boxes"]["all"]["AP"] == pytest.approx(1)
        assert printed.count("mask, boxes given") == 1


@pytest.mark.parametrize(("shape", "share"), [("box", 1.0), ("ellipse", np.pi / 4)])
def test_shapes_of_boxes(shape, share):
    image = np.zeros((200, 300, 3), np.uint8)
    rle = by_shape(shape)(image, (20.0, 30.0, 120.0, 190.0), None)
    mask = mask_utils.decode(rle).astype(bool)
    assert mask.shape == (200, 300) and not np.delete(mask, slice(20, 120), axis=0).any()
    assert mask.sum() == pytest.approx(share * 100 * 160, rel=0.01)
    assert mask[70, 30] and mask[70, 189] and not mask[:, 190:].any()
    assert mask[20, 30] == (shape == "box")
