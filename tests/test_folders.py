"""Folders of labelling tools and other trainers: recognised, read by COCO's rules, written."""

import json

import numpy as np
import PIL.Image
import pytest

from maskx_tf.data.records import manifest as manifest_lib
from maskx_tf.data.records import schema
from maskx_tf.errors import UserError
from maskx_tf.labeling.formats import cvat as cvat_writer
from maskx_tf.labeling.formats.label_studio import brush_rle
from maskx_tf.ops import masks as mask_ops
from tests import commands, folder_formats, harness
from tests.folder_formats import NAMES, SIDE
from tf_records import folder as command
from tf_records.folders import brush, cvat, label_studio, voc, xml_file, yolo
from tf_records.folders.labels import LabelledImage, Split, to_coco

BOX = "0 0.5 0.5 0.25 0.25\n"
POLYGON = "1 0.25 0.25 0.75 0.25 0.75 0.5\n"


def convert(folder, output, *options):
    options = ("--mask_size=28", "--workers=1", *options)
    return commands.in_process("tf_records.folder", str(folder), f"--output_dir={output}", *options)


@pytest.mark.parametrize("counts", [(38, 17), pytest.param((502, 236), marks=pytest.mark.thorough)])
def test_records_of_one_data_set_in_five_formats_are_equal_to_the_byte(tmp_path, counts):
    images = folder_formats.data_set(*counts)
    shards = set()
    for name, write in folder_formats.WRITERS.items():
        write(tmp_path / name, images)
        output = tmp_path / f"{name} records"
        result = convert(tmp_path / name, output)
        assert result.returncode == 0, (name, result.stderr)
        assert f": {name} (" in result.stdout
        assert "Nothing was dropped" in result.stdout
        (path,) = output.rglob("manifest.json")
        manifest = manifest_lib.Manifest.load(path.parent)
        assert (manifest.num_objects, manifest.num_masks) == counts, name
        (shard,) = output.rglob("*.tfrecord")
        shards.add(shard.read_bytes())
    assert len(shards) == 1


def yolo_folder(
    directory, labels, yaml="train: images/train\nval: images/val\nnames: [cat, dog]\n"
):
    """A folder with a label file, or none, for each (split, text)."""
    for number, (split, text) in enumerate(labels):
        images, files = directory / "images" / split, directory / "labels" / split
        for path in (images, files):
            path.mkdir(parents=True, exist_ok=True)
        (images / f"{number}.png").write_bytes(
            harness.encode_image(harness.random_image(40, 80), ".png")
        )
        if text is not None:
            (files / f"{number}.txt").write_bytes(text.encode())
    (directory / "data.yaml").write_text(yaml)
    return directory


def reasons(split):
    losses = [*split.losses, *(loss for item in split.items for loss in item.losses)]
    return {loss.place: loss.reason for loss in losses}


def test_yolo_boxes_and_polygons_in_one_file_beside_images_without_objects(tmp_path):
    labels = [
        ("train", BOX + POLYGON),
        ("train", ""),
        ("train", None),
        ("val", "1 0.5 0.5 1 1 0.9"),
    ]
    folder = yolo.read(yolo_folder(tmp_path, labels))
    assert folder.names == ("cat", "dog")
    assert [len(item.objects) for item in folder.splits["train"].items] == [2, 0, 0]
    box, polygon = folder.splits["train"].items[0].objects
    assert (box.class_name, box.bbox, box.segmentation) == ("cat", [30.0, 15.0, 20.0, 10.0], None)
    assert (polygon.class_name, polygon.bbox) == ("dog", [20.0, 10.0, 40.0, 10.0])
    assert polygon.segmentation == [[20.0, 10.0, 60.0, 10.0, 60.0, 20.0]]
    (scored,) = folder.splits["val"].items[0].objects  # a confidence after the box
    assert scored.bbox == [0.0, 0.0, 80.0, 40.0]


@pytest.mark.parametrize(
    ("names", "ids"),
    [
        (("000012.jpg", "7.png"), [12, 7]),
        (("12.jpg", "x/012.png"), [1, 2]),
        (("a.jpg", "7.png"), [1, 2]),
    ],
)
def test_images_are_numbered_by_their_names_if_these_are_numbers(tmp_path, names, ids):
    split = Split(tmp_path, [LabelledImage(name) for name in names])
    content, _ = to_coco(split, ("cat",))
    found = {image["file_name"]: image["id"] for image in content["images"]}
    assert found == dict(zip(sorted(names), sorted(ids) if ids == [1, 2] else ids, strict=True))


def test_yolo_losses_have_cause_and_place(tmp_path):
    text = "7 0.5 0.5 0.1 0.1\n0 40 20 10 10\n0 0.5 0.5 0.1\nx 0.5 0.5 0.1 0.1\n\n" + BOX
    directory = yolo_folder(tmp_path, [("train", text), ("val", BOX)])
    (directory / "labels/train/gone.txt").write_text(BOX)
    (directory / "labels/train/classes.txt").write_text("cat\ndog\n")
    train = yolo.read(directory).splits["train"]
    assert reasons(train) == {
        "labels/train/0.txt:1": "label_class_unknown",
        "labels/train/0.txt:2": "label_not_normalised",
        "labels/train/0.txt:3": "label_malformed",
        "labels/train/0.txt:4": "label_malformed",
        "labels/train/gone.txt:1": "label_without_image",
    }
    assert len(train.items[0].objects) == 1
    content, issues = to_coco(train, ("cat", "dog"))
    assert {issue.annotation_id for issue in issues} == {loss["id"] for loss in content["losses"]}


@pytest.mark.parametrize(
    "yaml",
    [
        "train: ../train/images\nval: ../valid/images\nnc: 2\nnames: ['cat', 'dog']\n",
        "path: ../datasets/mine\ntrain: images/train\nval: [images/val]\nnames: {0: cat, 1: dog}\n",
        "train: train.txt\nval: images/val\nnames:\n- cat\n- dog\n",
    ],
)
def test_yolo_places_of_images_as_people_write_them(tmp_path, yaml):
    directory = yolo_folder(tmp_path, [("train", BOX), ("val", BOX)], yaml)
    (directory / "train.txt").write_text("./images/train/0.png\n")
    if "valid" in yaml:
        for split, name in (("train", "train"), ("val", "valid")):
            (directory / name).mkdir()
            for kind in ("images", "labels"):
                (directory / kind / split).rename(directory / name / kind)
    folder = yolo.read(directory)
    assert {name: len(split.items[0].objects) for name, split in folder.splits.items()} == {
        "train": 1,
        "val": 1,
    }
    assert folder.splits["train"].items[0].file_name == "0.png"


def test_yolo_says_what_may_be_wrong_with_the_whole_folder(tmp_path):
    corners = "0 0.1 0.1 0.5 0.1 0.5 0.5 0.1 0.5\n"
    yaml = "train: images/train\nval: images/train\ntest: images/none\nnames: [cat]\n"
    notes = yolo.read(yolo_folder(tmp_path, [("train", corners)], yaml)).notes
    for said in ("OBB", "share 1 images", "test: there are no images"):
        assert any(said in note for note in notes), said
    (tmp_path / "labels/train/0.txt").unlink()
    with pytest.raises(UserError, match="none of 1 images has a label file"):
        yolo.read(tmp_path)


@pytest.mark.parametrize(
    "text", ["[1", "names: 3", "a: 1", "names: [a, a]\ntrain: x", "names: {x: a}", "&a [*a]"]
)
def test_yolo_yaml_that_is_unusable_is_an_error_of_one_line(tmp_path, text):
    directory = yolo_folder(tmp_path, [("train", BOX)], text)
    with pytest.raises(UserError, match=r"data\.yaml") as error:
        yolo.read(directory)
    assert "\n" not in str(error.value)


def voc_folder(directory, xml, numbers=None, size=(40, 60)):
    for name in ("Annotations", "JPEGImages", "SegmentationObject"):
        (directory / name).mkdir(parents=True)
    (directory / "Annotations/a.xml").write_text(xml)
    (directory / "JPEGImages/a.jpg").write_bytes(harness.encode_image(harness.random_image(*size)))
    if numbers is not None:
        PIL.Image.fromarray(numbers).save(directory / "SegmentationObject/a.png")
    return directory


def voc_xml(*boxes, database="mine"):
    objects = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax>"
        f"<ymax>{y2}</ymax></bndbox><part><name>head</name></part></object>"
        for name, x1, y1, x2, y2 in boxes
    )
    return f"<annotation><source><database>{database}</database></source>{objects}</annotation>"


@pytest.mark.parametrize(
    ("database", "left", "expected"),
    [("The VOC2012 Database", 1, 0.0), ("mine", 1, 1.0), ("The VOC2007 Database", 0, 0.0)],
)
def test_voc_counts_pixels_from_1_in_its_own_files_alone(tmp_path, database, left, expected):
    xml = voc_xml(("cat", left, 1, 60, 40), database=database)
    folder = voc.read(voc_folder(tmp_path, xml))
    (found,) = folder.splits[""].items[0].objects
    assert found.bbox[0] == expected
    assert found.bbox[0] + found.bbox[2] == 60
    assert "counted from pixel" in folder.notes[0]


def test_voc_masks_go_to_the_box_of_their_number_or_the_one_they_fit(tmp_path):
    numbers = np.zeros([40, 60], np.uint8)
    numbers[:10, :10], numbers[20:30, 40:60], numbers[35:, :5] = 1, 2, 7
    numbers[5, 5] = 255  # not known
    xml = voc_xml(("cat", 0, 0, 10, 10), ("dog", 20, 0, 30, 10), ("cow", 40, 20, 60, 30))
    item = voc.read(voc_folder(tmp_path, xml, numbers)).splits[""].items[0]
    areas = [each.segmentation and mask_ops.rle_area(each.segmentation) for each in item.objects]
    assert areas == [99, None, 200]
    assert [loss.reason for loss in item.losses] == ["mask_without_box"]


def test_voc_splits_by_imagesets(tmp_path):
    directory = voc_folder(tmp_path, voc_xml(("cat", 0, 0, 9, 9)))
    (directory / "Annotations/b.xml").write_text(voc_xml(("dog", 0, 0, 9, 9)))
    (directory / "ImageSets/Main").mkdir(parents=True)
    for name, stem in (("train", "a"), ("val", "b"), ("trainval", "a\nb")):
        (directory / f"ImageSets/Main/{name}.txt").write_text(f"{stem}\n")
    folder = voc.read(directory)
    assert folder.names == ("cat", "dog")  # of all splits in each
    assert {name: len(split.items) for name, split in folder.splits.items()} == {
        "train": 1,
        "val": 1,
    }


@pytest.mark.parametrize(
    "xml",
    [
        '<!DOCTYPE a [<!ENTITY b "bb">]><annotation>&b;</annotation>',
        "<annotation>",
        "",
        '<?xml version="1.0" encoding="no such"?><annotation/>',
    ],
)
def test_xml_that_is_damaged_or_has_entities_is_refused(xml):
    with pytest.raises(xml_file.BadXmlError):
        xml_file.parse(xml.encode())


def cvat_folder(directory, shapes, top="annotations"):
    (directory / "images").mkdir(parents=True, exist_ok=True)
    (directory / "annotations.xml").write_text(
        f'<{top}><image id="0" name="a.jpg" width="60" height="40" subset="Train">{shapes}</image>'
        f"</{top}>"
    )
    return directory


def test_cvat_shapes_of_a_group_are_one_object_unless_it_has_several_boxes(tmp_path):
    box = '<box label="{0}" group_id="{1}" xtl="{2}" ytl="5" xbr="30" ybr="25"/>'
    polygon = '<polygon label="{0}" group_id="{1}" points="10,5;30,5;30,25"/>'
    mask = '<mask label="cat" group_id="1" rle="0,4" left="10" top="23" width="2" height="2"/>'
    shapes = [box.format("cat", 1, 10), polygon.format("cat", 1), mask]  # 1
    shapes += [box.format("dog", 2, 10), polygon.format("cat", 2)]  # 2: another class
    shapes += [box.format("cat", 3, 10), box.format("cat", 3, 11), polygon.format("cat", 3)]  # 3
    shapes += [box.format("cat", 0, 10), polygon.format("cat", 0)]  # 2: no group
    split = cvat.read(cvat_folder(tmp_path, "".join(shapes))).splits["train"]
    objects = split.items[0].objects
    assert [bool(each.segmentation) for each in objects] == [
        True, False, True, False, False, True, False, True,
    ]  # fmt: skip
    assert objects[0].bbox == [10.0, 5.0, 20.0, 20.0]
    alone = objects[2].segmentation
    union = mask_ops.segmentation_to_rle(alone, 40, 60)
    assert mask_ops.rle_area(objects[0].segmentation) > mask_ops.rle_area(union)


def test_cvat_rotated_ellipses_and_what_is_no_area(tmp_path):
    shapes = (
        '<box label="cat" xtl="20" ytl="10" xbr="40" ybr="30" rotation="45"/>'
        '<ellipse label="cat" cx="30" cy="20" rx="10" ry="5" rotation="90"/>'
        '<points label="cat" points="1,1"/><polygon label="" points="1,1;2,2;3,1"/>'
    )
    item = cvat.read(cvat_folder(tmp_path, shapes)).splits["train"].items[0]
    rotated, ellipse = item.objects
    assert rotated.is_rotated
    assert rotated.bbox == pytest.approx([30 - 200**0.5, 20 - 200**0.5, 800**0.5, 800**0.5])
    assert ellipse.bbox == pytest.approx([25, 10, 10, 20])
    area = mask_ops.rle_area(mask_ops.segmentation_to_rle(ellipse.segmentation, 40, 60))
    assert area == pytest.approx(np.pi * 50, rel=0.1)
    assert [loss.reason for loss in item.losses] == [
        "label_shape_unsupported",
        "label_without_class",
    ]


def test_cvat_videos_are_refused(tmp_path):
    cvat_folder(tmp_path, "")
    (tmp_path / "annotations.xml").write_text("<annotations><track/></annotations>")
    with pytest.raises(UserError, match="CVAT for images"):
        cvat.read(tmp_path)


def test_cvat_rows_of_a_mask_are_what_our_writer_makes():
    mask = np.random.default_rng(0).integers(0, 2, [5, 7], dtype=np.uint8)
    runs = cvat_writer.row_runs(mask)
    values = np.repeat(np.arange(len(runs)) % 2, runs).reshape(5, 7)
    assert (values == mask).all()


def regions(*changes):
    value = {"x": 10, "y": 20, "width": 50, "height": 25, "rectanglelabels": ["cat"]}
    base = {"id": "a", "type": "rectanglelabels", "original_width": 60, "original_height": 40}
    return [{**base, "value": value, **change} for change in changes]


def label_studio_folder(directory, *annotations):
    (directory / "images").mkdir(parents=True)
    task = {"id": 5, "data": {"image": "/data/local-files/?d=x/a.jpg"}, "annotations": annotations}
    (directory / "images/a.jpg").write_bytes(b"")
    (directory / "export.json").write_text(json.dumps([task]))
    return directory


def test_label_studio_takes_ground_truth_or_the_last_that_was_submitted(tmp_path):
    first, second = regions({"id": "b"}), regions({}, {"id": "c"})
    each = [{"result": first}, {"result": second}, {"result": [], "was_cancelled": True}]
    split = label_studio.read(label_studio_folder(tmp_path / "1", *each)).splits[""]
    assert len(split.items[0].objects) == 2
    assert [loss.reason for loss in split.losses] == ["label_of_other_annotator"]
    assert split.items[0].file_name == "a.jpg"
    each[0]["ground_truth"] = True
    split = label_studio.read(label_studio_folder(tmp_path / "2", *each)).splits[""]
    assert len(split.items[0].objects) == 1


def test_label_studio_predictions_are_no_labels(tmp_path):
    directory = label_studio_folder(tmp_path)
    folder = label_studio.read(directory)
    assert not folder.splits[""].items
    assert "1 of 1 tasks have no annotation" in folder.notes[0]


def test_label_studio_regions(tmp_path):
    labelled = {
        "type": "labels",
        "id": "t",
        "value": {**regions({})[0]["value"], "labels": ["dog"]},
    }
    del labelled["value"]["rectanglelabels"]
    twice = {"type": "rectangle", "id": "t", "value": {"x": 1, "y": 1, "width": 1, "height": 1}}
    ellipse = {"x": 50, "y": 50, "radiusX": 10, "radiusY": 10, "ellipselabels": ["cat"]}
    rotated = {**regions({})[0]["value"], "rotation": 90}
    several = {**regions({})[0]["value"], "rectanglelabels": ["cat", "dog"]}
    changes = [labelled, twice, {"value": ellipse}, {"value": rotated}, {"value": several}]
    changes += [
        {"image_rotation": 90},
        {"type": "relation"},
        {"value": {"rectanglelabels": ["cat"]}},
    ]
    split = label_studio.read(label_studio_folder(tmp_path, {"result": regions(*changes)})).splits[
        ""
    ]
    (item,) = split.items
    assert [each.class_name for each in item.objects] == ["dog", "cat", "cat"]
    box, turned, round_one = item.objects
    assert box.bbox == [6.0, 8.0, 30.0, 10.0]
    assert turned.is_rotated
    assert turned.bbox == pytest.approx([-4, 8, 10, 30])
    assert round_one.bbox == pytest.approx([24, 16, 12, 8])
    assert [loss.reason for loss in item.losses] == [
        "label_without_class",
        "label_in_rotated_view",
        "label_shape_unsupported",
    ]


def test_label_studio_brush_masks_of_any_block_are_decoded():
    mask = np.random.default_rng(0).integers(0, 2, [9, 5], dtype=np.uint8)
    code = brush_rle(mask_ops.encode_rle(mask))
    values = brush.decode_rle(code, 180)
    assert (values.reshape(9, 5, 4) == 255 * mask[..., None]).all()
    literal = "0" * 24 + "00000100" + "00111" + "0010" * 4  # 4 values of 8 bits, lengths of 3 bits
    literal += "0" + "01" + "011" + "".join(f"{value:08b}" for value in (1, 2, 3, 4))
    literal += "0" * (-len(literal) % 8)
    data = list(int(literal, 2).to_bytes(len(literal) // 8, "big"))
    assert brush.decode_rle(data, 4).tolist() == [1, 2, 3, 4]
    for damaged in (code[:-3], code[:5], [], [300], None, ["a"]):
        assert brush.decode_rle(damaged, 180) is None


def test_the_command_says_what_it_took_the_folder_for(tmp_path):
    directory = yolo_folder(
        tmp_path / "mine", [("train", BOX + POLYGON + "9 1 1 1 1\n"), ("val", BOX)]
    )
    result = convert(directory, tmp_path / "none", "--explain")
    assert result.returncode == 0, result.stderr
    for said in (
        "mine: yolo",
        "train: 1 images, 2 objects, 1 with mask",
        "labels/train/0.txt:2: dog",
    ):
        assert said in result.stdout
    assert "lost: labels/train/0.txt:3" in result.stdout
    assert not (tmp_path / "none").exists()


def test_records_and_their_json_of_each_split(tmp_path):
    directory = yolo_folder(
        tmp_path / "mine", [("train", BOX + BOX + POLYGON + "9 1 1 1 1\n"), ("val", BOX)]
    )
    result = convert(directory, tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert "label_class_unknown, the first: labels/train/0.txt:4" in result.stdout
    manifest = manifest_lib.Manifest.load(tmp_path / "out/train")
    assert manifest.issues["label_class_unknown"]["count"] == 1
    content = json.loads((tmp_path / "out/train/annotations.json").read_text())
    assert len(content["annotations"]) == 3
    (record,) = schema.read_records(manifest_lib.find_shards([str(tmp_path / "out/val")]))
    assert len(record.objects) == 1
    assert "finished records" in convert(directory, tmp_path / "out").stderr
    assert convert(directory, tmp_path / "out", "--reuse").returncode == 0
    (directory / "labels/train/0.txt").write_text(BOX)
    assert "another source" in convert(directory, tmp_path / "out", "--reuse").stderr
    assert (
        len(json.loads((tmp_path / "out/train/annotations.json").read_text())["annotations"]) == 3
    )
    assert convert(directory, tmp_path / "out", "--overwrite").returncode == 0


def test_a_folder_of_no_format_or_of_two(tmp_path):
    with pytest.raises(UserError, match=r"data\.yaml"):
        command.recognise(str(tmp_path))
    yolo_folder(tmp_path, [("train", BOX)])
    cvat_folder(tmp_path, "")
    with pytest.raises(UserError, match="--format"):
        command.recognise(str(tmp_path))
    assert command.recognise(str(tmp_path), "cvat") == "cvat"


def test_several_exports_are_not_chosen_from(tmp_path):
    cvat_folder(tmp_path, "")
    (tmp_path / "older.xml").write_text((tmp_path / "annotations.xml").read_text())
    with pytest.raises(UserError, match=r"annotations\.xml, older\.xml"):
        cvat.read(tmp_path)


def test_the_data_set_of_the_formats_mixes_masks_in_one_image():
    images = folder_formats.data_set(38, 17)
    assert any(len({bool(item.polygon) for item in items}) == 2 for items in images.values())
    assert {item.name for items in images.values() for item in items} == set(NAMES)
    assert all(max(item.bbox[:2]) < SIDE for items in images.values() for item in items)
