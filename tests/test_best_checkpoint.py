"""The best checkpoint of a run, and when its patience ends: the same, wherever it is killed."""

import json
import os
import pathlib

import pytest

from maskx_tf import checkpoints, training
from maskx_tf.checkpoints import best
from maskx_tf.checkpoints.listing import latest, resolved
from maskx_tf.config import Config
from maskx_tf.errors import UserError
from maskx_tf.training.validation import Evaluator
from tests import runs, tiny

VALUES = {1: 0.25, 2: 0.5, 3: 0.25, 4: 0.5, 5: 0.125, 6: 0.75}


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def make_run(directory, **changes):
    """A run's options, and files in place of its checkpoints."""
    directory.mkdir(exist_ok=True)
    for step in VALUES:
        for end in ("index", "data-00000-of-00001"):
            (directory / f"ckpt-{step}.{end}").write_text(f"{end} of step {step}")
    options = {"keep_best": "mask_ap_b", "eval_interval": 1, "train_steps": 9, "num_gpus": 0}
    return Config(model_dir=str(directory), **options | changes)


def evaluate(config, step):
    scalars = {"mask/B/AP": VALUES[step], "box/all/AP50": 1 - VALUES[step]}
    best.update(config, tiny.VOCABULARY, tiny.SET_A, step, scalars)


def contents(directory):
    return {path.name: path.read_bytes() for path in pathlib.Path(directory).iterdir()}


def test_the_first_of_the_best_is_kept(tmp_path):
    config = make_run(tmp_path / "run")
    for step in (1, 2, 3, 4):
        evaluate(config, step)
        for path in (tmp_path / "run").glob(f"ckpt-{step}.*"):
            path.unlink()
    assert latest(resolved(f"{config.model_dir}@best")) == f"{config.model_dir}/best/ckpt-2"
    assert checkpoints.latest_checkpoint(f"{config.model_dir}@best").endswith("best/ckpt-2")
    assert set(contents(tmp_path / "run/best")) == {
        *("ckpt-2.index", "ckpt-2.data-00000-of-00001", "checkpoint", "best.json"),
        *("train.flags", "vocabulary.json", "mask_classes.json"),
    }
    values = json.loads((tmp_path / "run/best/best.json").read_text())["values"]
    assert values == {"1": 0.25, "2": 0.5, "3": 0.25, "4": 0.5}


def test_any_value_of_the_evaluation_may_be_named(tmp_path):
    config = make_run(tmp_path / "run", keep_best="box_ap50_all")
    for step in (1, 2, 5):
        evaluate(config, step)
    assert latest(tmp_path / "run/best").endswith("ckpt-5")
    with pytest.raises(UserError, match=r"mask_ap_a .*box_ap50_all, mask_ap_b"):
        evaluate(config.replace(keep_best="mask_ap_a"), 6)


@pytest.mark.parametrize(("patience", "end"), [(0, None), (1, 3), (2, 4), (3, 5), (4, None)])
def test_patience_counts_evaluations_that_are_no_better(tmp_path, patience, end):
    config = make_run(tmp_path / "run", patience=patience)
    exhausted = []
    for step in VALUES:
        evaluate(config, step)
        if best.is_exhausted(config):
            exhausted.append(step)
    assert exhausted[:1] == ([end] if end else [])


def test_a_kill_anywhere_changes_nothing(tmp_path, monkeypatch):
    """What is cut off is done again, as the loop does it."""
    whole = make_run(tmp_path / "whole")
    for step in VALUES:
        evaluate(whole, step)
    calls = {"left": -1}

    def dying(function):
        def call(*arguments, **options):
            calls["left"] -= 1
            if calls["left"] == -1:
                raise KeyboardInterrupt
            return function(*arguments, **options)

        return call

    for name in ("write_atomically", "save_run", "files_of", "steps_of"):
        monkeypatch.setattr(best, name, dying(getattr(best, name)))
    monkeypatch.setattr(best.os, "link", dying(best.os.link))
    kills = 0
    for deadly in range(9):
        config = make_run(tmp_path / f"killed {deadly}")
        for step in VALUES:
            calls["left"] = deadly
            try:
                evaluate(config, step)
            except KeyboardInterrupt:
                kills += 1
                calls["left"] = 100
                evaluate(config, step)
            assert latest(f"{config.model_dir}/best")
        found, expected = contents(f"{config.model_dir}/best"), contents(tmp_path / "whole/best")
        for each in (found, expected):
            each.pop("train.flags")  # names the directory
        assert found == expected
    assert kills > 20


def test_who_goes_back_evaluates_later_steps_anew(tmp_path):
    config = make_run(tmp_path / "run", patience=3)
    for step in VALUES:
        evaluate(config, step)
    assert not best.is_exhausted(config)
    evaluate(config, 3)
    values = json.loads((tmp_path / "run/best/best.json").read_text())["values"]
    assert list(values) == ["1", "2", "3", "6"]


def test_a_file_system_without_links_gets_copies(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError

    monkeypatch.setattr(best.os, "link", refuse)
    evaluate(make_run(tmp_path / "run"), 1)
    assert (tmp_path / "run/best/ckpt-1.index").read_text() == "index of step 1"


@pytest.mark.parametrize(
    "options",
    [
        {"keep_best": "ap"},
        {"keep_best": "mask_ap"},
        {"keep_best": "mask_ap_b", "mode": "stage1_boxes"},
        {"patience": 2},
        {"patience": 2, "keep_best": "box_ap_all"},
    ],
)
def test_options_that_can_mean_nothing_are_refused(options):
    with pytest.raises(UserError, match="keep_best"):
        Config(**options)


def test_a_directory_of_that_name_is_itself(tmp_path):
    (tmp_path / "x@best").mkdir()
    assert resolved(f"{tmp_path}/x@best") == f"{tmp_path}/x@best"
    assert resolved("runs/a/ckpt-5") == "runs/a/ckpt-5"


@pytest.mark.thorough
def test_a_run_ends_by_its_patience_and_its_best_can_be_used(
    shapes_data, tmp_path, monkeypatch, toy_losses
):
    records = (str(shapes_data / "records" / "val"),)
    options = {"eval_interval": 1, "keep_best": "mask_ap_b", "patience": 2, "train_steps": 9}
    config = runs.config(shapes_data, tmp_path / "run", checkpoint_interval=9, **options)
    config = config.replace(eval_records=records)
    steps = []

    def evaluate_step(self, num_steps):
        steps.append(len(steps) + 1)
        if len(steps) == 3:
            steps.pop()
            monkeypatch.setattr(Evaluator, "evaluate", without_kill)
            raise KeyboardInterrupt
        return {}

    def without_kill(self, num_steps):
        steps.append(len(steps) + 1)
        return {}

    def results(self):
        return {"mask": {name: {"AP": VALUES[steps[-1]]} for name in ("A", "B", "all")}}

    monkeypatch.setattr(Evaluator, "evaluate", evaluate_step)
    monkeypatch.setattr(Evaluator, "results", property(results))
    with pytest.raises(KeyboardInterrupt):
        training.train(config)
    training.train(config)
    assert steps == [1, 2, 3, 4]
    assert best.is_finished(config)
    assert latest(config.model_dir).endswith("ckpt-4")
    path, loaded = checkpoints.load_latest(f"{config.model_dir}@best")
    assert path == f"{config.model_dir}/best/ckpt-2"
    of_step = checkpoints.load_model(f"{config.model_dir}/ckpt-2").model
    for one, other in zip(loaded.model.weights, of_step.weights, strict=True):
        assert (one.numpy() == other.numpy()).all()
    training.train(config)
    assert steps == [1, 2, 3, 4]  # the same command again
    training.train(config.replace(patience=3))
    assert steps == [1, 2, 3, 4, 5]
