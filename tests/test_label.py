"""Labelling a COCO json with a tiny model: what is kept, what is made, what is listed; resuming."""

import csv
import functools
import json
import os
import pathlib
import types
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from PIL import Image

from export import label
from maskx_tf import checkpoints
from maskx_tf.data import decoding, preprocessing
from maskx_tf.errors import UserError
from maskx_tf.inference import mask_post, segmenter, tiling
from maskx_tf.labeling import labeler, objects, review
from maskx_tf.labeling import source as source_lib
from maskx_tf.ops import masks
from maskx_tf.system import files, journal
from tests import harness, tiny
from tf_records import coco
from tf_records.output import Output

SIZES = ((40, 60), (70, 33), (48, 48))


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run")
    options = tiny.config(model_dir=str(directory))
    model = tiny.model(options)
    checkpoints.save_run(options, tiny.VOCABULARY, tiny.SET_A)
    tf.train.CheckpointManager(tf.train.Checkpoint(model=model), directory, 1).save()
    return str(directory)


@pytest.fixture(autouse=True)
def one_model(monkeypatch):
    """Loads and traces the model once for all tests."""
    monkeypatch.setattr(label.detector.checkpoints, "load_model", _load)
    monkeypatch.setattr(label.detector, "Segmenter", lambda loaded: _segmenter())


_loaded: dict = {}


def _load(path, load=checkpoints.load_model):
    if "model" not in _loaded:
        _loaded["model"] = load(path)
        _loaded["segmenter"] = segmenter.Segmenter(_loaded["model"])
    return _loaded["model"]


def _segmenter():
    return _loaded["segmenter"]


@pytest.fixture
def data(tmp_path):
    """Boxes of known classes without mask, one with, one crowd, one that is none."""
    annotations = [
        harness.annotation(1, [5, 6, 30, 25], segmentation=[], extra="kept"),
        harness.annotation(1, [1, 1, 8, 8.5], mask_weight=0.5),
        harness.annotation(2, [0, 0, 33, 70], category_id=2, segmentation=[]),
        harness.annotation(2, [3, 3, 9, 9], iscrowd=1, segmentation={"size": [0, 0], "counts": []}),
        harness.annotation(3, [3, 3, 0, 9], segmentation=[]),
        harness.annotation(3, [-10, 20, 30, 50], category_id=3, segmentation=[]),
    ]
    names = ("ant", "bee", "dog")
    return harness.write_coco(tmp_path, annotations, sizes=SIZES, names=names)


def run(annotations, images, model_dir, output, **changes):
    values = flags.FlagValues()
    kinds = ("DEFINE_string", "DEFINE_enum", "DEFINE_float", "DEFINE_bool", "DEFINE_integer")
    defining = {kind: functools.partial(getattr(flags, kind), flag_values=values) for kind in kinds}
    with pytest.MonkeyPatch.context() as patch:
        for module in (label, mask_post, tiling):
            patch.setattr(module, "flags", types.SimpleNamespace(**defining))
        label.define_flags()
    arguments = {
        "annotations": annotations,
        "images": images,
        "model_dir": model_dir,
        "output": str(output),
        **changes,
    }
    values(["label", *(f"--{key}={value}" for key, value in arguments.items())])
    return label.run(values)


def rows_of(path):
    return list(csv.DictReader(pathlib.Path(path).open()))


def clipped_box(bbox, height, width):
    x, y, w, h = bbox
    return max(y, 0), max(x, 0), min(y + h, height), min(x + w, width)


def test_labels_what_has_no_mask_and_keeps_the_rest(data, model_dir, tmp_path):
    output = tmp_path / "labelled.json"
    said = run(*data, model_dir, output, min_quality=1.0, review_sheet=tmp_path / "sheet.png")
    before = json.loads(pathlib.Path(data[0]).read_text())
    after = json.loads(output.read_text())
    assert after["images"] == before["images"] and after["categories"] == before["categories"]
    made = [a.get("mask_source") for a in after["annotations"]]
    assert made == ["maskx_tf", "human", "maskx_tf", None, None, "maskx_tf"]
    for old, new in zip(before["annotations"], after["annotations"], strict=True):
        assert old["bbox"] == new["bbox"]
        if new.get("mask_source") != "maskx_tf":
            assert {**new, "mask_source": None} == {**old, "mask_source": None}
            continue
        assert 0 <= new["mask_score"] <= 1
        assert new["mask_seen"] == (new["category_id"] == 1)  # set A: ant and cat
        height, width = SIZES[new["image_id"] - 1]
        assert new["segmentation"]["size"] == [height, width]
        x, y, w, h = new["bbox"]
        mask = masks.decode_rle(new["segmentation"])
        assert mask.sum() == new["area"]
        outside = mask.copy()
        outside[max(int(y), 0) : int(np.ceil(y + h)), max(int(x), 0) : int(np.ceil(x + w))] = 0
        assert not outside.any()
        agreement = masks.box_agreement(
            new["segmentation"], clipped_box(new["bbox"], height, width)
        )
        assert new["mask_agreement"] == pytest.approx(agreement, abs=1e-6)
    *rows, mask, crowd, empty, clipped = rows_of(f"{output}.review.csv")
    assert {row["annotation_id"] for row in rows} == {"1", "3", "6"}
    scores = [float(row["mask_score"]) for row in rows]
    assert scores == sorted(scores)
    made = {str(item["id"]): item for item in after["annotations"]}
    for row in rows:
        agreement = made[row["annotation_id"]]["mask_agreement"]
        assert float(row["mask_agreement"]) == pytest.approx(agreement, abs=1e-3)
    columns = ("reason", "annotation_id", "class", "file_name")
    assert [[row[column] for column in columns] for row in (mask, crowd, empty, clipped)] == [
        ["mask_size_differs", "4", "ant", "2.jpg"],
        ["crowd", "4", "ant", "2.jpg"],
        ["box_empty", "5", "ant", "3.jpg"],
        ["box_clipped", "6", "dog", "3.jpg"],
    ]
    assert "box_empty: the box has no area" in said
    assert Image.open(tmp_path / "sheet.png").size[0] > 320
    assert not list(tmp_path.glob("*.journal*"))


@pytest.mark.parametrize(
    ("segmentation", "has_mask"),
    [
        (None, False),
        ([], False),
        ([[]], False),
        ([[], []], False),
        ({}, False),
        ([[], [1, 1, 5, 1, 5, 5]], True),
        ([1, 1, 5, 1, 5, 5], True),
        ([0, 0, 5, 0, 5, 5], True),
        ({"size": [40, 60], "counts": [2400]}, False),  # as in records
        ([[20, 20, 30, 20, 30, 30]], False),  # beside the box
    ],
)
def test_what_counts_as_a_mask(segmentation, has_mask, tmp_path):
    annotations = [harness.annotation(1, [1, 1, 8, 8], segmentation=segmentation)]
    path, images = harness.write_coco(tmp_path, annotations)
    source = source_lib.read(path, pathlib.Path(images))
    assert source.annotations[0].has_mask == has_mask


def test_masks_are_those_of_the_model(data, model_dir, tmp_path):
    output = tmp_path / "labelled.json"
    run(*data, model_dir, output)
    annotation = json.loads(output.read_text())["annotations"][0]
    loaded = checkpoints.load_model(model_dir)
    image = decoding.decode(tf.io.read_file(f"{data[1]}/1.jpg"))
    resized, size, scale = preprocessing.resize_and_pad(image, 64, 96)
    x, y, w, h = annotation["bbox"]
    box = tf.constant([[[y, x, y + h, x + w]]], tf.float32) * tf.tile(scale, [2])
    inputs = resized[None], size[None], box, tf.constant([[1]]), scale[None]
    wanted = tiny.segment(loaded.model, *inputs)
    (rle,) = masks.paste_to_rle(wanted[0].numpy(), [[y, x, y + h, x + w]], *SIZES[0])
    assert annotation["segmentation"] == rle
    score = segmenter.expected_iou(wanted[0]).numpy()[0]
    assert annotation["mask_score"] == pytest.approx(score, abs=1e-5)


@pytest.mark.thorough
def test_an_export_gives_the_masks_of_its_run(data, exported, tmp_path, monkeypatch):
    monkeypatch.undo()  # another model than that of the other tests
    outputs = []
    for model_dir, saved_model in (("", exported / "export"), (exported / "run", "")):
        output = tmp_path / f"{len(outputs)}.json"
        run(*data, model_dir, output, saved_model=saved_model)
        outputs.append(json.loads(output.read_text())["annotations"])
    count = 0
    for ours, theirs in zip(*outputs, strict=True):
        if "mask_score" in ours:
            a, b = (masks.decode_rle(one["segmentation"]) for one in (ours, theirs))
            assert np.count_nonzero(a != b) <= 0.01 * a.size
            assert ours["mask_score"] == pytest.approx(theirs["mask_score"], abs=0.01)
            count += 1
    assert count == 3


def test_one_model_is_named(data, model_dir, tmp_path):
    with pytest.raises(UserError, match="either --model_dir.* or --saved_model"):
        run(*data, model_dir, tmp_path / "x.json", saved_model="export")


def test_tiles_see_the_boxes_that_they_hold(data, model_dir, tmp_path):
    """Tiles as large as the images change nothing."""
    texts = []
    for tile in (0, 100):
        output = tmp_path / f"{tile}.json"
        run(*data, model_dir, output, tile=tile)
        texts.append(output.read_text())
    assert texts[0] == texts[1]


def test_overwrite_masks_leaves_crowds_alone(data, model_dir, tmp_path):
    run(*data, model_dir, tmp_path / "out.json", overwrite_masks=True)
    annotations = json.loads((tmp_path / "out.json").read_text())["annotations"]
    assert annotations[1]["mask_source"] == "maskx_tf"
    assert "mask_weight" not in annotations[1], "it was of the mask that is replaced"
    assert annotations[3] == json.loads(pathlib.Path(data[0]).read_text())["annotations"][3]
    again = tmp_path / "again.json"  # a second run finds nothing to do, and keeps what it is told
    run(str(tmp_path / "out.json"), data[1], model_dir, again)
    assert json.loads(again.read_text()) == json.loads((tmp_path / "out.json").read_text())


def test_unknown_classes(data, model_dir, tmp_path):
    content = json.loads(pathlib.Path(data[0]).read_text())
    content["categories"][1]["name"] = "wasp"
    pathlib.Path(data[0]).write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"'wasp' \(1\).*--skip_unknown_classes"):
        run(*data, model_dir, tmp_path / "out.json")
    said = run(*data, model_dir, tmp_path / "out.json", skip_unknown_classes=True)
    assert "1 class_unknown" in said
    annotations = json.loads((tmp_path / "out.json").read_text())["annotations"]
    assert "mask_source" not in annotations[2] and annotations[2]["segmentation"] == []


def test_missing_and_broken_images_are_listed(data, model_dir, tmp_path):
    os.remove(f"{data[1]}/1.jpg")
    pathlib.Path(f"{data[1]}/2.jpg").write_bytes(b"no image")
    run(*data, model_dir, tmp_path / "out.json")
    rows = rows_of(tmp_path / "out.json.review.csv")
    found = {(row["reason"], row["image_id"], row["file_name"]) for row in rows}
    assert {("image_missing", "1", "1.jpg"), ("image_corrupt", "2", "2.jpg")} <= found


def test_boxes_mean_stored_pixels_unless_the_json_has_the_turned_size(model_dir, tmp_path):
    picture = harness.random_image(40, 60)
    for name, sizes in (("stored", ((40, 60),)), ("turned", ((60, 40),))):
        box = [2, 3, 30, 30]
        path, images = harness.write_coco(
            tmp_path / name, [harness.annotation(1, box, segmentation=[])], sizes=sizes,
            names=("ant",),
        )  # fmt: skip
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(picture).save(f"{images}/1.jpg", exif=exif)
        run(path, images, model_dir, tmp_path / f"{name}.json")
        (annotation,) = json.loads((tmp_path / f"{name}.json").read_text())["annotations"]
        assert annotation["segmentation"]["size"] == list(sizes[0])


@pytest.mark.parametrize("form", ["cvat", "label_studio", "fiftyone"])
def test_other_formats_hold_every_object(data, model_dir, tmp_path, form):
    output = tmp_path / "out"
    run(*data, model_dir, output, format=form)
    text = output.read_text()
    assert (
        text.count({"cvat": "<mask", "label_studio": '"brush"', "fiftyone": '"mask":'}[form]) == 4
    )
    assert (tmp_path / "out.config.xml").exists() == (form == "label_studio")


@pytest.mark.parametrize("form", ["cvat", "label_studio", "fiftyone"])
def test_what_other_formats_leave_out_is_listed(model_dir, tmp_path, form):
    annotations = [
        harness.annotation(1, [1, 1, 8, 8]),
        harness.annotation(1, [1, 1, 9, 9], iscrowd=1),
        harness.annotation(1, None, segmentation=[[1, 1, 9, 1, 9, 9]]),
        harness.annotation(1, None, segmentation=[]),
        harness.annotation(2, [1, 1, 8, 8]),
    ]
    path, images = harness.write_coco(tmp_path, annotations, sizes=SIZES[:2], names=("ant",))
    content = json.loads(pathlib.Path(path).read_text())
    del content["images"][1]["height"]
    pathlib.Path(path).write_text(json.dumps(content))
    os.remove(f"{images}/2.jpg")
    said = run(path, images, model_dir, tmp_path / "out", format=form)
    rows = rows_of(tmp_path / "out.review.csv")
    assert sorted((row["reason"], row["image_id"], row["annotation_id"]) for row in rows) == [
        ("box_duplicate", "1", "3"),
        ("box_missing", "1", "4"),
        ("box_of_mask", "1", "3"),
        ("crowd_left_out", "1", "2"),
        ("image_size_unknown", "2", ""),
    ]
    assert "1 crowd_left_out" in said


def test_a_killed_run_goes_on_where_it_was(data, model_dir, tmp_path, monkeypatch):
    whole = tmp_path / "whole.json"
    run(*data, model_dir, whole)
    output = tmp_path / "out.json"
    real, calls = labeler._label_image, []

    def killed(entry, *rest):
        calls.append(entry.image_id)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(entry, *rest)

    monkeypatch.setattr(labeler, "_label_image", killed)
    with pytest.raises(KeyboardInterrupt):
        run(*data, model_dir, output)
    assert not output.exists()
    kept = tmp_path / "out.json.journal"
    kept.write_bytes(kept.read_bytes() + b'{"image_id": 3, "prob')  # a line that was cut off
    calls.clear()
    calls += [None] * 10
    run(*data, model_dir, output)
    assert calls[10:] == [3]
    assert output.read_bytes() == whole.read_bytes()


def test_images_that_could_not_be_read_are_tried_again(data, model_dir, tmp_path, monkeypatch):
    whole, output = tmp_path / "whole.json", tmp_path / "out.json"
    run(*data, model_dir, whole)
    image = pathlib.Path(data[1], "1.jpg")
    hidden = image.rename(tmp_path / "hidden.jpg")
    with monkeypatch.context() as patch:
        patch.setattr(files, "write_atomically", lambda *_: pytest.fail("full disk"))
        with pytest.raises(pytest.fail.Exception):
            run(*data, model_dir, output)
    hidden.rename(image)
    run(*data, model_dir, output)
    assert output.read_bytes() == whole.read_bytes()


def test_a_directory_without_the_images_is_refused(data, model_dir, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    output = tmp_path / "out.json"
    with pytest.raises(UserError, match=r"elsewhere: none of the 3 images .* \(3 image_missing\)"):
        run(data[0], tmp_path / "elsewhere", model_dir, output)
    assert not list(tmp_path.glob("out.json*"))


def test_a_second_run_for_the_same_output_is_refused(data, model_dir, tmp_path, monkeypatch):
    output, real = tmp_path / "out.json", labeler._label_image

    def meanwhile(*arguments):
        with pytest.raises(UserError, match="out.json.journal is in use: another process"):
            run(*data, model_dir, output)
        return real(*arguments)

    monkeypatch.setattr(labeler, "_label_image", meanwhile)
    run(*data, model_dir, output)
    monkeypatch.undo()
    assert len(json.loads(output.read_text())["annotations"]) == 6
    assert not list(tmp_path.glob("out.json.journal*"))


def test_a_journal_of_another_task_is_not_used(tmp_path):
    path = tmp_path / "j"
    first = journal.Journal(path, {"a": 1})
    first.add({"image_id": 1})
    first.close(remove=False)
    assert journal.Journal(path, {"a": 1}).results == [{"image_id": 1}]
    assert journal.Journal(path, {"a": 2}).results == []


def case(name, tmp_path):
    """(annotations json, image directory) of a case, its classes renamed to the model's."""
    path, images = harness.case(name)
    text = pathlib.Path(path).read_text()
    for theirs, ours in (("plain disc", "ant"), ("striped disc", "bee")):
        text = text.replace(theirs, ours)
    (tmp_path / "case.json").write_text(text)
    return str(tmp_path / "case.json"), images


def listed(path):
    """Reason -> ids of annotations, or of images where it is of a whole image."""
    found: dict[str, list[int]] = {}
    for row in rows_of(f"{path}.review.csv"):
        number = int(row["annotation_id"] or row["image_id"])
        found.setdefault(row["reason"], []).append(number)
    return found


def masks_in(path, form):
    key = {"cvat": "<mask", "label_studio": '"brush"', "fiftyone": '"mask":'}[form]
    return pathlib.Path(path).read_text().count(key)


class TestFilesThatPeopleHave:
    """Cases of public bug reports, and kinds of them."""

    def test_odd_masks_are_offered_one_and_listed_with_their_cause(self, model_dir, tmp_path):
        paths = case("l01_label_odd_masks", tmp_path)
        run(*paths, model_dir, tmp_path / "out.json")
        made = json.loads((tmp_path / "out.json").read_text())["annotations"]
        sources = {item["id"]: item["mask_source"] for item in made}
        human = {number for number, source in sources.items() if source == "human"}
        assert human == {5, 6, 8, 9, 12} and sources.keys() - human == {
            number for number, source in sources.items() if source == "maskx_tf"
        }
        causes = {
            "mask_blank": [1, 2],
            "mask_no_polygon": [3, 4],
            "mask_part_invalid": [6],
            "mask_size_swapped": [7],
            "mask_empty": [10, 14],
            "mask_invalid": [11],
            "box_duplicate": list(range(2, 15)),
            "mask_cut_by_box": [10, 14],
        }
        assert listed(tmp_path / "out.json").items() >= causes.items()
        output = Output(str(tmp_path / "records"), "x", workers=1)
        manifest = coco.convert(str(tmp_path / "out.json"), paths[1], output)
        assert (manifest.num_objects, manifest.num_masks) == (14, 14)
        for form in ("cvat", "label_studio", "fiftyone"):
            run(*paths, model_dir, tmp_path / form, format=form)
            assert masks_in(tmp_path / form, form) == 14
            assert listed(tmp_path / form).items() >= causes.items()

    def test_masks_drawn_by_hand_stay_whole_if_the_json_swaps_the_size(self, model_dir, tmp_path):
        paths = case("l02_label_size_swapped", tmp_path)
        run(*paths, model_dir, tmp_path / "out.json")
        assert listed(tmp_path / "out.json")["image_size_differs"] == [1, 2]
        source = source_lib.read(str(tmp_path / "out.json"), pathlib.Path(paths[1]))
        images, _ = objects.labelled_images(source, labeler.Labels({}, []))
        assert [(image.height, image.width) for image in images] == [(72, 96)] * 2
        for item in (item for image in images for item in image.objects):
            x, y, w, h = map(int, item.bbox)
            mask = masks.decode_rle(item.rle)
            if item.source == "human":  # an ellipse in its box
                assert mask[y : y + h, x : x + w].mean() == pytest.approx(np.pi / 4, abs=0.05)
        output = Output(str(tmp_path / "records"), "x", workers=1)
        assert coco.convert(str(tmp_path / "out.json"), paths[1], output).num_masks == 3
        run(*paths, model_dir, tmp_path / "out.xml", format="cvat")
        assert (tmp_path / "out.xml").read_text().count('width="96" height="72">') == 2

    @pytest.mark.parametrize("form", ["cvat", "label_studio", "fiftyone", "coco"])
    def test_any_file_name_is_written_or_listed(self, model_dir, tmp_path, form):
        paths = case("l03_label_names", tmp_path)
        run(*paths, model_dir, tmp_path / "out", format=form)
        text = (tmp_path / "out").read_text()
        is_xml = form == "cvat"
        assert ("file_name_not_in_xml" in listed(tmp_path / "out")) == is_xml
        if is_xml:
            names = [image.get("name") for image in ElementTree.fromstring(text).iter("image")]
            assert names == ['a & "b" <c> é #1?.jpg']
        else:
            assert json.loads(text)

    def test_nothing_but_crowds_is_refused_with_the_remedy(self, model_dir, tmp_path):
        paths = case("l04_label_all_crowd", tmp_path)
        with pytest.raises(UserError, match=r"None of the 2 .*2 crowd.*--crowds=objects"):
            run(*paths, model_dir, tmp_path / "out.json")
        assert not list(tmp_path.glob("out*"))
        run(*paths, model_dir, tmp_path / "out.json", crowds="objects")
        assert "crowd" not in listed(tmp_path / "out.json")

    @pytest.mark.parametrize(
        ("item", "cause"),
        [
            (harness.annotation(1, [5, 6, 30, 25], iscrowd=1), "1 crowd.*--crowds=objects"),
            (harness.annotation(1, [0.1, 0.2, 0.3, 0.25]), "1 box_normalised.*multiply x"),
            (harness.annotation(7, [5, 6, 30, 25]), "1 annotation_of_unknown_image"),
        ],
    )
    def test_a_json_without_any_object_is_refused(self, model_dir, tmp_path, item, cause):
        paths = harness.write_coco(tmp_path, [item], names=("ant",))
        with pytest.raises(UserError, match=f"None of the 1 annotations is an object.*{cause}"):
            run(*paths, model_dir, tmp_path / "out.json")

    def test_names_that_xml_cannot_hold_are_left_out_of_cvat_and_listed(self, model_dir, tmp_path):
        items = [harness.annotation(i, [5, 6, 30, 25]) for i in (1, 2)]
        paths = harness.write_coco(tmp_path, items, sizes=SIZES[:2], names=("ant",))
        content = json.loads(pathlib.Path(paths[0]).read_text())
        content["images"][1]["file_name"] = "2\v.jpg"
        pathlib.Path(paths[0]).write_text(json.dumps(content))
        pathlib.Path(paths[1], "2.jpg").rename(pathlib.Path(paths[1], "2\v.jpg"))
        run(*paths, model_dir, tmp_path / "out.xml", format="cvat")
        images = ElementTree.parse(tmp_path / "out.xml").iter("image")
        assert [image.get("name") for image in images] == ["1.jpg"]
        assert listed(tmp_path / "out.xml")["file_name_not_in_xml"] == [2]

    def test_thin_boxes_are_listed(self, model_dir, tmp_path):
        run(*case("l05_label_thin_boxes", tmp_path), model_dir, tmp_path / "out.json")
        found = listed(tmp_path / "out.json")
        assert found["box_thin"] == [1, 2] and found["box_clipped"] == [2, 3]
        assert found["box_of_mask"] == [4]

    def test_ids_as_text_are_read(self, model_dir, tmp_path):
        run(*case("l06_label_text_ids", tmp_path), model_dir, tmp_path / "out.json")
        made = json.loads((tmp_path / "out.json").read_text())["annotations"]
        assert [item["mask_source"] for item in made] == ["maskx_tf"] * 2
        assert [item["image_id"] for item in made] == ["1", "2"]  # as they were

    def test_deep_images_are_listed_and_seen(self, model_dir, tmp_path):
        paths = case("l08_label_tiff16", tmp_path)
        run(
            *paths, model_dir, tmp_path / "out.json", min_quality=1, review_sheet=tmp_path / "s.png"
        )
        assert listed(tmp_path / "out.json")["image_range_changed"] == [1]
        sheet = np.asarray(Image.open(tmp_path / "s.png").convert("L"))
        assert 20 < np.median(sheet[sheet < 255]) < 235  # neither black nor white


def test_doubts_are_below_one_of_the_limits_the_lowest_score_first():
    full, empty = (masks.encode_rle(np.full([4, 4], value)) for value in (1, 0))
    qualities = [(full, 0.9, 0.9), (full, 0.8, 0.3), (full, 0.2, 0.9), (empty, 0, 0)]
    labels = labeler.Labels({n: labeler.Mask(*item) for n, item in enumerate(qualities)}, [])
    rows = review.doubts(labels, 0.75)
    assert [(row.reason, row.place) for row in rows] == [("mask_empty", 3), ("mask_doubtful", 2)]
    assert [row.place for row in review.doubts(labels, 0.75, 0.8)] == [3, 2, 1]


def test_expected_iou():
    p = np.zeros((3, 4, 4))
    p[0, :2] = 1.0
    p[1, :2], p[1, 2:] = 0.8, 0.25
    found = segmenter.expected_iou(p)
    np.testing.assert_allclose(found, [1.0, 8 * 0.8 / (8 + 8 * 0.25), 0.0])


def test_expected_iou_is_the_mean_iou_if_probabilities_are_right():
    rng = np.random.default_rng(0)
    p = np.clip(np.kron(rng.uniform(0, 1, (7, 7)), np.ones((4, 4))) ** 0.3, 0, 1)
    ious = []
    for _ in range(300):
        truth = rng.uniform(size=p.shape) < p
        ious.append((truth & (p >= 0.5)).sum() / (truth | (p >= 0.5)).sum())
    assert segmenter.expected_iou(p).numpy() == pytest.approx(np.mean(ious), abs=0.01)


def test_unusable_inputs(data, model_dir, tmp_path):
    with pytest.raises(UserError, match="would overwrite"):
        run(*data, model_dir, data[0])
    with pytest.raises(UserError, match="not a directory"):
        run(data[0], str(tmp_path / "none"), model_dir, tmp_path / "out.json")
    with pytest.raises(UserError, match="has no polygons"):
        run(*data, model_dir, tmp_path / "o", format="fiftyone", segmentation="polygon")
    with pytest.raises(UserError, match=r"--review_sheet=.*sheet\.gif must end in \.jpg or \.png"):
        run(*data, model_dir, tmp_path / "o", review_sheet=tmp_path / "sheet.gif")
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(UserError, match="top level is not an object"):
        run(str(tmp_path / "list.json"), data[1], model_dir, tmp_path / "out.json")


def test_a_model_of_boxes_only_is_refused(data, model_dir, tmp_path, monkeypatch):
    loaded = _load(model_dir)
    boxes_only = loaded._replace(config=loaded.config.replace(mode="stage1_boxes"))
    monkeypatch.setattr(label.detector.checkpoints, "load_model", lambda path: boxes_only)
    with pytest.raises(UserError, match=f"{model_dir}.* detects boxes only .*--mode=stage2_masks"):
        run(*data, model_dir, tmp_path / "out.json")


@pytest.mark.parametrize("flag", ["output", "review", "review_sheet"])
def test_where_it_cannot_write_it_does_not_begin(data, model_dir, tmp_path, monkeypatch, flag):
    monkeypatch.setattr(label.detector.checkpoints, "load_model", None)
    file = tmp_path / "file"
    file.touch()
    paths = {"output": tmp_path / "out.json"} | {flag: file / "x.jpg"}
    with pytest.raises(UserError, match="file/x.jpg cannot be written: "):
        run(*data, model_dir, **paths)
    with pytest.raises(UserError, match=" is a directory"):
        run(*data, model_dir, **paths | {flag: tmp_path})


def test_members_of_gives_texts_as_they_stand():
    text = '{ "a" :1.50 , "b": [1, {"c": "}"}],"d" : "x,\\"y" ,"e":-1E+2}'
    members = source_lib.members_of(text)
    assert members == {"a": "1.50", "b": '[1, {"c": "}"}]', "d": '"x,\\"y"', "e": "-1E+2"}
    assert source_lib.members_of("{}") == {}
