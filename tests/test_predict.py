"""Prediction on files: what is found, written, drawn and reported; and the evaluate command."""

import dataclasses
import errno
import importlib
import json
import pathlib
import signal
import types

import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from PIL import Image

from export.client import results
from maskx_tf import checkpoints, predict
from maskx_tf import config as config_lib
from maskx_tf.data.records import schema
from maskx_tf.errors import UserError
from maskx_tf.evaluation import report
from maskx_tf.inference.detections import Detections
from maskx_tf.inference.detector import Detector, load_checkpoint
from maskx_tf.inference.tiling import Tiling
from maskx_tf.ops import masks
from tests import harness, tiny

evaluate = importlib.import_module("maskx_tf.evaluate")  # the command

NO_MASK_POST = {"mask_post": "none", "crf_weight": 2.0, "crf_color": 13.0, "crf_reach": 0.15}


def fake_detector():
    """Two objects in every image: class 2 (not in A) on the left half, class 1 weakly above."""

    def detect(images):
        _, height, width, _ = images.shape
        return {
            "num_detections": tf.constant([2]),
            "detection_boxes": tf.constant(
                [[[0, 0, height, width / 2], [0, 0, height / 2, width], [0, 0, 0, 0]]], tf.float32
            ),
            "detection_scores": tf.constant([[0.75, 0.25, 0]]),
            "detection_classes": tf.constant([[2, 1, 0]]),
            "detection_class_names": tf.constant([["bee", "ant", "background"]]),
            "detection_masks": tf.fill([1, 3, 28, 28], tf.constant(255, tf.uint8)),
            "detection_mask_seen": tf.constant([[False, True, False]]),
            "image_size": tf.constant([[height, width]]),
        }

    return Detector(detect, tiny.VOCABULARY)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "images"
    root.mkdir()
    for name, image in zip(("b.jpg", "a.png"), tiny.images(2), strict=True):
        Image.fromarray(image).save(root / name)
    (root / "broken.jpg").write_bytes(b"no image")
    (root / "notes.txt").write_text("not listed")
    return root


def names(paths):
    return [path.name for path in paths]


def test_find_images(folder):
    assert names(predict.find_images([str(folder)])) == ["a.png", "b.jpg", "broken.jpg"]
    assert names(predict.find_images([f"{folder}/b*.jpg", f"{folder}/a.png"])) == [
        "b.jpg",
        "broken.jpg",
        "a.png",
    ]
    assert names(predict.find_images([f"{folder}/a.png", str(folder)])) == [
        "a.png",
        "b.jpg",
        "broken.jpg",
    ]
    with pytest.raises(UserError, match="'.*/c.jpg' matches no image file"):
        predict.find_images([f"{folder}/c.jpg"])
    with pytest.raises(UserError, match="--images is needed"):
        predict.find_images([])


def test_a_name_with_brackets_is_a_file(folder):
    (folder / "a.png").rename(folder / "a[1].png")
    assert names(predict.find_images([f"{folder}/a[1].png"])) == ["a[1].png"]


def test_image_ids(tmp_path):
    paths = [pathlib.Path("x/a.png"), pathlib.Path("x/b.png")]
    assert predict.image_ids(paths, "") == [1, 2]
    file = tmp_path / "coco.json"
    images = [{"id": 70, "file_name": "b.png"}, {"id": 9, "file_name": "a.png"}]
    file.write_text(json.dumps({"images": images}))
    assert predict.image_ids(paths, str(file)) == [9, 70]
    file.write_text(json.dumps({"images": images[:1]}))
    with pytest.raises(UserError, match="does not have 1 of 2 images, such as a.png"):
        predict.image_ids(paths, str(file))
    file.write_text("[]")
    with pytest.raises(UserError, match="not a COCO json"):
        predict.image_ids(paths, str(file))


@pytest.mark.parametrize(
    ("names", "paths", "wanted"),
    [
        (("a/1.jpg", "b/1.jpg"), ("x/a/1.jpg", "x/b/1.jpg"), [10, 20]),
        (("1.jpg", "a/1.jpg"), ("x/1.jpg", "x/a/1.jpg"), [10, 20]),  # the longest it ends with
        (("y/a/1.jpg", "y/b/1.jpg"), ("x/b/1.jpg",), [20]),  # none: the most of the last parts
        (("y/a/1.jpg", "1.jpg"), ("x/a/1.jpg",), [20]),
        (("train/1.jpg", "2.jpg"), ("1.jpg", "2.jpg"), [10, 20]),
        (("./a/1.jpg", "b//1.jpg"), ("a/../b/1.jpg", "a/1.jpg"), [20, 10]),
        (("a/1.jpg", "b/1.jpg"), ("1.jpg",), "^1.jpg may be 2 images of .*, ids 10, 20: name it"),
        (("1.jpg", "1.jpg"), ("1.jpg",), "^1.jpg may be 2 images"),
        (("1.jpg", "2.jpg"), ("a/1.jpg", "b/1.jpg"), "^a/1.jpg and b/1.jpg are both image 10 of"),
    ],
)
def test_images_of_one_base_name_are_told_apart(names, paths, wanted, tmp_path):
    file = tmp_path / "coco.json"
    images = [{"id": i, "file_name": name} for i, name in zip((10, 20), names, strict=True)]
    file.write_text(json.dumps({"images": images}))
    paths = [pathlib.Path(path) for path in paths]
    if isinstance(wanted, list):
        assert predict.image_ids(paths, str(file)) == wanted
    else:
        with pytest.raises(UserError, match=wanted):
            predict.image_ids(paths, str(file))


def test_predict_writes_results_and_overlays(folder, tmp_path):
    paths = predict.find_images([str(folder)])
    output = tmp_path / "out"
    problems = predict.predict(fake_detector(), paths, [5, 6, 7], output, 0.5)
    assert len(problems) == 1
    assert problems[0].startswith(f"{folder / 'broken.jpg'}: ") and "\n" not in problems[0]
    results = json.loads((output / "detections.json").read_text())
    assert [(r["image_id"], r["file_name"], r["category_id"]) for r in results] == [
        (5, "a.png", 3),  # the ids of the data set, not of the model
        (5, "a.png", 1),
        (6, "b.jpg", 3),
        (6, "b.jpg", 1),
    ]
    first = results[0]
    height, width = tiny.images(2)[1].shape[:2]
    assert first["bbox"] == [0, 0, width / 2, height] and first["score"] == 0.75
    assert first["category_name"] == "bee" and first["mask_seen"] is False
    wanted = np.zeros((height, width), np.uint8)
    wanted[:, : width // 2] = 1
    np.testing.assert_array_equal(masks.decode_rle(first["segmentation"]), wanted)
    files = sorted(p.relative_to(output).as_posix() for p in output.rglob("*") if p.is_file())
    assert files == ["detections.json", "overlays/a.png", "overlays/b.jpg"]
    picture = np.asarray(Image.open(output / "overlays" / "a.png")).astype(int)
    assert max(picture.shape) >= 480
    plain = tiny.images(2)[1].mean(axis=(0, 1))
    half = picture.shape[1] // 2
    assert picture[30:, : half - 4, 0].mean() > plain[0] + 20  # set B: red
    below = picture[picture.shape[0] // 2 + 9 :, half + 9 :].mean(axis=(0, 1))
    above = picture[60 : picture.shape[0] // 2, half + 9 :].mean(axis=(0, 1))
    np.testing.assert_allclose(above, below, atol=25)  # the weak object is not drawn


def test_results_load_into_cocos_tools(folder, tmp_path):
    from pycocotools.coco import COCO

    paths = predict.find_images([f"{folder}/a.png"])
    predict.predict(fake_detector(), paths, [1], tmp_path / "out", 0.5)
    height, width = tiny.images(2)[1].shape[:2]
    index = COCO()
    index.dataset = {
        "info": {},
        "images": [{"id": 1, "height": height, "width": width}],
        "categories": tiny.VOCABULARY.categories(),
        "annotations": [],
    }
    index.createIndex()
    assert len(index.loadRes(str(tmp_path / "out" / "detections.json")).anns) == 2


def test_overlays_have_names_of_their_own_and_never_overwrite_images(tmp_path):
    paths = [pathlib.Path(p) for p in ("x/a.jpg", "y/a.JPEG", "y/a.bmp", "z/a-2.jpg")]
    found = names(predict.overlay_paths(paths, tmp_path))
    assert found == ["a.jpg", "a-2.jpg", "a.png", "a-2-2.jpg"]
    with pytest.raises(UserError, match="is one of --images"):
        predict.overlay_paths([tmp_path / "a.jpg"], tmp_path)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A model directory as training leaves it."""
    directory = tmp_path_factory.mktemp("run")
    config = tiny.config(model_dir=str(directory), image_max_side=64)
    checkpoints.save_run(config, tiny.VOCABULARY, tiny.SET_A)
    tf.train.Checkpoint(model=tiny.model(config)).save(str(directory / "ckpt"))
    return directory


def test_a_model_of_boxes_only_gives_no_masks(folder, tmp_path, monkeypatch):
    config = tiny.config(image_max_side=64, mode="stage1_boxes")
    loaded = checkpoints.LoadedModel(tiny.model(config), config, tiny.VOCABULARY, tiny.SET_A)
    monkeypatch.setattr(checkpoints, "load_model", lambda path: loaded)
    detector = load_checkpoint("run")
    paths = predict.find_images([f"{folder}/a.png"])
    assert not predict.predict(detector, paths, [1], tmp_path / "out", 0.0)
    results = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert results and all(len(result["bbox"]) == 4 for result in results)
    assert not any("segmentation" in result or result["mask_seen"] for result in results)
    assert (tmp_path / "out" / "overlays" / "a.png").is_file()


def test_predict_command(run_command, run_dir, folder, tmp_path):
    common = [f"--model_dir={run_dir}", f"--output_dir={tmp_path / 'out'}"]
    result = run_command("maskx_tf.predict", f"--images={folder}", *common)
    assert result.returncode == 0, result.stderr[-2000:]
    assert f"written: {tmp_path}/out/detections.json and {tmp_path}/out/overlays/" in result.stdout
    assert "1 of 3 images could not be read:\n" in result.stderr
    assert f"\n{folder}/broken.jpg: " in result.stderr


def test_what_is_done_is_kept_when_it_breaks_off(folder, tmp_path, monkeypatch):
    detector, shown = fake_detector(), []

    def detect(images):
        shown.append(images)
        if len(shown) > 1:
            raise KeyboardInterrupt
        return detector.detect(images)

    paths = [folder / "a.png", folder / "b.jpg"]
    broken = Detector(detect, detector.vocabulary)
    with pytest.raises(KeyboardInterrupt):
        predict.predict(broken, paths, [7, 8], tmp_path, 0.5)
    found = json.loads((tmp_path / "detections.json").read_text())
    assert {result["image_id"] for result in found} == {7}
    with pytest.raises(KeyboardInterrupt):  # at the first image
        predict.predict(broken, paths, [5, 6], tmp_path, 0.5)
    assert json.loads((tmp_path / "detections.json").read_text()) == found


def test_images_are_looked_at_in_tiles(folder, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        Detector, "tiled", lambda self, path, *tiles, **_: asked.append(tiles) or self(path, 0)
    )
    for tiling in (None, Tiling(40, 0.5)):
        paths = [folder / "a.png"]
        predict.predict(fake_detector(), paths, [0], tmp_path, 0.5, tiling=tiling)
    assert asked == [(40, 0.5)]


class TestGoingOn:
    """Of a prediction that was killed, which no handler sees: its journal is left."""

    def killed_after(self, folder, tmp_path, count):
        """As a kill leaves it: the journal of `count` images, the last one's line cut off."""
        detector, seen = fake_detector(), []

        def detect(images):
            seen.append(images)
            if len(seen) > count:
                raise KeyboardInterrupt
            return detector.detect(images)

        for number in range(4):
            Image.fromarray(tiny.images(1)[0]).save(folder / f"{number}.png")
        paths = [folder / f"{number}.png" for number in range(4)]
        with pytest.raises(KeyboardInterrupt):
            predict.predict(
                Detector(detect, tiny.VOCABULARY), paths, [0, 1, 2, 3], tmp_path, 0.5, ("m", 1)
            )
        with open(tmp_path / "detections.json.journal", "a") as file:
            file.write('{"image": ["cut o')
        (tmp_path / "detections.json").unlink()
        return paths

    def predicted(self, paths, tmp_path, model=("m", 1)):
        """How many images the detector saw, and the image ids in the results."""
        detector, seen = fake_detector(), []

        def detect(images):
            seen.append(images)
            return detector.detect(images)

        again = Detector(detect, tiny.VOCABULARY)
        assert predict.predict(again, paths, [0, 1, 2, 3], tmp_path, 0.5, model) == []
        rows = json.loads((tmp_path / "detections.json").read_text())
        return len(seen), [row["image_id"] for row in rows]

    def test_nothing_is_done_twice_or_lost(self, folder, tmp_path, capsys):
        paths = self.killed_after(folder, tmp_path, 3)
        (tmp_path / "overlays" / "2.png").write_bytes(b"half a pict")
        # The last picture may be half drawn: that image is seen again.
        assert self.predicted(paths, tmp_path) == (2, [0, 0, 1, 1, 2, 2, 3, 3])
        assert "3 of 4 images were done before" in capsys.readouterr().err
        assert Image.open(tmp_path / "overlays" / "2.png").size
        assert not list(tmp_path.glob("*.journal*"))

    def test_another_model_begins_anew(self, folder, tmp_path):
        paths = self.killed_after(folder, tmp_path, 3)
        assert self.predicted(paths, tmp_path, ("m", 2)) == (4, [0, 0, 1, 1, 2, 2, 3, 3])

    def test_results_are_stored_before_a_picture_is_drawn(self, folder, tmp_path, monkeypatch):
        def full(self, path):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

        monkeypatch.setattr(Detections, "save", full)
        with pytest.raises(OSError, match="No space left"):
            predict.predict(fake_detector(), [folder / "a.png"], [7], tmp_path, 0.5)
        assert {row["image_id"] for row in json.loads(read(tmp_path / "detections.json"))} == {7}


def read(path):
    return path.read_text()


def test_what_is_left_out_is_said(folder):
    for name in ("clip.MP4", "x.mp4", ".DS_Store", "c.webp", "d.jfif", "e.jpe", "f.tif"):
        (folder / name).write_bytes(b"")
    (folder / "more").mkdir()
    found = names(predict.find_images([str(folder)]))
    assert {"c.webp", "d.jfif", "e.jpe", "f.tif"} < set(found)
    text = predict.left_out([str(folder), f"{folder}/*.jpg"])
    assert "2 .mp4, 1 .txt, 1 folders" in text and f"'{folder}/**/*.jpg'" in text
    assert "DS_Store" not in text and predict.left_out([f"{folder}/*.jpg"]) == ""


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_annotations_as_editors_on_windows_write_them(encoding, tmp_path):
    file = tmp_path / "coco.json"
    content = {"images": [{"id": 9, "file_name": "a.png"}], "categories": [{"id": 4, "name": "ä"}]}
    file.write_text(json.dumps(content), encoding=encoding)
    assert predict.image_ids([pathlib.Path("a.png")], str(file)) == [9]
    assert results.category_ids(str(file)) == {"ä": 4}
    file.write_text("{" * 100_000, encoding=encoding)
    with pytest.raises(UserError) as error:
        predict.image_ids([pathlib.Path("a.png")], str(file))
    assert str(file) in str(error.value) and len(str(error.value)) < 500


def test_a_directory_that_looks_like_a_pattern(folder):
    (folder / "exp [1]").mkdir()
    (folder / "a.png").rename(folder / "exp [1]" / "a.png")
    assert names(predict.find_images([f"{folder}/exp [1]"])) == ["a.png"]
    assert names(predict.find_images([f"{folder}/exp [1]/*.png"])) == ["a.png"]


@pytest.fixture
def use(monkeypatch, tmp_path):
    """Sets the command's flags to some images, and a detector in place of a run's."""

    def prepare(detector, *images):
        values = types.SimpleNamespace(
            images=[str(path) for path in images],
            output_dir=str(tmp_path / "out"),
            model_dir="run",
            saved_model="",
            annotations="",
            score_threshold=0.5,
            tile=0,
            overlap=0.25,
            **NO_MASK_POST,
        )
        monkeypatch.setattr(flags, "FLAGS", values)
        named = dataclasses.replace(detector, name=str(tmp_path))
        monkeypatch.setattr(predict.detector, "load", lambda *names: named)

    return prepare


def test_what_is_done_is_kept_on_sigterm(use, folder, tmp_path):
    """As schedulers send it; by itself, Python would end at once."""
    detector, shown = fake_detector(), []

    def detect(images):
        shown.append(images)
        if len(shown) > 1:
            signal.raise_signal(signal.SIGTERM)
        return detector.detect(images)

    use(Detector(detect, detector.vocabulary), folder / "a.png", folder / "b.jpg")
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with pytest.raises(SystemExit) as stopped:
            predict.main()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert stopped.value.code == 143
    found = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert {result["file_name"] for result in found} == {"a.png"}


def test_failing_on_every_image_is_a_failure(use, folder, capsys):
    use(fake_detector(), folder / "broken.jpg")
    with pytest.raises(SystemExit) as stopped:
        predict.main()
    assert stopped.value.code == 1
    assert "1 of 1 images could not be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": ["x.jpg"]}, "--output_dir=DIRECTORY is needed"),
        ({"output_dir": "o", "images": ["x.jpg"]}, "either --model_dir=DIRECTORY or --saved_model"),
        ({"output_dir": "o", "model_dir": "m"}, "--images is needed"),
        (
            {"output_dir": "o", "model_dir": "m", "images": ["x.jpg"]},
            "'x.jpg' matches no image file",
        ),
    ],
)
def test_predict_says_what_is_missing(arguments, message, monkeypatch):
    defaults = {"output_dir": "", "model_dir": "", "saved_model": "", "images": []}
    monkeypatch.setattr(flags, "FLAGS", types.SimpleNamespace(**defaults | arguments))
    with pytest.raises(UserError, match=message):
        predict.main()


def parsed(*arguments):
    values = flags.FlagValues()
    config_lib.define_flags(values)
    values(["evaluate", *arguments])
    return values


def test_evaluation_config_takes_data_and_test_options_only(caplog):
    trained = tiny.config(eval_records=("old",), learning_rate=0.1)
    values = parsed(
        "--eval_records=new,more",
        "--max_detections=50",
        "--box_fc_units=24",  # as trained
        "--learning_rate=0.5",
        "--mask_filters=99",
        "--num_gpus=0",  # is obeyed
    )
    config = evaluate.evaluation_config(trained, values)
    assert config == trained.replace(eval_records=("new", "more"), max_detections=50, num_gpus=0)
    assert "--learning_rate=0.1" in caplog.text and "--mask_filters=8" in caplog.text
    assert "box_fc_units" not in caplog.text


def test_evaluate_checks_its_output_first(run_dir, tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.touch()
    values = {
        "checkpoint": "",
        "model_dir": str(run_dir),
        "masks": "model",
        "kernels": "own",
        "saved_model": "",
        "annotations": "",
        "engine": "pycocotools",
        "errors": False,
        "tile": 0,
        "overlap": 0.25,
        "results": "",
        "given_box_results": "",
    } | NO_MASK_POST
    monkeypatch.setattr(checkpoints, "load_model", None)
    for output, message in (
        (f"{file}/x", "file/x cannot be written: "),
        ("scores.png", r"--output=scores\.png is the name of the picture"),
    ):
        monkeypatch.setattr(flags, "FLAGS", types.SimpleNamespace(**values, output=output))
        with pytest.raises(UserError, match=message):
            evaluate.main()


def test_evaluate_command(run_command, run_dir, tmp_path, monkeypatch):
    stored, table = [], report.format_table

    def format_table(*arguments):
        stored.append((run_dir / "evaluation.json").exists())
        return table(*arguments)

    monkeypatch.setattr(report, "format_table", format_table)
    annotations = [harness.annotation(1, [5, 6, 20, 18]), harness.annotation(2, [9, 4, 30, 22])]
    json_path, images = harness.write_coco(
        tmp_path / "coco", annotations, sizes=((40, 60), (50, 50)), names=tiny.VOCABULARY.names
    )
    path = tmp_path / "x.tfrecord"
    with tf.io.TFRecordWriter(str(path)) as writer:
        for image_id, size in ((1, (40, 60)), (2, (50, 50))):
            encoded = (pathlib.Path(images) / f"{image_id}.jpg").read_bytes()
            image = schema.ImageRecord(image_id, f"{image_id}.jpg", encoded, *size, [])
            writer.write(schema.serialize_record(image))
    result = run_command(
        "maskx_tf.evaluate",
        f"--model_dir={run_dir}",
        f"--eval_records={path}",
        f"--annotations={json_path}",
        "--batch_size=2",
        "--max_detections=9",
        "--per_class",
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert all(stored)  # before anything is printed: `… | head` may end it then
    assert "A: 2 classes with masks, B: 2 without" in result.stdout
    assert "mask, boxes given" in result.stdout and "\nant" in result.stdout
    written = json.loads((run_dir / "evaluation.json").read_text())
    sections = {"box", "mask", "mask_given_boxes"}
    of_what = {"checkpoint", "mask_classes", "ground_truth"}
    assert set(written) == sections | of_what | {"operating_point"}
    assert (written["mask_classes"], written["ground_truth"]) == (["ant", "cat"], json_path)
    assert written["box"]["B"]["AP"] is None and written["box"]["A"]["AP"] >= 0
    assert written["mask"]["per_class"].keys() == set(tiny.VOCABULARY.names)
