"""The demo: what it declares, what it does again, what it says; slow: a whole small one."""

import dataclasses
import json
import os
import pathlib
import types

import numpy as np
import pytest
from PIL import Image

from maskx_tf import config, demo
from maskx_tf.errors import UserError
from maskx_tf.evaluation import pairs
from maskx_tf.study import execution
from maskx_tf.study.plan import Plan
from maskx_tf.study.store import Results
from tests import harness
from tf_records.shapes import dataset as shapes


def evaluation(a: float, b: float) -> dict:
    subsets = {"A": {"AP": a}, "B": {"AP": b}}
    point = {"score": 0.5, "box_iou": 0.5, "all": {"recall": 0.7, "precision": 0.9}}
    boxes = {"A": {"AP": 0.61}, "B": {"AP": 0.6}}
    shared = {"shared": 0.7, "IoU_shared": 0.7, "ceiling_shared": 0.5}
    return {
        "mask": subsets,
        "mask_given_boxes": {"A": {"AP": a}, "B": {"AP": b, **shared}},
        "box": boxes,
        "operating_point": point,
    }


@pytest.fixture
def plan(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # configs/ is that of the package
    return Plan(demo.study_of(str(tmp_path / "a demo"), ["0", "3"]))


def test_everything_is_in_the_directory_of_its_seed(plan, tmp_path):
    runs = {run.key: run for run in plan.runs}
    mask_x, detector = runs["seed3/set_a/cls_box"].config, plan.detector(3).config
    seed_3 = tmp_path / "a demo" / "seed3"
    assert mask_x.model_dir == str(seed_3 / "cls_box")
    assert mask_x.init_checkpoint == str(seed_3 / "detector")
    assert mask_x.mask_classes == str(seed_3 / "data" / "set_a.txt")
    assert runs["seed3/all/oracle"].config.mask_classes == "all"
    assert mask_x.seed == detector.seed == 3
    records = (str(seed_3 / "data" / "records" / "train"),)
    assert mask_x.train_records == detector.train_records == records


def test_the_mask_heads_fit_the_detector_of_the_demo(plan):
    """Refused only when stage 2 begins: minutes after the start of the demo."""
    detector = plan.detector(0).config
    for run in plan.runs:
        for name in (*config.names(scope="detector"), "horizontal_flip"):
            assert getattr(run.config, name) == getattr(detector, name), name


def test_the_data_are_made_in_a_directory_with_a_space(plan, monkeypatch, tmp_path):
    commands = []

    def run(command):
        commands.append(command[1:])
        path = tmp_path / "a demo" / "seed0" / "data" / "word_vectors.txt"
        path.parent.mkdir(parents=True)
        path.touch()
        return types.SimpleNamespace(returncode=0)

    monkeypatch.setattr(execution.subprocess, "run", run)
    for _ in range(2):
        execution.prepare(plan, 0)
    data = tmp_path / "a demo" / "seed0" / "data"
    assert commands == [["-m", "tf_records.shapes", f"--output_dir={data}", "--seed=0"]]


def test_only_the_oracle_s_row_is_left_out_without_the_flag(plan):
    groups = execution.missing_groups(plan, Results(pathlib.Path("none")), set(demo.ROWS), {0})
    assert [run.key for group in groups for run in group.runs] == [
        "seed0/set_a/class_agnostic",
        "seed0/set_a/cls_box",
    ]


def test_the_export_is_made_again_after_another_training(tmp_path, monkeypatch):
    commands = []

    def run(command):
        commands.append(command[2])
        (tmp_path / "pictures").mkdir(exist_ok=True)
        if command[2] == "maskx_tf.predict":
            (tmp_path / "pictures" / "detections.json").touch()
        return types.SimpleNamespace(returncode=0)

    monkeypatch.setattr(demo.subprocess, "run", run)
    monkeypatch.setattr(demo.pairs, "picture", lambda runs, count: None)
    both = ["export.command", "maskx_tf.predict"]
    demo.use(tmp_path, newest=1.0)
    assert commands == both
    demo.use(tmp_path, newest=1.0)
    assert commands == both
    os.utime(tmp_path / "pictures" / "detections.json", (5, 5))
    demo.use(tmp_path, newest=6.0)
    assert commands == 2 * both
    monkeypatch.setattr(demo.subprocess, "run", lambda command: types.SimpleNamespace(returncode=1))
    with pytest.raises(UserError, match="export.command"):
        demo.use(tmp_path, newest=np.inf)


def test_table():
    evaluations = {"class_agnostic": evaluation(0.107, 0.10), "cls_box": evaluation(0.179, 0.15)}
    titles = {"class_agnostic": "class-agnostic baseline", "cls_box": "Mask^X R-CNN"}
    assert demo.gain(evaluations) == pytest.approx(0.5)
    first, *rest = demo.table(titles, evaluations).splitlines()
    assert all(part in first for part in ("61.0 / 60.0", "70.0 %", "90.0 %"))
    assert rest == [
        "                                  mask AP       given boxes",
        "                                 A        B        A        B",
        "class-agnostic baseline       10.7     10.0     10.7     10.0",
        "Mask^X R-CNN                  17.9     15.0     17.9     15.0",
        "Gain of Mask^X on B, classes without any mask: +50 %",
        "In torn pairs of B, boxes given: mean IoU 70.0; without seeing the class at most 50.0 can "
        "be reached.",
    ]


@pytest.mark.parametrize("seed", ["x", "-1", ""])
def test_a_seed_that_is_no_number_is_named(seed, tmp_path):
    with pytest.raises(UserError, match=f"--seeds: '{seed}'"):
        demo.study_of(str(tmp_path), ["0", seed])


def test_a_pair_is_two_detected_objects_in_nearly_the_same_box():
    box = np.array([10.0, 10, 50, 50], np.float32)
    boxes = np.array([box, box + np.float32([2, 2, 0, 0]), box + 30, np.zeros(4)], np.float32)
    example = {
        "image": np.zeros((96, 96, 3), np.uint8),
        "image_size": np.array([96.0, 96.0]),
        "boxes_yxyx": boxes,
        "classes": np.array([1, 2, 3, 0]),
        "masks": np.ones((4, 28, 28), np.uint8),
        "detection_boxes": boxes[[0, 1, 2, 2, 3]],
        "detection_classes": np.array([1, 2, 2, 3, 0]),
        "detection_scores": np.array([0.9, 0.8, 0.7, 0.4, 0.0]),
        "masks0": np.full((5, 28, 28), 0.2, np.float32),
        "masks1": np.full((5, 28, 28), 0.9, np.float32),
        "windows0": boxes[[0, 1, 2, 2, 3]],
        "windows1": boxes[[0, 1, 2, 2, 3]] + np.float32([-5, -5, 5, 5]),
    }
    _, objects = pairs.detected(example, models=2)
    assert [(item.class_id, item.score) for item in objects] == [(1, 0.9), (2, 0.8)]
    truth, first, second = objects[0].masks
    assert truth.sum() == 40 * 40 and second.sum() == 50 * 50 and first.sum() == 0
    assert pairs.is_pair(*objects) and not pairs.is_pair(
        objects[0], objects[1]._replace(box=boxes[2])
    )


@pytest.mark.slow
def test_a_small_demo_from_the_data_to_the_pictures(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("PYTHONPATH", str(harness.REPOSITORY))
    monkeypatch.chdir(tmp_path)
    study = demo.study_of("small", ["0"])
    steps = ("--train_steps=2", "--lr_steps=", "--warmup_steps=0", "--batch_size=2")
    plan = Plan(dataclasses.replace(study, flags=(*study.flags, *steps)))
    data = pathlib.Path("small", "seed0", "data")
    shapes.generate(str(data), train_images=4, val_images=3, workers=1)
    results, rows = Results(study.results_dir / "results.json"), {*demo.ROWS, "oracle"}
    demo.train(plan, results, rows)
    assert "step 2/2" in capfd.readouterr().err
    demo.use(pathlib.Path("small", "seed0"), 0.0)
    predicted = json.loads(pathlib.Path("small/seed0/pictures/detections.json").read_text())
    assert {result["image_id"] for result in predicted} <= {1, 2, 3}
    with Image.open("small/seed0/pictures/overlays/000001.jpg") as picture:
        assert picture.size == (480, 480)
    text = demo.summary(plan, results, rows)
    assert "oracle (all masks)" in text and "w_cls 0." in text
    assert not list(pathlib.Path("small").rglob("*.bin"))  # no features are kept
