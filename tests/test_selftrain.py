"""Rounds of self-training: what is refused, the table, whole rounds with a kill in the middle."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from maskx_tf import checkpoints, selftrain, training
from maskx_tf import config as config_lib
from maskx_tf.config import Config
from maskx_tf.data.classes import Vocabulary
from maskx_tf.data.records.manifest import Manifest, find_shards
from maskx_tf.data.records.schema import read_records
from maskx_tf.errors import UserError
from maskx_tf.system import subcommand
from tests import commands, harness, runs

PETS = Vocabulary.from_names(("cat", "dog", "bird"))


def evaluation(*values):
    a, b, given_a, given_b = ({"AP": value} for value in values)
    return {"mask": {"A": a, "B": b}, "mask_given_boxes": {"A": given_a, "B": given_b}}


def test_table():
    first = {"round": 0, "evaluation": evaluation(0.5, 0.25, 0.75, None)}
    second = {
        "round": 1,
        "evaluation": evaluation(0.5, 0.375, 0.75, 0.5),
        "boxes_and_masks": {"dog": (300, 150), "bird": (100, 10)},
    }
    assert selftrain.table([first, second]).splitlines() == [
        "                                    mask AP     given boxes",
        "round              masks kept      A      B        A      B",
        "    0                       –   50.0   25.0     75.0      –",
        "    1        160 of 400 (40%)   50.0   37.5     75.0   50.0",
        "Fewest masks kept in the last round: bird 10 of 100 (10%), dog 150 of 300 (50%)",
    ]
    second["evaluation"] = {}
    assert selftrain.table([first, second]).splitlines()[3].split()[-4:] == ["–"] * 4


@pytest.mark.parametrize(
    ("changes", "set_a", "named"),
    [
        ({"mode": "stage1_boxes"}, (1,), "boxes only"),
        ({}, (1, 2, 3), "all 3 classes"),
        ({"train_records": ()}, (1,), "not on records"),
    ],
)
def test_runs_without_anything_to_label_are_refused(tmp_path, changes, set_a, named):
    config = Config(model_dir=str(tmp_path / "run"), train_records=("records",))
    checkpoints.save_run(config.replace(**changes), PETS, set_a)
    with pytest.raises(UserError, match=named):
        selftrain.Rounds(str(tmp_path / "run"), str(tmp_path / "out"), [])
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def run(shapes_data, stage_1, tmp_path_factory):
    """A run of 3 steps of stage 2 on the shared stage 1."""
    directory = tmp_path_factory.mktemp("selftrain") / "run"
    options = runs.config(
        shapes_data,
        directory,
        mode="stage2_masks",
        init_checkpoint=str(stage_1),
        eval_records=(str(shapes_data / "records" / "val"),),
        train_steps=3,
        score_threshold=0.0,
    )
    training.train(options)
    return directory


@pytest.fixture
def steps(monkeypatch):
    """Commands run in this process, which saves their imports; the verbs that were run."""
    called = []

    def run_here(module, *arguments):
        called.append(module.rpartition(".")[2])
        result = commands.in_process(module, *arguments)
        if result.returncode:
            raise UserError(result.stderr.splitlines()[-1])

    monkeypatch.setattr(subcommand, "run", run_here)
    return called


def files(directory):
    return {path: path.stat().st_mtime_ns for path in directory.rglob("*.*") if path.is_file()}


ALL = "--min_agreement=0"  # any mask with a pixel: this model has not learned any


@pytest.mark.slow
def test_killed_rounds_go_on_and_end_as_undisturbed_ones(run, tmp_path, steps):
    rounds = selftrain.Rounds(str(run), str(tmp_path / "whole"), [ALL])
    wanted = [rounds.first(), rounds.make(1), rounds.make(2)]
    assert steps == ["evaluate", *["label", "train", "evaluate"] * 2]
    output = tmp_path / "killed"
    words = [f"--model_dir={run}", f"--output_dir={output}", ALL, "--rounds=2"]
    command = [sys.executable, "-m", "maskx_tf.selftrain", *words]
    process = subprocess.Popen(command, cwd=harness.REPOSITORY, start_new_session=True)
    while not list((output / "round2").glob("records/*")):  # the second model labels
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    finished = files(output / "round1" / "run") | files(output / "round1" / "records")
    assert len(finished) > 5
    again = subprocess.run(command, cwd=harness.REPOSITORY, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert files(output / "round1" / "run") | files(output / "round1" / "records") == finished
    said = [line for line in again.stdout.splitlines() if line.startswith("maskx ")]
    assert [line.partition(" --")[0] for line in said] == [
        f"maskx {verb}" for verb in ("records label", "records label", "train", "evaluate")
    ]
    assert "Fewest masks kept" in again.stdout
    found = json.loads((output / "selftrain.json").read_text())
    for one, other in zip(found, json.loads(json.dumps(wanted)), strict=True):
        for key in ("evaluation", "boxes_and_masks"):
            assert one.get(key) == other.get(key)
    check_round(run, output / "round1")


def check_round(run, directory):
    before, after = config_lib.load(str(run)), config_lib.load(str(directory / "run"))
    names = {"model_dir", "train_records", "mask_classes", "eval_records"}
    assert before == after.replace(**{name: getattr(before, name) for name in names})
    manifest = Manifest.load(directory / "records")
    set_a = set(json.loads((run / "mask_classes.json").read_text()))
    trained = set(json.loads((directory / "run" / "mask_classes.json").read_text()))
    kept = {name for name, (_, masks) in manifest.class_counts.items() if masks}
    assert trained == set_a | kept and trained > set_a
    before, after = (
        [item for record in read_records(find_shards([str(path)])) for item in record.objects]
        for path in (before.train_records[0], directory / "records")
    )
    for old, new in zip(before, after, strict=True):
        if new.class_name in set_a:
            np.testing.assert_array_equal(old.mask, new.mask)
            assert (new.mask_source, new.mask_weight) == (old.mask_source, 1)
        else:
            assert new.mask_source in ("maskx_tf", "")


@pytest.mark.slow
def test_where_no_mask_is_kept_it_fails(run, tmp_path, steps):
    rounds = selftrain.Rounds(str(run), str(tmp_path / "out"), ["--min_agreement=1"])
    with pytest.raises(UserError, match="masks is good enough for --min_agreement=1"):
        rounds.make(1)
    assert steps == ["label"]


@pytest.mark.thorough
def test_a_command_that_fails_is_named(capfd):
    with pytest.raises(UserError, match="maskx records splits failed"):
        subcommand.run("tf_records.splits", "--size=0")
    assert "error:" in capfd.readouterr().err
