"""Files of the kinds that people have, out of public bug reports: what becomes of each.

The kinds have tests of their own beside the code; here are the files as they are told of.
"""

import re

import numpy as np
import pytest
from PIL import Image

from maskx_tf.data import decoding
from maskx_tf.data.records.manifest import find_shards
from maskx_tf.data.records.schema import read_records
from maskx_tf.errors import UserError
from tests import harness
from tf_records import coco, verify
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
    "c14_lvis": (4, 4, 0, {}),
    "c15_roboflow_same_name": (4, 4, 0, {}),
    "c15c_case_and_blank": (4, 4, 0, {}),
    "c17_rotated_cvat": (4, 0, 0, {"box_rotated": 4}),
    "c18_tiff16": (4, 4, 0, {"image_range_changed": 2}),
    "c18b_png16_12bit": (4, 4, 0, {"image_range_changed": 2}),
    "c18d_webp_named_jpg": (4, 4, 0, {"image_reencoded": 1}),
    "c19_size_swapped": (4, 4, 0, {"image_size_differs": 2}),
    "c20_resized": (2, 2, 0, {"image_size_differs": 2, "box_outside_image": 2}),
    "c21_same_photo_twice": (4, 4, 0, {"image_repeated": 1}),
    "c22_iscrowd_text": (2, 2, 2, {"crowd": 2}),
    "c23_mask_off_box": (4, 4, 0, {"mask_cut_by_box": 4}),
    "c27_size_swapped_rle": (4, 4, 0, {"image_size_differs": 2}),
    "c28_exif_labelstudio": (
        4, 4, 0, {"image_rotation_unknown": 2, "image_boxes_rotated": 2, "box_clipped": 2}
    ),
    "c29_huge": (2, 2, 0, {}),
    "c32_multipage_tiff": (2, 2, 0, {"image_first_frame": 1, "image_reencoded": 1}),
    "c33_duplicates": (6, 4, 0, {"box_duplicate": 4}),
    "c34_hole_polygon": (1, 1, 0, {}),
    "c42_broken_exif": (10, 10, 0, {"image_rotation_unknown": 1}),
    "c42b_png_broken_exif": (1, 1, 0, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", CONVERTED)
def test_what_is_read(name, tmp_path, recwarn, capfd):
    objects, masks, crowds, reasons = CONVERTED[name]
    manifest = convert(name, tmp_path / "r")
    assert (manifest.num_objects, manifest.num_masks, manifest.num_crowds) == (
        objects, masks, crowds,
    )  # fmt: skip
    assert {reason: entry["count"] for reason, entry in manifest.issues.items()} == reasons
    assert verify.verify([str(tmp_path / "r")], workers=1).faults == []
    for record in read_records(find_shards([str(tmp_path / "r")])):
        pixels = decoding.to_array(record.encoded)
        if name not in ("c29_huge", "c32_multipage_tiff"):
            assert 10 < pixels.mean() < 245  # neither black nor white
        for item in record.objects:
            assert item.mask is None or item.mask.any()
    assert not [str(w.message) for w in recwarn.list if "PIL" in w.filename]
    assert "Corrupt" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("name", "warning"),
    [
        ("c07_xyxy", "x1, y1, x2, y2"),
        ("c23_mask_off_box", "shifted"),
        ("c20_resized", "resized"),
        ("c28_exif_labelstudio", "auto-orient"),
        ("c19_size_swapped", "another size"),
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
    "c26_categories_dict": ("'categories'", "another type, not like"),
    "c29b_bomb": ("Image 1: .*1.png", "tiles"),
    "c30_jpegs": ("Image 1: .*no_end_marker.jpg", "its end is missing"),
    "c35_other_keys": ("image 1", "'filename'"),
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


def test_photos_that_were_cut_off_are_left_out_when_told(tmp_path):
    manifest = convert("c30_jpegs", tmp_path / "r", skip_bad_images=True)
    lost = {image for _, image in manifest.issues["image_corrupt"]["ids"]}
    names = {record.file_name for record in read_records(find_shards([str(tmp_path / "r")]))}
    assert len(lost) == 2 and not names & {"zero_tail.jpg", "no_end_marker.jpg"}


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
