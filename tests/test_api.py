"""The Python API: what it takes and gives, and its errors."""

import json
import pathlib

import numpy as np
import pytest
import tensorflow as tf

import maskx_tf as mx
from maskx_tf import api, checkpoints, predict, training
from maskx_tf.data import preprocessing
from maskx_tf.errors import UserError
from maskx_tf.inference.detector import load_checkpoint
from maskx_tf.ops import masks as mask_ops
from maskx_tf.system.interruption import Interrupted
from tests import harness, tiny
from tf_records import coco
from tf_records.output import Output

PHOTO = harness.random_image(40, 60)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run as training leaves it, without any training."""
    directory = tmp_path_factory.mktemp("runs") / "mine"
    config = tiny.config(model_dir=directory, image_max_side=64)
    checkpoints.save_run(config, tiny.VOCABULARY, tiny.SET_A)
    tf.train.Checkpoint(model=tiny.model(config)).save(str(directory / "ckpt"))
    return directory


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    directory = tmp_path_factory.mktemp("records")
    annotations = [harness.annotation(i, [5, 6, 20, 18], category_id=i) for i in (1, 2)]
    data = harness.write_coco(
        directory, annotations, sizes=((40, 60), (50, 50)), names=tiny.VOCABULARY.names
    )
    coco.convert(*data, Output(str(directory / "val"), "val", workers=1))
    return directory / "val"


@pytest.fixture(scope="module")
def model(run_dir):
    return mx.load(run_dir)


class TestLoad:
    def test_detections_are_those_of_the_outputs(self, model):
        detections = model(PHOTO, min_score=0)
        outputs = {key: v[0].numpy() for key, v in model.detect(tf.constant(PHOTO[None])).items()}
        assert len(detections) == outputs["num_detections"] > 2
        np.testing.assert_array_equal(
            detections.boxes_yxyx, outputs["detection_boxes"][: len(detections)]
        )
        external = np.array(tiny.VOCABULARY.external_ids)
        np.testing.assert_array_equal(detections.category_ids, external[detections.class_ids - 1])
        seen = np.isin(detections.class_ids, tiny.SET_A)
        np.testing.assert_array_equal(detections.mask_seen, seen)

    def test_images_of_a_batch_are_as_alone(self, model):
        images = tiny.images(3)
        for together, image in zip(
            model([images[0], *images], min_score=0)[1:], images, strict=True
        ):
            alone = model(image, min_score=0)
            assert together.image_size == alone.image_size == image.shape[:2]
            np.testing.assert_allclose(together.boxes_yxyx, alone.boxes_yxyx, atol=1e-3)
            np.testing.assert_allclose(together.scores, alone.scores, atol=1e-5)

    @pytest.mark.parametrize("kind", ["run", "checkpoint", "text"])
    def test_a_run_or_a_checkpoint(self, run_dir, kind, monkeypatch):
        monkeypatch.setattr(api, "load_checkpoint", lambda path: path)
        path = {"run": run_dir, "checkpoint": run_dir / "ckpt-1", "text": str(run_dir)}[kind]
        assert mx.load(path) == str(path)

    @pytest.mark.parametrize("version", ["", "3"])
    @pytest.mark.parametrize("file", ["saved_model.pb", "model.xml"])
    def test_an_export(self, tmp_path, version, file, monkeypatch):
        monkeypatch.setattr(api, "load_export", lambda path: path)
        (tmp_path / "3").mkdir()
        (tmp_path / "3" / file).touch()
        assert mx.load(tmp_path / version) == str(tmp_path / version)

    def test_nothing_to_load(self, tmp_path):
        with pytest.raises(UserError, match=r"no .*/absent; give .* run, a checkpoint .* exported"):
            mx.load(tmp_path / "absent")
        with pytest.raises(UserError, match="holds no checkpoint"):
            mx.load(tmp_path)


class TestMasks:
    BOXES = ((5, 6, 30, 50), (0, 0, 40, 20), (1, 2, 9, 30))

    def test_masks_of_given_boxes(self, model):
        masks = model.masks(PHOTO, self.BOXES, ["cat", "bee", 4])
        assert masks.class_names.tolist() == ["cat", "bee", "dog"]
        assert masks.category_ids.tolist() == [4, 3, 7] and masks.image_size == (40, 60)
        np.testing.assert_array_equal(masks.boxes_yxyx, self.BOXES)
        assert ((masks.scores >= 0) & (masks.scores <= 1)).all()
        for one, (y1, x1, y2, x2) in zip(masks, self.BOXES, strict=True):
            mask = one.mask()
            outside = mask.copy()
            outside[y1:y2, x1:x2] = 0
            assert mask.shape == (40, 60) and not outside.any()
        assert masks.draw().shape == (320, 480, 3)

    def test_they_are_those_of_label(self, model, run_dir):
        """Of a class and box, in any order; `maskx label` uses the same segmenter."""
        one, other = (model.masks(PHOTO, self.BOXES[:2][::step], "ant") for step in (1, -1))
        assert [m.rle() for m in one] == [m.rle() for m in other][::-1]
        loaded = checkpoints.load_model(str(run_dir))
        sides = loaded.config.image_min_side, loaded.config.image_max_side
        resized, size, scale = preprocessing.resize_and_pad(tf.constant(PHOTO), *sides)
        pyramid = loaded.model.pyramid(resized[None], size[None])
        boxes = np.array([self.BOXES[:2]], np.float32) * np.tile(scale, 2)
        expected = loaded.model.masks(pyramid, tf.constant(boxes), tf.constant([[1, 1]]))[0]
        np.testing.assert_allclose(one.box_masks, expected, atol=1e-4)

    def test_no_boxes(self, model):
        masks = model.masks(PHOTO, [], [])
        assert len(masks) == 0 and masks.to_coco() == []

    def test_boxes_and_classes_that_cannot_be(self, model):
        with pytest.raises(UserError, match=r"boxes_yxyx\[0\].*40 × 60"):
            model.masks(PHOTO, [[50, 0, 60, 10]], "cat")
        with pytest.raises(UserError, match="'cow'"):
            model.masks(PHOTO, [[5, 0, 20, 10]], ["cow"])

    def test_a_detector_of_boxes_only_gives_none(self, monkeypatch):
        config = tiny.config(image_max_side=64, mode="stage1_boxes")
        loaded = checkpoints.LoadedModel(tiny.model(config), config, tiny.VOCABULARY, ())
        monkeypatch.setattr(checkpoints, "load_model", lambda path: loaded)
        with pytest.raises(UserError, match="detects boxes only"):
            load_checkpoint("run").masks(PHOTO, [[5, 0, 20, 10]], "cat")


class TestEvaluate:
    @pytest.mark.thorough
    def test_scores_of_records(self, run_dir, records):
        results = mx.evaluate(run_dir, records=records, max_detections=9, progress=False)
        assert {"box", "mask", "mask_given_boxes"} <= set(results)
        assert 0 <= results["mask"]["B"]["AP"] <= 1  # bee
        assert results["box"]["A"]["AP"] is not None  # ant
        assert not list(run_dir.glob("evaluation*"))  # results are returned, not written

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({}, r"nothing to evaluate on: .*eval_records"),
            ({"learning_rate": 1.0}, r"learning_rate=1\.0 cannot differ.*max_detections"),
            ({"records": "absent"}, "absent"),
            ({"masks": "sam"}, "^masks=sam is not one of: model, grabcut"),
            ({"max_detections": 0}, "^max_detections=0 must be positive"),
        ],
    )
    def test_what_cannot_be_evaluated(self, run_dir, options, message):
        with pytest.raises(UserError, match=message) as caught:
            mx.evaluate(run_dir, **options)
        assert "--" not in str(caught.value)


class TestBuildAndTrain:
    def test_a_model_is_built_from_its_options(self):
        model = mx.build(tiny.config(), num_classes=4)
        assert model.num_classes == 4
        with pytest.raises(UserError, match="^class_groups=1,2 are 3 classes"):
            mx.build(tiny.config(class_groups=(1, 2)), num_classes=4)

    def test_messages_name_options_as_python_does(self):
        with pytest.raises(UserError, match="^training needs model_dir"):
            mx.train(tiny.config())

    @pytest.mark.parametrize(("signal", "raised"), [(2, KeyboardInterrupt), (15, SystemExit)])
    def test_ctrl_c_is_pythons_own(self, monkeypatch, signal, raised):
        def interrupted(config, dataset):
            raise Interrupted(signal)

        monkeypatch.setattr(training, "train", interrupted)
        with pytest.raises(raised):
            mx.train(tiny.config())


@pytest.mark.parametrize(
    ("command", "python"),
    [
        ("--a=1 is wrong; set --b_c.", "a=1 is wrong; set b_c."),
        ("no --x; try (python -m maskx_tf.train --y=1 …), or --z", "no x; try (python -m "
         "maskx_tf.train --y=1 …), or z"),
        ("make one: maskx export --model_dir=x", "make one: maskx export --model_dir=x"),
        ("a--b and a -- b stay", "a--b and a -- b stay"),
    ],
)  # fmt: skip
def test_only_commands_keep_their_dashes(command, python):
    assert api.in_python(command) == python


def test_coco_results_are_those_of_the_command(model, tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(harness.encode_image(PHOTO, ".png"))
    predict.predict(model, [path], [1], tmp_path / "out", 0.5)
    written = json.loads((pathlib.Path(tmp_path) / "out" / "detections.json").read_text())
    detections = model(path, min_score=0)
    assert written == json.loads(json.dumps(detections.to_coco(image_id=1)))
    rle = mask_ops.encode_rle(detections[0].mask())
    assert written[0]["segmentation"] == rle
