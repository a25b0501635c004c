"""Files of the kinds that people have, out of public bug reports: what becomes of each.

The kinds have tests of their own beside the code; here are the files as they are told of.
"""

import json
import pathlib
import re

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from maskx_tf.data import decoding
from maskx_tf.data.classes import Vocabulary
from maskx_tf.data.coco import instances
from maskx_tf.data.pipeline import make_dataset
from maskx_tf.data.records import index
from maskx_tf.data.records.manifest import find_shards
from maskx_tf.data.records.reader import reading_errors
from maskx_tf.data.records.schema import (
    ImageRecord,
    ObjectRecord,
    read_records,
    serialize_record,
)
from maskx_tf.errors import UserError
from maskx_tf.evaluation import ground_truth
from tests import harness, tiny
from tests.harness import thorough
from tf_records import coco, verify, verify_contents
from tf_records.output import Output


def convert(name, directory, **options):
    output = Output(str(directory), "x", workers=1)
    return coco.convert(*harness.case(name), output, **options)


# Objects, masks, crowds, and reason -> count.
CONVERTED = {
    "c03_via_image_id_text": (4, 4, 0, {}),
    "c04b_float_image_id_only": (4, 4, 0, {}),
    "c05_no_bbox": (6, 6, 0, {"box_of_mask": 6}),
    "c07_xyxy": (4, 4, 0, {"box_is_corners": 4, "box_clipped": 2}),
    "c09_rle_counts_repr_of_bytes": (4, 4, 0, {}),
    "c12_segmentation_text": (6, 2, 0, {"mask_blank": 4}),
    "c13_backslash": (4, 4, 0, {"image_name_differs": 2}),
    "c13b_percent": (2, 2, 0, {"image_name_differs": 1}),
    "c13d_case": (2, 2, 0, {"image_name_differs": 1}),
    "c13e_absolute": (2, 2, 0, {"image_name_differs": 1}),
    "c13f_url": (2, 2, 0, {"image_name_differs": 1}),
    "c15_roboflow_same_name": (4, 4, 0, {}),
    "c15b_roboflow_root": (4, 4, 0, {}),
    "c15c_case_and_blank": (4, 4, 0, {}),
    "c16g_keypoints_only": (4, 0, 0, {}),
    "c17_rotated_cvat": (4, 0, 0, {"box_rotated": 4}),
    "c18_tiff16": (4, 4, 0, {"image_range_changed": 2}),
    "c18b_png16_12bit": (4, 4, 0, {"image_range_changed": 2}),
    "c18d_webp_named_jpg": (4, 4, 0, {"image_reencoded": 1}),
    "c19_size_swapped": (4, 4, 0, {"image_size_differs": 2}),
    "c19b_exif": (4, 4, 0, {"image_rotation_unknown": 2, "image_size_invalid": 1}),
    "c20_resized": (2, 2, 0, {"image_size_differs": 2, "box_outside_image": 2}),
    "c21_same_photo_twice": (4, 4, 0, {"image_repeated": 1}),
    "c22_iscrowd_text": (2, 2, 2, {"crowd": 2}),
    "c23_mask_off_box": (4, 4, 0, {"mask_cut_by_box": 4}),
    "c25_image_id_off_by_one": (2, 2, 0, {"annotation_of_unknown_image": 2}),
    "c26c_supercategory_list": (4, 4, 0, {}),
    "c27_size_swapped_rle": (4, 4, 0, {"image_size_differs": 2}),
    "c28_exif_labelstudio": (
        4, 4, 0, {"image_rotation_unknown": 2, "image_boxes_rotated": 2, "box_clipped": 2}
    ),
    "c29_huge": (2, 2, 0, {}),
    "c32_multipage_tiff": (2, 2, 0, {"image_first_frame": 1, "image_reencoded": 1}),
    "c33_duplicates": (6, 4, 0, {"box_duplicate": 4}),
    "c34_hole_polygon": (1, 1, 0, {}),
    "c41_big_rle": (400, 400, 0, {}),
    "c42_broken_exif": (10, 10, 0, {"image_rotation_unknown": 1}),
    "c42b_png_broken_exif": (1, 1, 0, {}),
}  # fmt: skip


# The scene that most cases show: the objects of an image as (class, box yxyx), each a disc.
ANT, BEE = ("ant", (12, 10, 32, 40)), ("bee", (30, 50, 60, 75))
OTHER_SCENES = {
    "c07_xyxy": [("ant", (12, 10, 44, 50)), ("bee", (30, 50, 72, 96))],  # as said; clipped
    "c15_roboflow_same_name": [ANT, ("ant", BEE[1])],
    "c20_resized": [ANT],
    "c23_mask_off_box": [("ant", (12, 22, 32, 52)), ("bee", (30, 62, 60, 87))],
    "c28_exif_labelstudio": [ANT, ("bee", (60, 30, 72, 55))],
    "c33_duplicates": [ANT, BEE] * 3,
    "c34_hole_polygon": [ANT],
    "c42_broken_exif": [ANT],
    "c42b_png_broken_exif": [ANT],
}
LARGE = ("c29_huge", "c41_big_rle")
# Masks that their box cuts, and images of other things.
NO_DISCS = ("c07_xyxy", "c23_mask_off_box", "c28_exif_labelstudio", "c29_huge", "c41_big_rle")


def is_disc(mask):
    """Whether a mask fills its box as an ellipse does."""
    y, x = ((np.arange(side) + 0.5) / side * 2 - 1 for side in mask.shape)
    disc = y[:, None] ** 2 + x**2 <= 1
    return (mask & disc).sum() / (mask | disc).sum() > 0.93


@pytest.mark.parametrize("name", [thorough(n) if n in LARGE else n for n in CONVERTED])
def test_what_is_read(name, tmp_path, recwarn, capfd):
    objects, masks, crowds, reasons = CONVERTED[name]
    manifest = convert(name, tmp_path / "r")
    counts = (manifest.num_objects, manifest.num_masks, manifest.num_crowds)
    assert counts == (objects, masks, crowds)
    assert {reason: entry["count"] for reason, entry in manifest.issues.items()} == reasons
    assert verify.verify([str(tmp_path / "r")], workers=1).faults == []
    records = list(read_records(find_shards([str(tmp_path / "r")])))
    for record in records:
        pixels = decoding.to_array(record.encoded)
        assert pixels.shape == (record.height, record.width, 3)
        if name not in (*LARGE, "c32_multipage_tiff"):
            assert 10 < pixels.mean() < 245 and pixels.std() > 5  # neither black nor white
        if name != "c41_big_rle" and record.objects:
            scene = [
                (item.class_name.lower(), tuple(item.box_yxyx.round().tolist()))
                for item in record.objects
            ]
            assert scene == OTHER_SCENES.get(name, [ANT, BEE])
        for item in record.objects:
            assert item.mask is None or name in NO_DISCS or is_disc(item.mask > 0)
    assert not [str(w.message) for w in recwarn.list if "PIL" in w.filename]
    assert "Corrupt" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("name", "names", "said"),
    [
        ("c15_roboflow_same_name", ("ant",), "category 0 of the name 'ant' has no annotations"),
        ("c15b_roboflow_root", ("insects", "ant", "bee"), ""),
        ("c15c_case_and_blank", ("ant", "bee", "Ant"), "'ant', 'Ant' are different classes"),
    ],
)
def test_classes(name, names, said, tmp_path, caplog):
    manifest = convert(name, tmp_path / "r")
    assert manifest.vocabulary.names == names and said in caplog.text


def test_crowds_are_told_from_objects_by_text_as_well(tmp_path):
    convert("c22_iscrowd_text", tmp_path / "r")
    records = read_records(find_shards([str(tmp_path / "r")]))
    assert [[item.is_crowd for item in record.objects] for record in records] == [
        [True, True], [False, False],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "warning"),
    [
        ("c07_xyxy", "x1, y1, x2, y2"),
        ("c23_mask_off_box", "shifted"),
        ("c20_resized", "resized"),
        ("c28_exif_labelstudio", "auto-orient"),
        ("c19_size_swapped", "another size"),
        ("c25_image_id_off_by_one", "50% of the objects: no such image in the json"),
    ],
)
def test_what_is_warned_of(name, warning, tmp_path):
    assert any(warning in line for line in convert(name, tmp_path / "r").warnings)


# What the message names: the cause, and the remedy.
REFUSED = {
    "c01_cvat_iscrowd": (
        "crowd: 4 of 4 objects, such as annotation 1, image 1",
        "--crowds=objects",
    ),
    "c02_string_image_ids": ("'000a1249af2bc5f0'", "number the images"),
    "c06_normalised": ("between 0 and 1", "multiply x and width"),
    "c08_rle_size_swapped": ("mask_size_swapped: 4 of 4", r"size \[height, width\]"),
    "c16_panoptic": ("panoptic", "panoptic2detection"),
    "c16b_captions": ("captions", "instances file"),
    "c16c_image_info": ("'annotations'", "image_info"),
    "c16d_jsonl": ("line 2", "jsonl"),
    "c16e_gzip": ("gzip", "gunzip"),
    "c16f_labelme": ("LabelMe", "labelme2coco"),
    "c16h_keypoints_no_box": ("box_missing: 4 of 4 objects", "segmentation"),
    "c18e_heic_named_jpg": ("Image 2: .*2.jpg", "HEIC.*convert it to JPEG"),
    "c18f_lfs_pointer": ("Image 2: .*2.jpg", "git lfs pull"),
    "c26b_categories_names": ("category 'ant'", '"name": "person"'),
    "c26_categories_dict": ("'categories'", "another type, not like"),
    "c29b_bomb": ("Image 1: .*1.png", "tiles"),
    "c30_jpegs": ("Image 1: .*no_end_marker.jpg", "its end is missing"),
    "c35_other_keys": ("image 1", "'filename'"),
    "c40_tiny_masks": ("mask_empty: 2 of 3 masks, such as annotation 1", "more than a line"),
    "c36_no_category": ("annotation 1", "category_id"),
    "c37_sa1b": ("'images'", "SA-1B"),
    "c38_python_repr": ("printed by Python", "json.dump"),
    "c38b_trailing_comma": ("line 122", "comma"),
    "c38c_twice_encoded": ("encoded twice", "json.load"),
    "c39_hash_ids": ("17293822569102704641", "number the images"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name, tmp_path):
    with pytest.raises(UserError) as error:
        convert(name, tmp_path / "r")
    message = str(error.value)
    assert all(re.search(text, message) for text in REFUSED[name]), message
    assert "\n" not in message and "0x" not in message and len(message) < 600
    assert not list((tmp_path / "r").glob("*"))


# Other files that are given as a COCO json, by their beginning, and what the message names.
OTHER_FILES = {
    "voc": (b'<?xml version="1.0"?><annotation></annotation>', "XML", "export COCO json"),
    "csv": (b"image,x,y,w,h\na.jpg,1,2,3,4\n", "line 1", "column 1"),
    "yolo": (b"0 0.5 0.5 0.2 0.2\n", "not json", "line 1"),
    "zip": (b"PK\3\4" + bytes(9), "zip archive", "unpack it"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS", "git lfs pull"),
    "blank": (b" \n", "empty", "not json"),
    "results": (b'[{"image_id": 1, "category_id": 1}]', "list of annotations", "take the json"),
    "label studio": (b'[{"annotations": [], "data": {}}]', "a list", "export COCO json"),
    "datumaro": (b'{"items": [], "categories": {}}', "Datumaro", "export COCO json"),
    "cut": (b'{"images": [{"id": 1, "file_name": "a.j', "line 1", "cut off"),
    "cut between": (b'{"images": [{"id": 1}, ', "line 1", "cut off"),
    "python": (b"{'images': []}", "printed by Python", "json.dump"),
    "photo": (b"\xff\xd8\xff\xe0" + bytes(9), "not json", "byte 0"),
}


@pytest.mark.parametrize("name", OTHER_FILES)
def test_other_files_are_told_by_their_beginning(name, tmp_path):
    data, kind, remedy = OTHER_FILES[name]
    (tmp_path / "x.json").write_bytes(data)
    with pytest.raises(UserError) as error:
        instances.read(str(tmp_path / "x.json"))
    message = str(error.value)
    assert "x.json" in message and kind in message and remedy in message, message


def test_photos_that_were_cut_off_are_left_out_when_told(tmp_path):
    manifest = convert("c30_jpegs", tmp_path / "r", skip_bad_images=True)
    lost = {image for _, image in manifest.issues["image_corrupt"]["ids"]}
    names = {record.file_name for record in read_records(find_shards([str(tmp_path / "r")]))}
    assert len(lost) == 2 and not names & {"zero_tail.jpg", "no_end_marker.jpg"}


def test_records_of_before_that_hold_a_broken_download(tmp_path, caplog):
    """Training names file, record and image, or leaves the image out when told."""
    path, images = harness.case("c30_jpegs")
    content = json.loads(pathlib.Path(path).read_text())
    data = {i["id"]: pathlib.Path(images, i["file_name"]).read_bytes() for i in content["images"]}
    shard = str(tmp_path / "x.tfrecord")
    with tf.io.TFRecordWriter(shard) as writer:
        for number in (2, 4):  # rubbish_after.jpg, zero_tail.jpg
            item = ObjectRecord(np.array([12, 10, 32, 40.0]), 1, "ant", 600, False, number, None)
            record = ImageRecord(number, f"{number}.jpg", data[number], 192, 256, [item])
            writer.write(serialize_record(record))
    config = tiny.config(batch_size=1, mask_classes="none", mode="stage1_boxes")
    vocabulary = Vocabulary(("ant", "bee"), (1, 2))
    with pytest.raises(UserError) as error, reading_errors((shard,)):
        for _ in make_dataset((shard,), config, vocabulary, (), training=True, seed=0).take(2):
            pass
    cause = (
        r"x\.tfrecord.*record 1.*image 4.*4\.jpg: it cannot be decoded: its last \d+ bytes are z"
    )
    assert re.search(cause, str(error.value)), error.value
    config = config.replace(skip_corrupt_records=True)
    dataset = make_dataset((shard,), config, vocabulary, (), training=True, seed=0).take(3)
    assert [int(features["image_id"][0]) for features, _ in dataset] == [2, 2, 2]
    assert re.search("record 1, image 4: .*4.jpg", caplog.text)
    payloads = [payload.numpy() for payload in tf.data.TFRecordDataset(shard)]
    whole, broken = (verify_contents.examine(p, vocabulary.names).faults for p in payloads)
    assert not whole and "bytes are zeros" in broken[0]


@pytest.mark.parametrize(
    "name", ["e02_size_differs", "l02_label_size_swapped", "c27_size_swapped_rle"]
)
def test_evaluation_takes_the_size_of_the_file_as_records_do(name, tmp_path):
    manifest = convert(name, tmp_path / "r")
    path, _ = harness.case(name)
    sizes = index.image_sizes(find_shards([str(tmp_path / "r")]))
    truth = ground_truth.ground_truth_from_json(path, manifest.vocabulary, sizes)
    assert len(truth["annotations"]) == manifest.num_objects
    rles = [a["segmentation"] for a in truth["annotations"] if "segmentation" in a]
    assert len(rles) == manifest.num_masks
    assert {tuple(rle["size"]) for rle in rles} == set(sizes.values())


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("c01_cvat_iscrowd", "4 crowd.*--crowds=objects"),
        ("c06_normalised", "4 box_normalised.*multiply x"),
        ("c16h_keypoints_no_box", "4 box_missing.*give each annotation a bbox"),
    ],
)
def test_evaluation_without_an_object_is_refused(name, cause):
    path, _ = harness.case(name)
    with pytest.raises(UserError, match=f"no object to be found by a model: .*{cause}"):
        ground_truth.ground_truth_from_json(path, Vocabulary.load(path))


def test_evaluation_reads_odd_masks_as_records_do(tmp_path):
    path, _ = harness.case("l01_label_odd_masks")
    truth = ground_truth.ground_truth_from_json(path, Vocabulary.load(path))
    masks = {a["id"] for a in truth["annotations"] if "segmentation" in a}
    assert masks == {5, 6, 8, 9, 12, 10, 14}  # the last two lie beside their boxes, as given


@pytest.mark.parametrize("name", ["c01_cvat_iscrowd", "l04_label_all_crowd"])
def test_crowds_as_objects(name, tmp_path):
    manifest = convert(name, tmp_path / "r", crowds="objects")
    assert manifest.num_objects == manifest.num_masks > 0 and manifest.num_crowds == 0


def test_all_paths_wrong_is_no_success(tmp_path):
    path, _ = harness.case("c13_backslash")
    (tmp_path / "empty").mkdir()
    output = Output(str(tmp_path / "r"), "x", workers=1)
    with pytest.raises(UserError, match="image_missing: 2 of 2 images.*--images"):
        coco.convert(path, str(tmp_path / "empty"), output, skip_bad_images=True)


def test_deep_images_of_one_range(tmp_path):
    """One range for all keeps the images comparable."""
    _, images = harness.case("c18b_png16_12bit")
    convert("c18b_png16_12bit", tmp_path / "r", pixel_range=(0, 4095))
    record = next(read_records(find_shards([str(tmp_path / "r")])))
    values = np.asarray(Image.open(f"{images}/{record.file_name}"))
    pixels = decoding.to_array(record.encoded)[..., 0]
    assert np.abs(pixels - np.clip(values / 4095, 0, 1) * 255).max() <= 0.5
