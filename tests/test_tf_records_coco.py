"""COCO json to records: every kind of dirt is repaired or dropped, counted and listed."""

import io
import json
import math
import pathlib

import numpy as np
import PIL.Image
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools import mask as mask_lib

from maskx_tf.data.coco import instances
from maskx_tf.data.coco import issues as issues_lib
from maskx_tf.data.coco import masks as coco_masks
from maskx_tf.data.coco.values import as_number, whole_number
from maskx_tf.data.records import manifest as manifest_lib
from maskx_tf.data.records import schema as records_lib
from maskx_tf.errors import UserError
from maskx_tf.ops import masks
from tests import awkward_images, harness
from tests.harness import annotation, polygon_of
from tf_records import coco, coco_objects, writer
from tf_records.coco_objects import Settings
from tf_records.output import Output

BOX = [10, 5, 20, 12]  # x, y, width, height in an image of 40 x 60


def convert(paths, directory, **options):
    output = Output(str(directory), "x", workers=1, most_dropped=1)
    return coco.convert(*paths, output, **options)


def converted(tmp_path, annotations, coco_options=None, **options):
    """(manifest, records) of a small data set."""
    paths = harness.write_coco(tmp_path / "coco", annotations, **coco_options or {})
    manifest = convert(paths, tmp_path / "records", **options)
    shards = manifest_lib.find_shards([str(tmp_path / "records")])
    return manifest, list(records_lib.read_records(shards))


def reasons(manifest):
    """reason -> ids; what is on disk says the same."""
    return {reason: entry["ids"] for reason, entry in manifest.issues.items()}


def only_object(tmp_path, item, **options):
    manifest, (record,) = converted(tmp_path, [item], **options)
    (found,) = record.objects
    return found, reasons(manifest)


def test_clean_annotation(tmp_path):
    found, issues = only_object(tmp_path, annotation(1, BOX, id=7, category_id=3, area=99.5))
    assert issues == {}
    np.testing.assert_allclose(found.box_yxyx, [5, 10, 17, 30], atol=1e-5)
    assert (found.class_id, found.class_name, found.annotation_id) == (3, "bird", 7)
    assert (found.area, found.is_crowd) == (99.5, False)
    assert found.mask.shape == (112, 112)
    assert found.mask.all()


@pytest.mark.parametrize(
    ("said", "source"),
    [("maskx_tf", "maskx_tf"), ("human", "human"), (None, "human"), ("", "human"), (3, "human"),
     ("\ud800", "human")],
)  # fmt: skip
def test_a_mask_has_the_source_that_its_annotation_names(tmp_path, said, source):
    items = [annotation(1, BOX, mask_source=said), annotation(1, BOX, segmentation=[])]
    manifest, (record,) = converted(tmp_path, items)
    assert [item.mask_source for item in record.objects] == [source, ""]
    assert manifest.mask_sources == {source: 1}


@pytest.mark.parametrize("said", [1, 0, 0.25, "0.5", None])
def test_a_mask_has_the_weight_of_its_annotation(tmp_path, said):
    items = [annotation(1, BOX, mask_weight=said), annotation(1, BOX, mask_weight=0.2)]
    items.append(annotation(1, BOX, mask_weight=0.2, segmentation=[]))
    manifest, (record,) = converted(tmp_path, items)
    weight = 1 if said is None else float(said)
    assert [item.mask_weight for item in record.objects] == [weight, np.float32(0.2), 1]
    assert manifest.weighted_masks == {"human": 1 + (weight != 1)}
    assert "mask_weight_invalid" not in manifest.issues


@pytest.mark.parametrize("said", [1.5, -0.1, math.nan, True, "much", [1]])
def test_a_weight_that_is_none_is_listed_and_taken_for_1(tmp_path, said):
    found, issues = only_object(tmp_path, annotation(1, BOX, id=7, mask_weight=said))
    assert found.mask_weight == 1
    assert issues == {"mask_weight_invalid": [[7, 1]]}


@pytest.mark.parametrize(
    ("bbox", "reason"),
    [
        ([math.nan, 0, 5, 5], "box_not_finite"),
        ([0, 0, math.inf, 5], "box_not_finite"),
        ([0, 0, 10**400, 5], "box_not_finite"),
        (["one", 0, 5, 5], "box_not_numeric"),
        ([0, 0.25, 0.5, 0.75], "box_normalised"),
        ([True, 0, 5, 5], "box_not_numeric"),
        ([0, 0, 5], "box_not_numeric"),
        ({"x": 1}, "box_not_numeric"),
        (None, "box_missing"),
        ([3, 3, 0, 5], "box_empty"),
        ([3, 3, 5, -5], "box_empty"),
        ([70, 3, 5, 5], "box_outside_image"),
        ([60, 3, 5, 5], "box_outside_image"),
    ],
)
def test_unusable_boxes_are_dropped_and_listed(tmp_path, bbox, reason):
    items = [annotation(1, bbox, id=41, segmentation=[]), annotation(1, BOX, id=42)]
    manifest, (record,) = converted(tmp_path, items)
    assert [item.annotation_id for item in record.objects] == [42]
    assert reasons(manifest) == {reason: [[41, 1]]}
    assert manifest.issues[reason]["effect"] == "dropped"


def test_a_thin_box_is_listed(tmp_path):
    items = [annotation(1, [9, 9, 0.2, 9]), annotation(1, [59.7, 3, 9, 9]), annotation(1, BOX)]
    manifest, (record,) = converted(tmp_path, items)
    assert len(record.objects) == 3
    assert reasons(manifest) == {"box_clipped": [[2, 1]], "box_thin": [[1, 1], [2, 1]]}


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (5, 5), (5.0, 5), ("5", 5), ("5.0", 5), (" -5 ", -5), ("5.", 5), (2**63 - 1, 2**63 - 1),
        (True, None), (5.5, None), ("5.5", None), ("a5", None), ("", None), (None, None),
        ([5], None), (math.nan, None), (2**63, None), ("9" * 19, None), (1e300, None),
        ("\u0665", None),
    ],
)  # fmt: skip
def test_ids_that_can_be_read_without_guessing(value, number):
    assert whole_number(value) == number


@pytest.mark.parametrize(
    ("value", "number"),
    [(5, 5), (0.5, 0.5), ("0.5", 0.5), (".5", 0.5), (" -5e1 ", -50), ("1_0", None), ("", None),
     ("nan", None), (True, None), (10**400, math.inf), ("0x10", None), ("5 %", None)],
)  # fmt: skip
def test_numbers_that_can_be_read_without_guessing(value, number):
    assert as_number(value) == number


def test_box_beyond_the_image_is_clipped(tmp_path):
    found, issues = only_object(tmp_path, annotation(1, [-5, 30, 15, 20]))
    np.testing.assert_allclose(found.box_yxyx, [30, 0, 40, 10], atol=1e-5)
    assert found.mask.shape == (112, 112)
    assert issues == {"box_clipped": [[1, 1]]}


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        ([[1, 2]], "mask_no_polygon"),
        ([[1, 2, 3, 4, 5]], "mask_no_polygon"),
        ([["a"] * 6], "mask_no_polygon"),
        ([[math.nan] * 6], "mask_no_polygon"),
        ([[1e9] * 6], "mask_no_polygon"),
        ([[10**400] * 6], "mask_no_polygon"),
        ([None], "mask_blank"),
        (["", []], "mask_blank"),
        (5, "mask_invalid"),
        (0, "mask_invalid"),
        ("text", "mask_invalid"),
        ({"counts": [1]}, "mask_size_differs"),
        ({"size": [40, 60], "counts": [5, 5]}, "mask_counts_invalid"),
        ({"size": [40, 60], "counts": [5, 10**9]}, "mask_counts_invalid"),
        ({"size": [40, 60], "counts": [-5, 2405]}, "mask_counts_invalid"),
        ({"size": [4, 6], "counts": [24]}, "mask_size_differs"),
        ({"size": [60, 40], "counts": [2400]}, "mask_size_swapped"),
        ({"size": [40, 60], "counts": "\u00ff~ zz"}, "mask_counts_invalid"),
        ({"size": [40, 60], "counts": "o" * 90}, "mask_counts_invalid"),
        ({"size": [40, 60], "counts": "\ud800"}, "mask_counts_invalid"),
        ({"size": [40, 60], "counts": "b'o"}, "mask_counts_invalid"),
        ({"size": [40, 60], "counts": [10**400]}, "mask_counts_invalid"),
        ({"size": [40, 60], "counts": ""}, "mask_counts_invalid"),
        ({"size": [40, 60], "counts": [2400]}, "mask_empty"),
    ],
)
def test_a_box_is_never_lost_because_its_mask_is_bad(tmp_path, segmentation, reason):
    found, issues = only_object(tmp_path, annotation(1, BOX, segmentation=segmentation, area=3))
    assert found.mask is None
    assert issues == {reason: [[1, 1]]}


SQUARE = polygon_of(*BOX)
FULL_RLE = masks.encode_rle(np.pad(np.ones([12, 20], np.uint8), ((5, 23), (10, 30))))


@pytest.mark.parametrize(
    "segmentation",
    [
        SQUARE[0],  # without the outer list
        [SQUARE],  # with one more
        [[x, y] for x, y in np.reshape(SQUARE[0], (-1, 2)).tolist()],
        [[[x, y] for x, y in np.reshape(SQUARE[0], (-1, 2)).tolist()]],
        [[str(value) for value in SQUARE[0]]],
        json.dumps(SQUARE),
        FULL_RLE,
        [FULL_RLE],
        json.dumps(FULL_RLE),
        FULL_RLE | {"counts": str(FULL_RLE["counts"].encode())},
        FULL_RLE | {"size": [40.0, "60"]},
    ],
)
def test_masks_that_can_be_read_without_guessing(tmp_path, segmentation):
    found, issues = only_object(tmp_path, annotation(1, BOX, segmentation=segmentation))
    assert issues == {}
    assert found.mask.all()


@pytest.mark.parametrize("segmentation", [SQUARE, FULL_RLE])
@pytest.mark.parametrize("bbox", [None, [], [0, 0, 0, 0], [None] * 4, [math.nan] * 4])
def test_a_mask_gives_its_box(tmp_path, segmentation, bbox):
    found, issues = only_object(tmp_path, annotation(1, bbox, segmentation=segmentation))
    np.testing.assert_allclose(found.box_yxyx, [5, 10, 17, 30], atol=1e-5)
    assert found.mask.all()
    assert issues == {"box_of_mask": [[1, 1]]}


@pytest.mark.parametrize("runs", [[205, 1], [205, 90, 5], [0, 2400], [39, 2], [2399, 1]])
def test_bounds_of_runs(runs):
    runs = [*runs, 2400 - sum(runs)]
    segmentation = coco_masks.read_segmentation({"size": [40, 60], "counts": runs}, [(40, 60)])
    mask = masks.decode_rle(masks.segmentation_to_rle({"size": [40, 60], "counts": runs}, 40, 60))
    rows, columns = np.nonzero(mask)
    wanted = [rows.min(), columns.min(), rows.max() + 1, columns.max() + 1]
    assert segmentation.bounds().tolist() == wanted
    assert masks.decode_rle(segmentation.rle((40, 60))).tolist() == mask.tolist()
    assert not masks.decode_rle(segmentation.rle((50, 70)))[40:].any()


@pytest.mark.parametrize(
    ("bbox", "reason"),
    [
        ([10, 5, 30, 17], "box_is_corners"),  # x1, y1, x2, y2
        ([16, 5, 20, 12], "mask_cut_by_box"),
        ([10, 9, 20, 8], "mask_cut_by_box"),
        ([12, 5, 18, 12], None),  # as much as annotators are off
        ([8, 3, 40, 30], None),
    ],
)
def test_a_mask_that_leaves_its_box_is_listed(tmp_path, bbox, reason):
    _, issues = only_object(tmp_path, annotation(1, bbox, segmentation=SQUARE))
    assert issues == ({reason: [[1, 1]]} if reason else {})


def test_a_mask_beside_its_box(tmp_path):
    item = annotation(1, BOX, segmentation=polygon_of(40, 30, 5, 5))
    found, issues = only_object(tmp_path, item)
    assert found.mask is None
    assert set(issues) == {"mask_empty", "mask_cut_by_box"}


@pytest.mark.parametrize("value", [1, True, 1.0, "1", "true"])
def test_what_is_a_crowd(tmp_path, value):
    found, issues = only_object(tmp_path, annotation(1, BOX, iscrowd=value))
    assert found.is_crowd and issues == {"crowd": [[1, 1]]}
    found, issues = only_object(tmp_path / "o", annotation(1, BOX, iscrowd=value), crowds="objects")
    assert not found.is_crowd and issues == {}


@pytest.mark.parametrize("value", [0, None, "0", False, 2, "?", [1]])
def test_what_is_no_crowd(tmp_path, value):
    found, issues = only_object(tmp_path, annotation(1, BOX, iscrowd=value))
    assert not found.is_crowd
    assert set(issues) == (set() if value in (0, None, "0") else {"iscrowd_invalid"})


def test_rotated_boxes_are_listed(tmp_path):
    _, issues = only_object(tmp_path, annotation(1, BOX, attributes={"rotation": 30.5}))
    assert issues == {"box_rotated": [[1, 1]]}


@pytest.mark.parametrize("segmentation", [None, [], {}, "", [[]], [[], []]])
def test_boxes_without_segmentation_are_nothing_special(tmp_path, segmentation):
    found, issues = only_object(tmp_path, annotation(1, BOX, segmentation=segmentation))
    assert found.mask is None
    assert found.area == 240  # of the box
    assert issues == {}


def test_valid_polygons_are_kept_beside_invalid_ones(tmp_path):
    polygons = [*polygon_of(10, 5, 10, 12), [1, 2]]
    found, issues = only_object(tmp_path, annotation(1, BOX, segmentation=polygons))
    assert found.mask[:, :56].all()
    assert not found.mask[:, 56:].any()
    assert issues == {"mask_part_invalid": [[1, 1]]}
    flat = polygon_of(*BOX)[0]
    found, issues = only_object(tmp_path / "flat", annotation(1, BOX, segmentation=flat))
    assert found.mask.all()
    assert issues == {}


@pytest.mark.parametrize("compressed", [False, True])
def test_crowd_rle(tmp_path, compressed):
    full = np.zeros([40, 60], np.uint8)
    full[5:17, 10:20] = 1
    encoded = mask_lib.encode(np.asfortranarray(full))
    counts = encoded["counts"].decode()
    if not compressed:
        runs = np.flatnonzero(np.diff(full.T.ravel(), prepend=0, append=2))
        counts = np.diff(runs, prepend=0).tolist()
    rle = {"size": [40, 60], "counts": counts}
    found, issues = only_object(tmp_path, annotation(1, BOX, segmentation=rle, iscrowd=1))
    assert found.is_crowd
    np.testing.assert_array_equal(found.mask, full[5:17, 10:30])
    assert issues == {"crowd": [[1, 1]]}


@pytest.mark.parametrize("area", ["x", math.nan, -1, 1e40])
def test_area_is_computed_where_it_is_invalid(tmp_path, area):
    half = polygon_of(10, 5, 10, 12)
    item = annotation(1, BOX, segmentation=half, area=area)
    found, issues = only_object(tmp_path, item)
    assert found.area == 120
    assert issues == {"area_invalid": [[1, 1]]}


def test_ids_become_unique(tmp_path):
    items = [
        annotation(1, BOX, id=5),
        annotation(1, BOX, id=5),
        annotation(1, [0, 0, 9, 9], id=5),
        annotation(1, BOX, id=None),
        annotation(1, BOX, id="x"),
    ]
    manifest, (record,) = converted(tmp_path, items)
    assert [item.annotation_id for item in record.objects] == [5, 6, 7, 8]
    assert reasons(manifest) == {
        "annotation_id_duplicate": [[5, 1]],
        "annotation_id_missing": [[None, 1], [None, 1]],
        "annotation_repeated": [[5, 1]],
        "box_duplicate": [[7, 1], [8, 1]],
    }


def test_annotations_of_no_image(tmp_path):
    items = [
        annotation(9, BOX),
        annotation(None, BOX),
        "text",
        annotation("one", BOX),
        annotation("1", BOX),
        annotation(1.0, [1, 2, 9, 9]),
    ]
    manifest, (record,) = converted(tmp_path, items)
    assert len(record.objects) == 2
    assert reasons(manifest) == {
        "annotation_malformed": [[2, None], [None, None], [4, None]],
        "annotation_of_unknown_image": [[1, 9]],
    }
    text = writer.describe(manifest, "d")
    assert "3 dropped: the annotation is not" in text
    assert "(annotation_of_unknown_image: annotation 1, image 9)" in text


@pytest.mark.parametrize("category", [99, None, "one", True])
def test_unknown_category_ends_the_run(tmp_path, category):
    items = [annotation(1, BOX), annotation(1, BOX, id=77, category_id=category)]
    with pytest.raises(UserError, match=rf"annotation 77 has category_id {category!r}, which is"):
        converted(tmp_path, items)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "it is empty"),
        ("{", "is not json"),
        ("[" * 100_000, "is not json"),
        ("[]", "its top level is not an object"),
        ("{}", "has no list 'images'"),
        ('{"images": {}}', "has no list 'images'"),
        ('{"images": [], "annotations": []}', "has no list 'categories'"),
        ('{"images": [], "annotations": [], "categories": []}', "holds no list of categories"),
        ("\x1f\x8b\x08", "gunzip"),
        ("<html>", "HTML"),
        ("{'images': []}", "json.dump"),
        ('"{\\"images\\": []}"', "encoded twice"),
        ('{"image": 1}\n{"image": 2}', "jsonl"),
        ('{"images": [], "annotations": [],}', "comma before a closing bracket"),
        ('{"shapes": [], "imagePath": "1.jpg"}', "LabelMe"),
        ('{"images": [], "categories": []}', "image_info"),
        ('{"image": {}, "annotations": []}', "SA-1B"),
    ],
)
def test_what_is_no_coco_json(tmp_path, content, message):
    path = tmp_path / "x.json"
    path.write_bytes(content.encode("latin1"))
    with pytest.raises(UserError, match=message) as error:
        convert((str(path), str(tmp_path)), tmp_path / "records")
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "has no images"),
        (["x"], r"images\[0\] has no integer id"),
        (
            [{"id": "a1", "file_name": "1.jpg"}],
            r"images\[0\] has the id 'a1', .* number",
        ),
        ([{"id": 2**64, "file_name": "1.jpg"}], r"has the id 18446744073709551616"),
        ([{"file_name": "1.jpg"}], r"images\[0\] has no integer id"),
        ([{"id": 1}], "image 1 has no file_name"),
        ([{"id": 1, "file_name": 3}], "image 1 has no file_name"),
        ([{"id": 1, "file_name": "1.jpg"}] * 2, "two images have the id 1"),
    ],
)
def test_malformed_images(tmp_path, images, message):
    with pytest.raises(UserError, match=message):
        converted(tmp_path, [], {"images": images})


def test_absent_inputs(tmp_path):
    with pytest.raises(UserError, match=r"--annotations=.*x\.json cannot be read"):
        convert((str(tmp_path / "x.json"), str(tmp_path)), tmp_path / "records")
    with pytest.raises(UserError, match=r"--images=.*nowhere is not a directory"):
        convert(("x.json", str(tmp_path / "nowhere")), tmp_path / "records")
    with pytest.raises(UserError, match="--mask_size=-1"):
        convert(("x.json", str(tmp_path)), tmp_path / "records", mask_size=-1)


@pytest.mark.parametrize(
    ("damage", "reason", "message"),
    [
        (lambda path: path.unlink(), "image_missing", "1 of 2 image files are missing"),
        (lambda path: path.write_bytes(b""), "image_corrupt", "is empty"),
        (lambda path: path.write_bytes(b"no image"), "image_corrupt", "no image"),
        (
            lambda path: path.write_bytes(path.read_bytes()[:-200]),
            "image_corrupt",
            "its end is missing",
        ),
    ],
)
def test_bad_image_files(tmp_path, damage, reason, message):
    items = [annotation(1, BOX), annotation(2, BOX), annotation(2, BOX)]
    paths = harness.write_coco(tmp_path / "coco", items, sizes=[(40, 60)] * 2)
    damage(pathlib.Path(paths[1]) / "2.jpg")
    with pytest.raises(UserError, match=message) as error:
        convert(paths, tmp_path / "records")
    assert "2.jpg" in str(error.value)
    assert "--skip_bad_images" in str(error.value)
    manifest = convert(paths, tmp_path / "records", skip_bad_images=True)
    assert manifest.num_images == manifest.num_objects == 1
    lost = {reason: [[None, 2]], "annotation_of_dropped_image": [[2, 2], [3, 2]]}
    assert reasons(manifest) == lost


def converted_file(tmp_path, data, size=(40, 60)):
    image = {"id": 1, "file_name": "1.jpg", "height": size[0], "width": size[1]}
    paths = harness.write_coco(tmp_path / "coco", [annotation(1, BOX)], images=[image])
    (pathlib.Path(paths[1]) / "1.jpg").write_bytes(data)
    manifest = convert(paths, tmp_path / "records")
    shards = manifest_lib.find_shards([str(tmp_path / "records")])
    (record,) = records_lib.read_records(shards)
    return record, reasons(manifest)


@pytest.mark.parametrize("extension", [".jpg", ".png"])
@pytest.mark.parametrize("grey", [False, True])
def test_original_bytes_are_kept(tmp_path, extension, grey):
    image = harness.random_image(40, 60)
    data = harness.encode_image(image[..., 0] if grey else image, extension)
    record, issues = converted_file(tmp_path, data)
    assert record.encoded == data
    assert issues == {}


@pytest.mark.parametrize(
    ("name", "reasons"),
    [
        ("bmp", ["image_reencoded"]),
        ("animated gif", ["image_first_frame", "image_reencoded"]),
        ("12 bit tiff", ["image_range_changed"]),
    ],
)
def test_other_images_are_stored_as_png(tmp_path, name, reasons):
    record, issues = converted_file(tmp_path, awkward_images.convertible()[name])
    stored = PIL.Image.open(io.BytesIO(record.encoded))
    assert (stored.format, stored.size) == ("PNG", (56, 40))
    assert issues == {key: [[None, 1]] for key in [*reasons, "image_size_differs"]}


def test_pixel_range_of_the_command(tmp_path):
    assert coco._pixel_range([]) is None
    assert coco._pixel_range(["0", "4095"]) == (0, 4095)
    for values in (["5"], ["5", "5"], ["a", "b"], ["0", "nan"], ["0", "inf"], ["1", "2", "3"]):
        with pytest.raises(UserError, match=f"--pixel_range={','.join(values)} must be LOW,HIGH"):
            coco._pixel_range(values)
    values = np.full([40, 60], 819, np.uint16)
    paths = harness.write_coco(tmp_path / "coco", [annotation(1, BOX)])
    (pathlib.Path(paths[1]) / "1.jpg").write_bytes(harness.image_file(values))
    manifest = convert(paths, tmp_path / "records", pixel_range=(0, 4095))
    assert manifest.source["pixel_range"] == [0, 4095]
    (record,) = records_lib.read_records(manifest_lib.find_shards([str(tmp_path / "records")]))
    assert (np.asarray(PIL.Image.open(io.BytesIO(record.encoded))) == 51).all()


def test_size_of_the_file_counts(tmp_path):
    record, issues = converted_file(tmp_path, harness.encode_image(harness.random_image(12, 25)))
    assert (record.height, record.width) == (12, 25)
    np.testing.assert_allclose(record.objects[0].box_yxyx, [5, 10, 12, 25], atol=1e-5)
    assert set(issues) == {"image_size_differs", "box_clipped"}


def photo(orientation, height=40):
    """A JPEG of 60 pixels width with an EXIF orientation."""
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    return harness.image_file(harness.random_image(height, 60), "JPEG", exif=exif)


def test_exif_rotation_is_applied_only_where_the_json_wants_it(tmp_path):
    record, issues = converted_file(tmp_path / "a", photo(6))  # to be turned clockwise
    assert (record.height, record.width) == (40, 60)
    assert issues == {"image_rotation_unknown": [[None, 1]]}
    for size in ((60, 40), (60.0, 40.0)):
        record, issues = converted_file(tmp_path / f"b{size}", photo(6), size)
        assert (record.height, record.width) == (60, 40)
        assert issues == {"image_rotated": [[None, 1]]}


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (photo(3), (40, 60)),
        (photo(2), (40, 60)),
        (photo(6, 60), (60, 60)),
        (photo(6), (None, None)),
    ],
)
def test_exif_rotations_that_the_size_does_not_tell_are_listed(tmp_path, data, size):
    record, issues = converted_file(tmp_path, data, size)
    assert record.encoded == data
    assert issues == {"image_rotation_unknown": [[None, 1]]}


RUNS = {"size": [40, 60], "counts": [0, 40 * 60]}  # all of the image


@pytest.mark.parametrize(
    ("segmentation", "mask_size", "shape"),
    [
        (polygon_of(*BOX), 112, (112, 112)),
        (polygon_of(*BOX), 8, (8, 8)),
        (polygon_of(*BOX), 0, (112, 112)),
        (RUNS, 112, (12, 20)),
        (RUNS, 8, (8, 8)),
        (RUNS, 0, (12, 20)),
    ],
)
def test_mask_size(tmp_path, segmentation, mask_size, shape):
    item = annotation(1, BOX, segmentation=segmentation)
    found, _ = only_object(tmp_path, item, mask_size=mask_size)
    assert found.mask.shape == shape


def test_the_mask_of_a_small_polygon_pastes_to_the_pixels_that_coco_draws():
    """Drawn at a cell a pixel, beside the grid of the image, the mean IoU is 0.92."""
    rng = np.random.default_rng(0)
    ious = []
    for _ in range(20):
        angles = np.arange(14) / 14 * 2 * np.pi
        radii = rng.uniform(3, 7, 14)[:, None]
        points = rng.uniform(15, 25, 2) + radii * np.stack([np.cos(angles), np.sin(angles)], -1)
        polygon = points.ravel().tolist()
        box = np.concatenate([points.min(0)[::-1], points.max(0)[::-1]])
        mask, _ = coco_masks.read_segmentation([polygon], [(40, 60)]).crop(box, 112)
        found = masks.paste_mask(mask, box, 40, 60)
        wanted = masks.decode_rle(masks.segmentation_to_rle([polygon], 40, 60))
        ious.append((found & wanted).sum() / (found | wanted).sum())
    assert np.mean(ious) > 0.96


def test_polygon_crop_equals_full_rasterisation():
    star = [30, 5, 34, 16, 46, 17, 36, 24, 40, 36, 30, 28, 20, 36, 24, 24, 14, 17, 26, 16]
    full = mask_lib.decode(mask_lib.merge(mask_lib.frPyObjects([star], 40, 60)))
    box = np.array([5, 14, 36, 46], np.float64)
    found, incomplete = coco_masks.read_segmentation([star], [(40, 60)]).crop(box, 0)
    assert not incomplete
    assert np.mean(masks.paste_mask(found, box, 40, 60) != full) < 0.01


def test_sampling_of_a_full_mask():
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 2, [6, 7]).astype(np.uint8)
    full = np.kron(coarse, np.ones([8, 8], np.uint8))  # [48, 56]
    whole = np.array([0.0, 0.0, 48.0, 56.0])
    np.testing.assert_array_equal(coco_masks.sample(full, whole, (48, 56)), full)
    np.testing.assert_array_equal(coco_masks.sample(full, whole, (6, 7)), coarse)
    part = np.array([8.4, 16.0, 24.4, 40.0])  # cells of a pixel, 0.4 pixels lower
    found = coco_masks.sample(full, part, (16, 24))
    np.testing.assert_array_equal(found, full[8:24, 16:40])


def test_coco_excerpt(tmp_path):
    paths = harness.coco_mini("val")
    manifest = convert(paths, tmp_path / "records")
    assert (manifest.num_images, manifest.num_objects, manifest.num_masks) == (79, 619, 619)
    assert manifest.num_crowds == 5
    assert manifest.vocabulary.num_classes == 80
    assert list(manifest.issues) == ["crowd"]
    by_id = {item["id"]: item for item in json.loads(pathlib.Path(paths[0]).read_text())["images"]}
    shards = manifest_lib.find_shards([str(tmp_path / "records")])
    for record in records_lib.read_records(shards):
        assert record.file_name == by_id[record.image_id]["file_name"]
        for item in record.objects:
            height, width = item.box_yxyx[2:] - item.box_yxyx[:2]
            if item.area > 400 and not item.is_crowd:
                assert item.mask.mean() * height * width == pytest.approx(item.area, rel=0.1)


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text("01PQo{}~", max_size=6)
    | st.sampled_from([40, 60, [40, 60], "counts", 10**400]),
    lambda inner: (
        st.lists(inner, max_size=8)
        | st.dictionaries(st.sampled_from(["size", "counts"]), inner, max_size=2)
    ),
    max_leaves=12,
)


@pytest.mark.parametrize(
    "name",
    [
        "photos\\\\1.jpg",
        "photos/1.jpg",
        "/home/somebody/photos/1.jpg",
        "C:\\\\photos\\\\1.jpg",
        "http://example.org/photos/1.jpg?size=9",
        "1.JPG",
        "%31.jpg",
        "/data/local-files/?d=photos%2F1.jpg",
        "/data/upload/3/0a1b2c3d-1.jpg",
        "file:///home/somebody/1.jpg",
    ],
)
def test_likely_spellings_of_file_names(tmp_path, name):
    image = {"id": 1, "file_name": json.loads(f'"{name}"'), "height": 40, "width": 60}
    manifest, (record,) = converted(tmp_path, [annotation(1, BOX)], {"images": [image]})
    assert record.file_name == image["file_name"] and len(record.objects) == 1
    assert reasons(manifest) == {"image_name_differs": [[None, 1]]}


def test_accents_of_one_or_two_codes(tmp_path):
    paths = harness.write_coco(
        tmp_path / "coco", [annotation(1, BOX)], images=[{"id": 1, "file_name": "caf\u00e9.jpg"}]
    )
    pathlib.Path(paths[1], "1.jpg").rename(pathlib.Path(paths[1], "cafe\u0301.jpg"))
    manifest = convert(paths, tmp_path / "records")
    assert manifest.num_objects == 1 and reasons(manifest) == {"image_name_differs": [[None, 1]]}


@pytest.mark.parametrize("orientation", [3, 5, 6, 7, 8])
@pytest.mark.parametrize(
    ("box", "fits"),
    [([2, 3, 30, 30], "both"), ([30, 3, 29, 9], "stored"), ([3, 30, 9, 29], "turned")],
)
@pytest.mark.parametrize("said", ["stored", "turned", "nothing"])
def test_boxes_tell_which_way_up_they_were_drawn(tmp_path, orientation, box, fits, said):
    size = {"stored": (40, 60), "turned": (60, 40), "nothing": (None, None)}[said]
    image = {"id": 1, "file_name": "1.jpg", "height": size[0], "width": size[1]}
    paths = harness.write_coco(tmp_path / "coco", [annotation(1, box)], images=[image])
    pathlib.Path(paths[1], "1.jpg").write_bytes(photo(orientation))
    found = reasons(convert(paths, tmp_path / "records")).keys()
    is_turned = said == "turned" and orientation != 3
    assert ("image_rotated" in found) == is_turned
    assert ("image_rotation_unknown" in found) == (not is_turned)
    may_be_turned = orientation != 3 and not is_turned
    assert ("image_boxes_rotated" in found) == (may_be_turned and fits == "turned")


def test_the_same_photo_under_two_names_is_listed(tmp_path):
    paths = harness.write_coco(
        tmp_path / "coco", [annotation(i, BOX) for i in (1, 2, 3)], sizes=[(40, 60)] * 3
    )
    photos = pathlib.Path(paths[1])
    (photos / "3.jpg").write_bytes((photos / "1.jpg").read_bytes())
    assert reasons(convert(paths, tmp_path / "records")) == {"image_repeated": [[None, 3]]}


def test_a_file_of_two_spellings_is_not_guessed(tmp_path):
    names = ["train/1.jpg", "val/1.jpg"]
    images = [{"id": i, "file_name": name} for i, name in enumerate(names)]
    with pytest.raises(UserError, match=r"2 of 2 image files are missing.*train/1.jpg"):
        converted(tmp_path, [], {"images": images})


def test_lvis_names_its_photos_by_url(tmp_path):
    image = {"id": 1, "coco_url": "http://images.example.org/train2017/1.jpg"}
    _, (record,) = converted(tmp_path, [annotation(1, BOX)], {"images": [image]})
    assert record.file_name == "train2017/1.jpg"


def test_a_doubled_category_without_annotations_is_left_out(tmp_path, caplog):
    categories = [{"id": 0, "name": "cat"}, {"id": "1", "name": "cat"}, {"id": 2, "name": "Cat "}]
    manifest, _ = converted(tmp_path, [annotation(1, BOX)], {"categories": categories})
    assert manifest.vocabulary.external_ids == (1, 2)
    first, second = [entry.getMessage() for entry in caplog.records]
    assert "category 0 of the name 'cat'" in first
    assert "'cat', 'Cat' are different classes" in second
    items = [annotation(1, BOX, category_id=0), annotation(1, BOX)]
    with pytest.raises(UserError, match="the categories 0, 1 are all named 'cat'"):
        converted(tmp_path / "b", items, {"categories": categories})


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    changes=st.dictionaries(
        st.sampled_from(
            ["id", "image_id", "category_id", "bbox", "segmentation", "area", "iscrowd"]
        ),
        JSON_VALUES,
    ),
    polygon=st.lists(st.floats(-600, 600), min_size=6, max_size=12),
)
def test_no_json_ends_in_a_traceback(tmp_path_factory, changes, polygon):
    """Any json values in any field: a user error, or a record that can be read back."""
    directory = tmp_path_factory.mktemp("fuzz")
    items = [annotation(1, BOX, segmentation=[polygon]) | changes, annotation(1, BOX)]
    path, images = harness.write_coco(directory, items)
    try:
        content = instances.read(path)
    except UserError:
        return
    options = Settings(images, {1: (1, "cat"), 2: (2, "dog"), 3: (3, "bird")}, 112, False)
    encoded = coco_objects.encode_image(content.items[0], options)
    record = records_lib.from_example(encoded.example)
    assert 1 <= len(record.objects) <= 2
    issues_lib.summary(issues_lib.tabulate([*content.issues, *encoded.issues]))


def test_command_line(run_command, tmp_path):
    paths = harness.write_coco(tmp_path, [annotation(1, BOX), annotation(1, [70, 0, 1, 1])])
    directory = str(tmp_path / "records")
    flags = [f"--annotations={paths[0]}", f"--images={paths[1]}", f"--output_dir={directory}"]
    done = run_command("tf_records.coco", *flags)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].startswith(f"{directory}: 1 images, 1 objects, 1 with mask")
    assert "1 dropped: nothing of the box lies in the image" in done.stdout
    again = run_command("tf_records.coco", *flags)
    assert (again.returncode, again.stdout) == (2, "")
    (line,) = again.stderr.splitlines()
    assert line.startswith(f"error: {directory} holds finished records; add --reuse")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": [{"id": 1, "file_name": "\ud800.jpg"}]}, r"file_name '\\ud800.jpg' of image 1"),
        ({"images": [{"id": 1, "file_name": "a\0b"}]}, r"file_name 'a\\x00b' of image 1"),
        ({"categories": [{"id": 1, "name": "\ud800"}]}, r"category .*'\\ud800'.* valid characters"),
        ({"categories": [{"id": 2**63, "name": "x"}]}, "category .* 64 bits"),
        ({"categories": {"1": "x"}}, "has no list 'categories'"),
        ({"categories": ["x"]}, "category 'x' must be like"),
        ({"images": [{"id": 1, "file_name": "x" * 300}]}, "1 of 1 image files are missing"),
        ({"images": [{"id": 1, "file_name": "a\nb"}]}, r"'.*a\\nb' \(image 1\)"),
    ],
)
def test_names_that_no_file_or_class_can_have(tmp_path, changes, message):
    with pytest.raises(UserError, match=message) as error:
        converted(tmp_path, [], changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", [{"height": -40}, {"width": 60.5}, {"height": "x"}, {"width": 0}])
def test_sizes_that_are_none_are_listed(tmp_path, size):
    image = {"id": 1, "file_name": "1.jpg", "height": 40, "width": 60} | size
    manifest, (record,) = converted(tmp_path, [annotation(1, BOX)], {"images": [image]})
    assert (record.height, record.width) == (40, 60)
    assert record.objects[0].mask.all()
    assert "image_size_invalid" in reasons(manifest)


def test_new_ids_fit_64_bits(tmp_path):
    items = [
        annotation(1, BOX, id=2**63 - 1),
        annotation(1, BOX, id=None),
        annotation(1, BOX, id=1),
    ]
    _, (record,) = converted(tmp_path, items)
    assert [item.annotation_id for item in record.objects] == [2**63 - 1, 2, 1]
