"""Model directories: round trips, class rows matched by name, and errors that say what to do."""

import functools
import json
import re
import shutil

import numpy as np
import pytest
import tensorflow as tf

from maskx_tf import checkpoints
from maskx_tf.assembly import build_model
from maskx_tf.checkpoints import model_dir
from maskx_tf.checkpoints.model_dir import load_set_a
from maskx_tf.data.classes import Vocabulary
from maskx_tf.errors import UserError
from maskx_tf.model import MASK_PARTS
from tests import batches
from tests.harness import thorough

NAMES = ("ant", "bee", "cat", "dog", "eel")
CLASS_VARIABLES = [
    "box_head/cls_kernel",
    "box_head/cls_bias",
    "box_head/box_kernel",
    "box_head/box_bias",
]
IMAGES = tf.cast(tf.random.stateless_uniform([1, 64, 64, 3], (0, 1), 0, 256), tf.uint8)
SIZES = tf.constant([[64.0, 64.0]])


def built(config, num_classes):
    rows = np.load(config.transfer_embeddings) if config.transfer_embeddings else None
    return build_model(config, num_classes, rows)


built_once = functools.cache(built)


def randomized(model, seed):
    rng = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(0, 0.1, variable.shape))
    return model


def save(directory, names=NAMES, mask_class_ids=(2, 4), step=7, seed=0, **changes):
    """A model directory with one checkpoint, and the model in it."""
    config = batches.tiny_config(model_dir=str(directory), **changes)
    checkpoints.save_run(config, Vocabulary.from_names(names), mask_class_ids)
    model = randomized(built(config, len(names)), seed)
    checkpoint = tf.train.Checkpoint(model=model)
    tf.train.CheckpointManager(checkpoint, str(directory), None).save(step)
    return model


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(directory, model) of a saved run on NAMES."""
    directory = tmp_path_factory.mktemp("run")
    return directory, save(directory)


def by_name(model):
    return {v.name.removeprefix("maskx_rcnn/").removesuffix(":0"): v.numpy() for v in model.weights}


def initialized(directory, names, **changes):
    """(weights before, weights after, the report) of a new model started from `directory`."""
    model = randomized(built_once(batches.tiny_config(**changes), len(names)), seed=99)
    before = by_name(model)
    report = checkpoints.initialize(model, Vocabulary.from_names(names), str(directory))
    return before, by_name(model), report


class TestRoundTrip:
    def test_a_loaded_model_gives_the_same_outputs(self, run):
        directory, model = run
        loaded = checkpoints.load_model(str(directory))
        wanted, found = model(IMAGES, SIZES), loaded.model(IMAGES, SIZES)
        assert int(wanted["num_detections"][0]) > 0
        for name, value in wanted.items():
            np.testing.assert_array_equal(found[name], value)

    def test_settings_come_with_it(self, run):
        directory, _ = run
        loaded = checkpoints.load_model(str(directory))
        assert loaded.config == batches.tiny_config(model_dir=str(directory))
        assert loaded.vocabulary.names == NAMES
        assert loaded.mask_class_ids == (2, 4)
        assert json.loads((directory / "mask_classes.json").read_text()) == ["bee", "dog"]

    def test_any_class_name_may_be_in_set_a(self, tmp_path):
        vocabulary = Vocabulary.from_names(["# 1", "a\u2028b", "line\nbreak", "ö"])
        config = batches.tiny_config(model_dir=str(tmp_path))
        checkpoints.save_run(config, vocabulary, (1, 2, 3))
        assert load_set_a(tmp_path, vocabulary) == (1, 2, 3)

    def test_runs_with_set_a_as_text_are_still_read(self, run, tmp_path):
        shutil.copytree(run[0], tmp_path, dirs_exist_ok=True)
        (tmp_path / "mask_classes.json").unlink()
        (tmp_path / "mask_classes.txt").write_text("cat\ndog\n")
        loaded = checkpoints.load_model(str(tmp_path))
        assert loaded.mask_class_ids == (3, 4)
        config = batches.tiny_config(model_dir=str(tmp_path))
        checkpoints.save_run(config, loaded.vocabulary, (3,))  # as a run that goes on does
        assert load_set_a(tmp_path, loaded.vocabulary) == (3,)
        assert not (tmp_path / "mask_classes.txt").exists()

    def test_such_a_text_may_be_empty(self, tmp_path):
        """As a stage 1 without masks wrote it."""
        (tmp_path / "mask_classes.txt").write_text("")
        assert load_set_a(tmp_path, Vocabulary.from_names(NAMES)) == ()

    def test_a_run_without_mask_classes_can_be_loaded(self, run, tmp_path):
        shutil.copytree(run[0], tmp_path, dirs_exist_ok=True)
        (tmp_path / "mask_classes.json").write_text("[]")
        assert checkpoints.load_model(str(tmp_path)).mask_class_ids == ()

    def test_the_latest_checkpoint_or_the_one_that_is_named(self, tmp_path):
        first, second = save(tmp_path, seed=1, step=3), save(tmp_path, seed=2, step=5)
        for path, wanted in (
            (tmp_path, second),
            (tmp_path / "ckpt-3", first),
            (tmp_path / "ckpt-5", second),
        ):
            found = by_name(checkpoints.load_model(str(path)).model)
            for name, value in by_name(wanted).items():
                np.testing.assert_array_equal(found[name], value)

    def test_one_that_a_training_removes_meanwhile(self, tmp_path, monkeypatch):
        """The latest then is taken; a checkpoint that was named is said to be gone."""
        save(tmp_path, step=3)

        def restore(checkpoint, path, real=model_dir.restore):
            for file in sorted(tmp_path.glob("ckpt-3.*")):
                file.rename(file.with_name(file.name.replace("-3", "-4", 1)))
            return real(checkpoint, path)

        monkeypatch.setattr(model_dir, "restore", restore)
        named = str(tmp_path / "ckpt-3")
        assert checkpoints.load_latest(str(tmp_path))[0] == str(tmp_path / "ckpt-4")
        for file in sorted(tmp_path.glob("ckpt-4.*")):
            file.rename(file.with_name(file.name.replace("-4", "-3", 1)))
        with pytest.raises(UserError, match=r"ckpt-3 is gone: .*--keep_checkpoints"):
            checkpoints.load_model(named)


class TestDetectorOptions:
    """A detector means something else under other options, though its weights fit."""

    CHANGES = (
        ({"channel_order": "rgb"}, "--channel_order is bgr there, now rgb"),
        ({"conventions": "detectron"}, "--conventions is aligned there, now detectron"),
        (
            {"anchor_size": 4.0, "mask_rois": "ground_truth"},
            "(--anchor_size is 8.0 there, now 4.0)",
        ),
        (
            {"roi_canonical_size": 224.0, "stride_on": "3x3"},
            "now 3x3; --roi_canonical_size is 56.0",
        ),
        ({"normalization": "group_norm"}, "--normalization is batch_norm there, now group_norm"),
    )

    @pytest.mark.parametrize(("changes", "message"), CHANGES)
    def test_a_frozen_one_needs_its_own(self, run, changes, message):
        with pytest.raises(UserError, match=re.escape(message)) as error:
            initialized(run[0], NAMES, mode="stage2_masks", **changes)
        assert str(error.value).startswith(f"--init_checkpoint={run[0]} was trained with")

    @pytest.mark.parametrize("mode", ["end_to_end", "stage1_boxes"])
    def test_one_that_is_trained_on_is_warned_of(self, run, mode, capsys):
        changes, message = self.CHANGES[0]
        initialized(run[0], NAMES, mode=mode, **changes)
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"warning: {run[0]} was trained with") and message in line

    def test_the_head_and_the_kind_of_batch_norm_are_free(self, run, capsys):
        changes = {
            "mask_filters": 8,
            "normalization": "frozen_batch_norm",
            "mask_rois": "proposals",
        }
        initialized(run[0], NAMES, mode="stage2_masks", **changes)
        assert capsys.readouterr().err == ""


class TestErrors:
    def test_no_checkpoint(self, tmp_path):
        with pytest.raises(UserError, match=f"{tmp_path} holds no checkpoint"):
            checkpoints.load_model(str(tmp_path))
        with pytest.raises(UserError, match="holds no checkpoint"):
            checkpoints.load_model(str(tmp_path / "absent"))

    def test_no_settings_beside_the_checkpoint(self, tmp_path):
        tf.train.Checkpoint(x=tf.Variable(1.0)).write(str(tmp_path / "ckpt-1"))
        with pytest.raises(UserError, match="not a model directory"):
            checkpoints.load_model(str(tmp_path / "ckpt-1"))

    def test_another_vocabulary_in_the_same_directory(self, run):
        directory, _ = run
        config = batches.tiny_config(model_dir=str(directory))
        before = (directory / "train.flags").read_text()
        for names in (NAMES[:4], NAMES[::-1], (*NAMES, "fox")):
            with pytest.raises(UserError, match="another vocabulary"):
                checkpoints.save_run(config, Vocabulary.from_names(names), ())
        assert (directory / "train.flags").read_text() == before
        checkpoints.save_run(config, Vocabulary.from_names(NAMES), (2, 4))  # the same is no error

    @pytest.mark.parametrize(
        "changes",
        [
            {"fpn_filters": 8},  # other shapes
            {"mask_convs": 2},  # variables that the checkpoint lacks
            thorough({"mask_output": "class_agnostic"}),
            thorough({"backbone": "resnet50"}),
        ],
    )
    def test_another_architecture(self, run, changes):
        directory, _ = run
        other = build_model(batches.tiny_config(**changes), len(NAMES))
        path = checkpoints.latest_checkpoint(str(directory))
        with pytest.raises(UserError, match="does not fit the model") as error:
            checkpoints.restore(tf.train.Checkpoint(model=other), path)
        assert "--init_checkpoint" in str(error.value) and "\n" not in str(error.value)

    def test_a_damaged_checkpoint(self, run, tmp_path):
        shutil.copytree(run[0], tmp_path, dirs_exist_ok=True)
        data = next(tmp_path.glob("ckpt-7.data*"))
        data.write_bytes(data.read_bytes()[:100])
        with pytest.raises(UserError, match="ckpt-7 is damaged"):
            checkpoints.restore(tf.train.Checkpoint(model=run[1]), str(tmp_path / "ckpt-7"))


class TestInitialize:
    @pytest.mark.parametrize(
        "names",
        [
            NAMES,
            thorough(NAMES[::-1]),
            ("bee", "ant"),
            ("fox", "eel", "gnu", "ant", "bee", "cat", "dog"),
            ("fox", "gnu"),
        ],
    )
    def test_class_rows_are_matched_by_name(self, run, names):
        directory, source = run
        before, after, _ = initialized(directory, names)
        source = by_name(source)
        for variable in CLASS_VARIABLES:
            np.testing.assert_array_equal(after[variable][0], source[variable][0])  # background
            for row, name in enumerate(names, start=1):
                wanted = source[variable][NAMES.index(name) + 1] if name in NAMES else None
                wanted = before[variable][row] if wanted is None else wanted
                np.testing.assert_array_equal(after[variable][row], wanted)

    def test_everything_else_is_taken_over(self, run):
        directory, source = run
        _, after, report = initialized(directory, ("fox", "bee"))
        for name, value in by_name(source).items():
            if name not in CLASS_VARIABLES:
                np.testing.assert_array_equal(after[name], value)
        assert report == (
            f"Initialised from {directory}: {len(after)} variables taken over, 0 new.\n"
            "  new classes (1): fox\n"
            "  dropped classes (4): ant, cat, dog, eel"
        )

    def test_parts_of_another_shape_or_name_stay_new(self, run):
        directory, source = run
        before, after, report = initialized(
            directory, NAMES, mask_output="class_agnostic", box_fc_units=24, mask_mlp=False
        )
        source = by_name(source)
        new = {n for n in after if n not in source or after[n].shape != source[n].shape}
        assert {n.split("/")[0] for n in new} == {"box_head", "mask_weights"}
        for name, value in after.items():
            np.testing.assert_array_equal(value, (before if name in new else source)[name])
        lines = report.splitlines()
        assert lines[0].endswith(f"{len(after) - len(new)} variables taken over, {len(new)} new.")
        assert lines[1].startswith(f"  new variables ({len(new)}): ")
        dropped = {line.split("/")[0] for line in lines[2].split(": ")[1].split(", ")}
        assert dropped == {"mask_head", "weight_transfer"}
        assert len(lines) == 3

    def test_a_mask_head_that_nothing_trained_stays_new(self, tmp_path):
        """That of stage 1: else every seed of stage 2 would start from the one of its detector."""
        source = by_name(save(tmp_path, mode="stage1_boxes"))
        before, after, report = initialized(tmp_path, NAMES, mode="stage2_masks", seed=7)
        new = {name for name in after if name.split("/")[0] in MASK_PARTS}
        for name, value in after.items():
            np.testing.assert_array_equal(value, (before if name in new else source)[name])
        kernels = [name for name in new if "kernel" in name]
        assert kernels and all((after[name] != source[name]).any() for name in kernels)
        assert f"variables taken over, {len(new)} new." in report

    def test_class_specific_masks_are_matched_by_name_too(self, tmp_path):
        source = by_name(save(tmp_path, mask_output="class_specific"))
        before, after, _ = initialized(tmp_path, ("eel", "fox"), mask_output="class_specific")
        for name in ("mask_weights/kernel", "mask_weights/bias"):
            np.testing.assert_array_equal(after[name][1], source[name][5])
            np.testing.assert_array_equal(after[name][2], before[name][2])

    def test_embeddings_are_those_of_the_new_run(self, tmp_path):
        """They come from a file in vocabulary order; those of the source are not taken over."""
        tables = []
        for index in range(2):
            tables.append(np.random.default_rng(index).normal(size=(5, 6)).astype(np.float32))
            np.save(tmp_path / f"{index}.npy", tables[-1])

        def options(index):
            path = str(tmp_path / f"{index}.npy")
            return {"transfer_input": "embedding", "transfer_embeddings": path}

        save(tmp_path / "run", **options(0))
        _, after, _ = initialized(tmp_path / "run", NAMES[::-1], **options(1))
        np.testing.assert_array_equal(after["embeddings"][1:], tables[1])
        loaded = checkpoints.load_model(str(tmp_path / "run"))
        np.testing.assert_array_equal(loaded.model.embeddings[1:], tables[0])

    def test_a_missing_source(self, tmp_path):
        with pytest.raises(UserError, match="holds no checkpoint"):
            initialized(tmp_path, NAMES)
