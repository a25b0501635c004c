"""Training runs: what is trained in each mode, resuming, logs, failures."""

import dataclasses
import gc
import json
import pathlib
import re
import shutil

import numpy as np
import pytest
import tensorflow as tf

from maskx_tf import checkpoints, training
from maskx_tf.assembly import build_model
from maskx_tf.checkpoints.model_dir import holds_averages
from maskx_tf.data.classes import Vocabulary, read_names
from maskx_tf.data.records.manifest import Manifest
from maskx_tf.errors import UserError
from maskx_tf.layers import roi_align
from maskx_tf.model import trained_variables
from maskx_tf.training import devices, loop, scaling
from maskx_tf.training.optimizer import build_optimizer
from maskx_tf.training.steps import Trainer
from maskx_tf.training.validation import Evaluator
from tests import batches, oracles, runs

BOX_PARTS = {"backbone", "fpn", "rpn", "box_head"}
MASK_PARTS = {"mask_head", "weight_transfer"}
LINE = re.compile(
    r"step (\d)/(\d)  loss [\d.]+  (?:(?:rpn_score|rpn_box|class|box|mask) [\d.e-]+  )+"
    r"learning_rate \d\.\de-0\d  [\d.]+ steps/s  [\d.]+ images/s  ETA [\d:]+ (?:s|min)"
)


def in_memory(config, seed=0):
    """A trainer that sees the same two images again and again."""
    model = build_model(config, batches.NUM_CLASSES)
    labels = batches.to_tensors(batches.random_labels(seed))
    dataset = tf.data.Dataset.from_tensors((batches.random_features(seed), labels)).repeat()
    return Trainer(model, build_optimizer(config), dataset, tf.distribute.get_strategy())


@pytest.mark.parametrize("optimizer", ["sgd", pytest.param("adamw", marks=pytest.mark.thorough)])
def test_the_loss_falls(optimizer):
    rate = {"sgd": 0.02, "adamw": 0.003}[optimizer]
    config = batches.tiny_config(
        optimizer=optimizer, learning_rate=rate, warmup_steps=5, pixel_std=(57.0, 57.0, 57.0)
    )
    trainer = in_memory(config)
    first = trainer.train(tf.constant(2))
    assert list(first) == ["loss", "rpn_score", "rpn_box", "class", "box", "mask", "learning_rate"]
    parts = [first[name] for name in ("rpn_score", "rpn_box", "class", "box", "mask")]
    assert first["loss"] == pytest.approx(sum(parts), rel=1e-5)
    trainer.train(tf.constant(30))
    last = trainer.train(tf.constant(2))
    assert last["loss"] < 0.7 * first["loss"]
    assert last["class"] < first["class"] and last["mask"] < first["mask"]
    assert int(trainer.optimizer.iterations) == 34
    assert last["learning_rate"] == pytest.approx(rate)


@pytest.mark.parametrize("clip_norm", [pytest.param(0.0, marks=pytest.mark.thorough), 1e-3])
def test_rois_that_share_a_row_are_added_up_before_clipping(clip_norm):
    """As those of a class-agnostic mask do: the norm of a part from each is not that of the sum."""
    config = batches.tiny_config(
        mode="stage2_masks",
        mask_output="class_agnostic",
        clip_norm=clip_norm,
        learning_rate=1.0,
        bias_learning_rate_factor=1.0,
        weight_decay=0.0,
        warmup_steps=0,
    )
    trainer = in_memory(config)
    before = [v.numpy() for v in trainer.trained]
    trainer.train(tf.constant(1))
    steps = [v.numpy() - old for v, old in zip(trainer.trained, before, strict=True)]
    seen = trainer.guard.history(tf.distribute.get_strategy())[..., -1].max()
    assert float(tf.linalg.global_norm(steps)) == pytest.approx(clip_norm or seen, rel=1e-3)


@pytest.mark.parametrize(
    ("mode", "parts"),
    [
        ("end_to_end", BOX_PARTS | MASK_PARTS),
        ("stage1_boxes", BOX_PARTS),
        ("stage2_masks", MASK_PARTS),
    ],
)
def test_what_a_mode_trains(mode, parts):
    model = build_model(batches.tiny_config(mode=mode, frozen_stages=1), 3)
    trained = trained_variables(model)
    assert {v.name.split("/")[1] for v in trained} == parts
    wanted = [v for v in model.trainable_variables if v.name.split("/")[1] in parts]
    assert len(trained) == len(wanted) and not any("stem" in v.name for v in trained)


def test_gradients_on_the_cpu_are_exact_where_rois_overlap():
    """Hundreds of RoIs on a few cells: TensorFlow's threads would lose each other's updates."""
    if tf.config.list_physical_devices("GPU"):
        pytest.skip("the gradient is computed on the GPU")
    devices.make_strategy(0)
    rng = np.random.default_rng(0)
    boxes = rng.uniform([4, 4, 56, 56], [8, 8, 60, 60], (256, 4)).astype(np.float32)
    features = tf.zeros([1, 2, 2, 256])
    images = np.zeros(256, np.int32)
    upstream = rng.uniform(0, 1, (256, 14, 14, 256)).astype(np.float32)

    @tf.function
    def gradient(upstream):  # an argument: a constant's gradient would be computed once
        with tf.GradientTape() as tape:
            tape.watch(features)
            crops = roi_align.roi_align(features, boxes, images, 14, 32, samples=1)
            return tape.gradient(crops, features, upstream)

    first = gradient(tf.constant(upstream)).numpy()
    for _ in range(40):
        np.testing.assert_array_equal(gradient(tf.constant(upstream)), first)
    plain = np.zeros([2, 2])
    for box, values in zip(boxes, upstream, strict=True):
        rows, columns = oracles.roi_align_weights((2, 2), box, 14, 32, samples=1)
        plain += rows.T @ values[..., 0] @ columns
    np.testing.assert_allclose(first[0, ..., 0], plain, rtol=1e-3)


@pytest.fixture(scope="module")
def config(stage_1):
    """The options of the run of 5 steps that the tests share; one that goes on takes a copy."""
    return checkpoints.load_model(str(stage_1)).config


@pytest.fixture
def copied(config, stage_1, tmp_path):
    """The options of a copy of that run, in a directory that TensorFlow takes for a pattern."""
    shutil.copytree(stage_1, tmp_path / "lr[0.08]")
    return config.replace(model_dir=str(tmp_path / "lr[0.08]"))


def contents(model_dir):
    """The bytes of the files of a run, TensorBoard's aside."""
    files = [path for path in pathlib.Path(model_dir).iterdir() if path.is_file()]
    return {path.name: path.read_bytes() for path in files if "events" not in path.name}


def weights(path):
    model = checkpoints.load_model(str(path)).model
    return {v.name.removeprefix("maskx_rcnn/"): v.numpy() for v in model.weights}


def changed_parts(before, after):
    changed = [name for name, value in after.items() if not np.array_equal(value, before[name])]
    return {name.split("/")[0] for name in changed}


class TestRun:
    def test_what_it_leaves(self, config, stage_1):
        files = {path.name for path in stage_1.iterdir()}
        assert {"train.flags", "vocabulary.json", "mask_classes.json", "checkpoint"} <= files
        assert {"ckpt-5.index", "ckpt-2.index"} <= files
        assert list((stage_1 / "train").glob("events*"))
        loaded = checkpoints.load_model(str(stage_1))
        assert loaded.config == config and loaded.vocabulary.num_classes == 72
        assert len(loaded.mask_class_ids) == 36

    def test_progress_lines(self, stage_1):
        output = (stage_1 / "stderr.txt").read_text()
        lines = [line for line in output.splitlines() if line.startswith("step ")]
        found = [LINE.fullmatch(line) for line in lines]
        assert all(found), lines
        assert [(m[1], m[2]) for m in found] == [("2", "5"), ("4", "5"), ("5", "5")]
        assert "mask " not in lines[0]

    def test_tensorboard_has_the_losses(self, stage_1):
        (path,) = (stage_1 / "train").glob("events*")
        points = {}
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                points.setdefault(value.tag, []).append(event.step)
        losses = ("loss", "rpn_score", "rpn_box", "class", "box")
        for name in (*losses, "learning_rate", "images_per_second"):
            assert points[name] == [2, 4, 5]

    def test_stage_1_trains_the_detector_alone(self, config, stage_1):
        fresh = build_model(config, 72)
        before = {v.name.removeprefix("maskx_rcnn/"): v.numpy() for v in fresh.weights}
        assert changed_parts(before, weights(stage_1)) == BOX_PARTS

    def test_the_same_command_resumes(self, copied, toy_losses, caplog):
        config = copied.replace(train_steps=8)
        output = runs.train(config)
        assert f"Resuming {config.model_dir}/ckpt-5 at step 5.\n" in output
        steps = re.findall(r"^step (\d)/8", output, re.MULTILINE)
        assert steps == ["6", "8"]  # loops end at multiples of the interval again
        assert checkpoints.latest_checkpoint(config.model_dir).endswith("ckpt-8")
        found = pathlib.Path(config.model_dir).glob("ckpt-*.index")
        assert len(list(found)) == config.keep_checkpoints
        caplog.clear()
        assert f"{config.model_dir} is already trained to step 8." in runs.train(config)
        gc.collect()  # TensorFlow warns of values that were not restored when it forgets them
        assert caplog.messages == []

    def test_checkpoints_are_not_further_apart_than_asked(self, copied, toy_losses):
        """Whatever the interval of summaries, and after a resume at any step."""
        config = copied.replace(
            train_steps=13, summary_interval=4, checkpoint_interval=3, keep_checkpoints=9
        )
        output = runs.train(config)
        paths = pathlib.Path(config.model_dir).glob("ckpt-*.index")
        saved = sorted(int(path.stem.split("-")[1]) for path in paths)
        assert saved == [2, 4, 5, 6, 9, 12, 13]
        ends = re.findall(r"^step +(\d+)/13", output, re.MULTILINE)
        assert ends == ["6", "8", "9", "12", "13"]

    def test_resuming_with_another_architecture_is_an_error(self, copied):
        before = contents(copied.model_dir)
        with pytest.raises(UserError, match=r"\(--fpn_filters is 16 there, now 8\)"):
            runs.train(copied.replace(train_steps=9, fpn_filters=8))
        assert contents(copied.model_dir) == before

    @pytest.mark.parametrize("train_steps", [1, 20])
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            (
                {"mask_classes": "set_b.txt"},
                "set A, --mask_classes, has 36 classes there, now 36, only there: .*, only now: ",
            ),
            ({"mask_classes": "none"}, "has 36 classes there, now 0, only there: "),
            ({"image_min_side": 32, "seed": 3}, "--seed is 0 there, now 3; --image_min_side is 64"),
            ({"init_checkpoint": "x"}, "--init_checkpoint is empty there, now x"),
        ],
    )
    def test_what_a_run_means_stays(self, copied, shapes_data, train_steps, changes, message):
        """Also where nothing is left to be trained."""
        config = copied.replace(train_steps=train_steps, **changes)
        if config.mask_classes == "set_b.txt":
            config = config.replace(mask_classes=str(shapes_data / "set_b.txt"))
        before = contents(config.model_dir)
        with pytest.raises(UserError, match=message) as error:
            runs.train(config)
        assert "another --model_dir" in str(error.value) and "\n" not in str(error.value)
        assert contents(config.model_dir) == before

    def test_nothing_is_written_where_nothing_is_trained(self, copied):
        before = contents(copied.model_dir)
        output = runs.train(copied.replace(train_steps=1, learning_rate=0.5))
        assert "already trained to step" in output
        assert contents(copied.model_dir) == before

    @pytest.mark.thorough
    def test_an_evaluation_that_was_cut_off_is_made_up_for(
        self, shapes_data, tmp_path, monkeypatch, toy_losses
    ):
        config = runs.config(shapes_data, tmp_path, train_steps=2, eval_interval=1).replace(
            eval_records=(str(shapes_data / "records" / "val"),)
        )
        calls = []

        def evaluate(self, num_steps):
            calls.append(num_steps)
            if len(calls) in (1, 3):
                raise KeyboardInterrupt
            return {}

        monkeypatch.setattr(Evaluator, "evaluate", evaluate)
        monkeypatch.setattr(Evaluator, "results", property(lambda self: {"call": len(calls)}))
        validation = tmp_path / loop.VALIDATION
        with pytest.raises(KeyboardInterrupt):
            training.train(config)
        assert not validation.exists()
        with pytest.raises(KeyboardInterrupt):
            training.train(config)
        assert json.loads(validation.read_text()) == {"step": 1, "call": 2}
        results = training.train(config)
        assert results == {"call": 4}
        assert json.loads(validation.read_text()) == {"step": 2, "call": 4}
        before = contents(tmp_path)
        training.train(config)
        assert contents(tmp_path) == before and len(calls) == 4

    @pytest.mark.thorough
    def test_averages_may_begin_and_end_in_a_resumed_run(self, copied, toy_losses):
        path = copied.model_dir
        output = runs.train(copied.replace(train_steps=6, ema_decay=0.9))
        assert "resumes with --ema_decay=0.9, was 0.0." in output
        assert holds_averages(f"{path}/ckpt-6")
        assert not holds_averages(f"{path}/ckpt-5")
        runs.train(copied.replace(train_steps=7, ema_decay=0.0))
        assert not holds_averages(f"{path}/ckpt-7")

    @pytest.mark.thorough
    def test_schedule_and_bookkeeping_may_change(self, copied, shapes_data, tmp_path, toy_losses):
        (tmp_path / "a.txt").write_text((shapes_data / "set_a.txt").read_text())
        changed = scaling.scaled(
            copied.replace(train_steps=8, lr_steps=(6,), warmup_steps=0), 4
        ).replace(
            vocabulary=f"{copied.model_dir}/vocabulary.json",
            mask_classes=str(tmp_path / "a.txt"),  # the same names
            keep_checkpoints=1,
            train_steps=6,
            num_gpus=0,
        )
        output = runs.train(changed)
        assert "resumes with --lr_steps=3, was 60000,80000." in output
        assert "resumes with --batch_size=4, was 2." in output and "vocabulary=" not in output
        assert checkpoints.load_model(changed.model_dir).config == changed

    def test_masks_that_the_records_lack_are_named(self, shapes_data, tmp_path, toy_losses):
        config = runs.config(shapes_data, tmp_path / "run", train_steps=1)
        with pytest.raises(UserError, match="leaves the mask head untrained"):
            runs.train(config.replace(mask_classes="none"))
        assert not pathlib.Path(config.model_dir).exists()
        shutil.copytree(shapes_data / "records" / "train", tmp_path / "records")
        manifest = Manifest.load(tmp_path / "records")
        bare = next(n for n in read_names(shapes_data / "set_a.txt") if n in manifest.class_counts)
        counts = {**manifest.class_counts, bare: (1, 0)}
        dataclasses.replace(manifest, class_counts=counts).save(tmp_path / "records")
        output = runs.train(config.replace(train_records=(str(tmp_path / "records"),)))
        table, warning = output.index("parameters, "), output.index(f"but no mask: {bare}.")
        assert table < warning < output.index("step 1/1")

    def test_another_vocabulary_is_an_error(self, copied, tmp_path):
        names = reversed(Vocabulary.load(f"{copied.model_dir}/vocabulary.json").names)
        (tmp_path / "names.txt").write_text("\n".join(names))
        config = copied.replace(train_steps=9, vocabulary=str(tmp_path / "names.txt"))
        with pytest.raises(UserError, match="another vocabulary"):
            runs.train(config)

    def test_stage_2_trains_the_mask_head_alone_and_evaluates(self, stage_1, shapes_data, tmp_path):
        config = runs.config(
            shapes_data,
            tmp_path,
            mode="stage2_masks",
            init_checkpoint=str(stage_1),
            train_steps=4,
            eval_records=(str(shapes_data / "records" / "val"),),
            panel_images=2,
        )
        results = training.train(config)
        assert {"box", "mask", "mask_given_boxes"} <= results.keys()
        validation = json.loads((tmp_path / loop.VALIDATION).read_text())
        assert validation == {"step": 4, **results}
        assert changed_parts(weights(stage_1), weights(tmp_path)) == MASK_PARTS
        assert list((tmp_path / "validation").glob("events*"))


class TestUserErrors:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"model_dir": ""}, "needs --model_dir"),
            ({"train_records": ()}, "needs --train_records"),
            ({"mode": "stage2_masks"}, "needs the detector of stage 1"),
            ({"num_gpus": 99}, "TensorFlow sees"),
            ({"init_checkpoint": "/absent"}, "/absent holds no checkpoint"),
            ({"train_records": ("/absent",)}, "/absent"),
        ],
    )
    def test_what_is_missing_is_named(self, shapes_data, tmp_path, changes, message):
        config = runs.config(shapes_data, tmp_path / "run", train_steps=2).replace(**changes)
        with pytest.raises(UserError, match=message):
            runs.train(config)
