"""Studies: their declaration, the order of runs, going on, tables and checks."""

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time
import types

import numpy as np
import pytest

from maskx_tf import config as config_lib
from maskx_tf.data import classes
from maskx_tf.data.classes import Vocabulary
from maskx_tf.errors import UserError
from maskx_tf.study import checks, declaration, estimate, execution, figures, report, tables, worker
from maskx_tf.study.plan import Plan
from maskx_tf.study.store import Results
from maskx_tf.system.interruption import Interrupted
from tests import batches, harness
from tf_records.shapes import dataset as shapes
from tf_records.shapes.objects import SceneOptions

DECLARATION = """
name = "tiny"
title = "A tiny study"
seeds = [0, 1]
detector = "detector.flags"
flags = ["--train_records=data/seed{seed}/train", "--eval_records=data/seed{seed}/val"]

[splits.a_to_b]
title = "A → B"
mask_classes = "data/seed{seed}/set_a.txt"

[splits.b_to_a]
title = "B → A"
mask_classes = "data/seed{seed}/set_b.txt"

[random_splits]
sizes = [2]
rows = ["agnostic", "transfer"]

[seconds_per_step]
stage1_boxes = 1.0
stage2_masks = 0.5

[rows.agnostic]
title = "class-agnostic"
flagfile = "agnostic.flags"

[rows.transfer]
title = "transfer"
flagfile = "transfer.flags"
flags = ["--learning_rate=0.5"]

[rows.oracle]
title = "oracle"
flagfile = "oracle.flags"

[rows.tested]
title = "tested only"
evaluate = ["--masks=grabcut", "--score_threshold=0.5"]

[rows.e2e]
title = "end to end"
flagfile = "e2e.flags"

[[tables]]
title = "Table 1"
rows = ["agnostic", "transfer", "tested"]
columns = ["a_to_b/B", "b_to_a/A"]
[tables.published]
transfer = [20.2, nan]

[[checks]]
claim = "transfer > class-agnostic"
higher = ["transfer"]
lower = ["agnostic"]

[[checks]]
claim = "A unharmed"
subset = "A"
higher = ["transfer"]
lower = ["agnostic"]
at_least = true
tolerance = 1.0
"""

FLAGS = {
    "detector": "--mode=stage1_boxes --train_steps=100",
    "agnostic": "--mode=stage2_masks --mask_output=class_agnostic --train_steps=20 "
    "--mask_classes=x.txt",
    "transfer": "--mode=stage2_masks --train_steps=20 --mask_classes=x.txt",
    "oracle": "--mode=stage2_masks --mask_output=class_specific --mask_classes=all "
    "--train_steps=40",
    "e2e": "--mode=end_to_end --train_steps=50 --mask_classes=x.txt",
}

# Stands in for the worker: leaves checkpoints and scores, and notes what it was asked for.
WORKER = """
import json, pathlib, shutil, sys
group = json.loads(pathlib.Path(sys.argv[1].partition("=")[2]).read_text())
log = open("asked.txt", "a")
for entry in group["entries"]:
    key = entry["result"].split("pending/")[1].removesuffix(".json")
    if key in pathlib.Path("broken.txt").read_text().split():
        sys.exit("planted")
    if pathlib.Path(entry["result"]).exists():
        continue
    print(key, bool(entry.get("cache")), bool(entry.get("evaluation_cache")), file=log, flush=True)
    if "flagfile" in entry:
        text = pathlib.Path(entry["flagfile"]).read_text()
        options = dict(line[2:].split("=", 1) for line in text.splitlines() if "=" in line)
        directory = pathlib.Path(options["model_dir"])
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "train.flags").write_text(text)
        (directory / f"ckpt-{options['train_steps']}.index").touch()
    score = {"transfer": 0.2, "agnostic": 0.1}.get(key.split("/")[-1], 0.3)
    scores = {s: {"AP": score} for s in ("A", "B", "all")}
    parts = {part: scores for part in ("box", "mask", "mask_given_boxes")}
    result = {"seconds": 7.0, "evaluations": {split: parts for split in entry["splits"]}}
    unfinished = pathlib.Path(entry["result"] + ".tmp")
    unfinished.write_text(json.dumps(result))
    unfinished.rename(entry["result"])
"""


@pytest.fixture
def study(tmp_path, monkeypatch):
    """The study, in a directory of its own, with a worker that takes no time."""
    monkeypatch.chdir(tmp_path)
    for name, flags in FLAGS.items():
        (tmp_path / f"{name}.flags").write_text(flags.replace(" ", "\n"))
    (tmp_path / "study.toml").write_text(DECLARATION)
    (tmp_path / "worker.py").write_text(WORKER)
    (tmp_path / "broken.txt").touch()
    for seed in (0, 1):
        path = tmp_path / "runs" / "study_tiny" / f"seed{seed}" / "random2.txt"
        path.parent.mkdir(parents=True)
        path.write_text("ant\nbee\n")
    monkeypatch.setattr(execution, "WORKER", (sys.executable, "worker.py"))
    monkeypatch.setattr(execution, "POLL_SECONDS", 0.02)
    return declaration.load("study.toml")


def results_of(study):
    return Results(study.results_dir / "results.json")


def go(study, only=(), seeds=(0, 1), **options):
    """Makes what is missing; what the worker was asked for."""
    pathlib.Path("asked.txt").write_text("")
    plan, results = Plan(study), results_of(study)
    missing = execution.missing_groups(plan, results, set(only), set(seeds))
    try:
        execution.Execution(plan, results, missing, **options).run()
    finally:
        lines = pathlib.Path("asked.txt").read_text().splitlines()
    return [line.split()[0] for line in lines]


SEED_0 = [
    "seed0/detector",
    "seed0/a_to_b/agnostic",
    "seed0/a_to_b/transfer",
    "seed0/b_to_a/agnostic",
    "seed0/b_to_a/transfer",
    "seed0/all/oracle",
    "seed0/all/tested",
    "seed0/a_to_b/e2e",
    "seed0/b_to_a/e2e",
    "seed0/random2/agnostic",
    "seed0/random2/transfer",
]


def test_the_order_has_a_whole_comparison_early(study):
    wanted = SEED_0 + [key.replace("seed0", "seed1") for key in SEED_0]
    assert go(study) == wanted
    assert go(study) == []


def test_only_runs_of_one_mask_set_share_training_features(study):
    go(study, seeds=[0])
    rows = [line.split() for line in pathlib.Path("asked.txt").read_text().splitlines()]
    kept = {key: (training, evaluation) for key, training, evaluation in rows}
    assert kept["seed0/a_to_b/transfer"] == ("True", "True")
    assert kept["seed0/all/oracle"] == ("False", "True")
    assert kept["seed0/a_to_b/e2e"] == kept["seed0/detector"] == ("False", "False")


def test_no_features_are_shared_where_the_declaration_says_so(study):
    go(dataclasses.replace(study, share_features=False), seeds=[0])
    assert "True" not in pathlib.Path("asked.txt").read_text()


def test_everything_can_go_into_one_directory(study):
    split = {"a_to_b": study.splits["a_to_b"]}
    one = dataclasses.replace(study, directory="one place", splits=split, tables=())
    go(one, only=["transfer"], seeds=[0])
    assert (pathlib.Path("one place") / "results.json").is_file()
    assert (pathlib.Path("one place") / "seed0" / "transfer" / "train.flags").is_file()
    assert not [path for path in pathlib.Path("runs").rglob("*.flags")]


def test_logs_are_shown_from_where_they_were(study, capsys, monkeypatch):
    pathlib.Path("worker.py").write_text(f"print('of this run', flush=True)\n{WORKER}")
    log = study.runs_dir / "seed0" / "detector" / "group.log"
    log.parent.mkdir(parents=True)
    log.write_text("of the last one\n")
    go(study, only=["transfer"], seeds=[0], shows_logs=True)
    shown = capsys.readouterr().err.splitlines()
    assert shown == ["of this run"] * 4  # the detector's, and one of each split
    assert log.read_text() == "of the last one\nof this run\n"


def test_commands_say_everything(study):
    runs = {run.key: run for run in Plan(study).runs}
    assert runs["seed1/b_to_a/transfer"].commands == [
        "python -m maskx_tf.train --flagfile=transfer.flags --seed=1 "
        "--train_records=data/seed1/train --eval_records=data/seed1/val --learning_rate=0.5 "
        "--model_dir=runs/study_tiny/seed1/b_to_a/transfer --mask_classes=data/seed1/set_b.txt "
        "--init_checkpoint=runs/study_tiny/seed1/detector"
    ]
    assert runs["seed1/b_to_a/transfer"].config.learning_rate == 0.5
    assert runs["seed0/all/oracle"].config.mask_classes == "all"
    assert [split.name for split in runs["seed0/all/oracle"].splits] == ["a_to_b", "b_to_a"]
    assert runs["seed0/all/tested"].commands == [
        "python -m maskx_tf.evaluate --model_dir=runs/study_tiny/seed0/detector "
        "--eval_records=data/seed0/val --masks=grabcut --score_threshold=0.5 "
        f"--mask_classes=data/seed0/set_{a}.txt "
        f"--output=runs/study_tiny/seed0/all/tested/evaluation_{split}.json"
        for a, split in (("a", "a_to_b"), ("b", "b_to_a"))
    ]


def test_a_fresh_clone_makes_only_what_is_missing(study):
    go(study)
    path = study.results_dir / "results.json"
    content = json.loads(path.read_text())
    del content["runs"]["seed1/a_to_b/transfer"]
    path.write_text(json.dumps(content))
    for directory in pathlib.Path("runs/study_tiny").glob("seed*/detector"):
        (directory / "ckpt-100.index").unlink()
    assert go(study) == ["seed1/detector", "seed1/a_to_b/transfer"]


def test_changed_options_are_run_again_from_nothing(study):
    go(study, only=["transfer"], seeds=[0])
    old = pathlib.Path("runs/study_tiny/seed0/a_to_b/transfer/ckpt-20.index")
    pathlib.Path("transfer.flags").write_text(
        "--mode=stage2_masks\n--train_steps=21\n--mask_classes=x.txt\n"
    )
    plan, results = Plan(study), results_of(study)
    groups = execution.missing_groups(plan, results, {"transfer"}, {0})
    assert "some are repeated" in estimate.describe(plan, results, groups, 1)
    asked = go(study, only=["transfer"], seeds=[0])
    assert asked == [f"seed0/{s}/transfer" for s in ("a_to_b", "b_to_a", "random2")]
    assert not old.exists() and old.with_name("ckpt-21.index").exists()


def test_another_detector_makes_its_rows_again_but_none_end_to_end(study):
    go(study, seeds=[0])
    pathlib.Path("detector.flags").write_text("--mode=stage1_boxes\n--train_steps=101\n")
    assert go(study, seeds=[0]) == [key for key in SEED_0 if not key.endswith("e2e")]


def redeclared(old, new):
    """The study with a part of its declaration replaced."""
    path = pathlib.Path("study.toml")
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return declaration.load("study.toml")


def splits_of(study, key):
    (run,) = (run for run in Plan(study).runs if run.key == key)
    return [split.name for split in run.splits]


@pytest.mark.parametrize("row", ["oracle", "tested"])
def test_a_row_for_all_splits_runs_once_also_where_splits_list_it(study, row):
    study = redeclared('rows = ["agnostic", "transfer"]', f'rows = ["transfer", "{row}"]')
    study = redeclared('title = "B → A"', 'title = "B → A"\nrows = ["agnostic"]')
    key = f"seed0/all/{row}"
    assert splits_of(study, key) == ["a_to_b", "random2"]
    assert go(study).count(key) == 1
    assert results_of(study).values((0, 1), "random2", row, "B") == pytest.approx([30, 30])
    assert go(study) == []
    study = redeclared("sizes = [2]", "sizes = []")
    assert splits_of(study, key) == ["a_to_b"]


SHARED = ["seed0/all/oracle", "seed0/all/tested"]
ANOTHER_SPLIT = """
[splits.few]
title = "few"
mask_classes = "data/few.txt"
rows = ["oracle", "tested"]

[random_splits]"""


def test_another_split_is_evaluated_of_rows_that_are_there(study):
    go(study, seeds=[0])
    kept = checkpoint_of(SHARED[0], "kept")
    kept.touch()
    study = redeclared("[random_splits]", ANOTHER_SPLIT)
    assert go(study, seeds=[0]) == SHARED and kept.exists()
    assert all(results_of(study).value(0, "few", row, "B") for row in ("oracle", "tested"))
    study = redeclared(ANOTHER_SPLIT, "[random_splits]")
    assert go(study, seeds=[0]) == []


@pytest.mark.parametrize("has_splits", [True, False])
def test_another_set_a_of_a_split_is_noticed(study, has_splits):
    """Where a result tells which it was made with; older ones count."""
    go(study, seeds=[0])
    path = study.results_dir / "results.json"
    content = json.loads(path.read_text())
    for result in content["runs"].values():
        splits = result["splits"] if has_splits else result.pop("splits")
        assert splits.keys() == result["evaluations"].keys()
    path.write_text(json.dumps(content))
    study = redeclared("data/seed{seed}/set_b.txt", "data/seed{seed}/set_c.txt")
    of_split = [f"seed0/b_to_a/{row}" for row in ("agnostic", "transfer", "e2e")]
    wanted = [*of_split[:2], *(SHARED if has_splits else []), of_split[2]]
    assert go(study, seeds=[0]) == wanted


def checkpoint_of(key, name="ckpt-20.index"):
    return pathlib.Path("runs/study_tiny", key, name)


@pytest.mark.parametrize("is_marked", [True, False])
def test_another_detector_has_its_rows_trained_from_nothing(study, is_marked):
    """Also where the directories are of a study that did not mark them."""
    go(study, only=["transfer"], seeds=[0])
    old = checkpoint_of("seed0/a_to_b/transfer", "old")
    old.touch()
    if not is_marked:
        for path in pathlib.Path("runs").rglob(execution.DIGEST):
            path.unlink()
    pathlib.Path("detector.flags").write_text("--mode=stage1_boxes\n--train_steps=101\n")
    assert "seed0/a_to_b/transfer" in go(study, only=["transfer"], seeds=[0])
    assert checkpoint_of("seed0/a_to_b/transfer").exists() and not old.exists()


@pytest.mark.parametrize("is_marked", [True, False])
def test_a_run_that_was_cut_off_keeps_its_checkpoints(study, is_marked):
    go(study, only=["transfer"], seeds=[0])
    kept = checkpoint_of("seed0/a_to_b/transfer", "kept")
    kept.touch()
    path = study.results_dir / "results.json"
    content = json.loads(path.read_text())
    del content["runs"]["seed0/a_to_b/transfer"]
    path.write_text(json.dumps(content))
    if not is_marked:
        for mark in pathlib.Path("runs").rglob(execution.DIGEST):
            mark.unlink()
    assert go(study, only=["transfer"], seeds=[0]) == ["seed0/a_to_b/transfer"]
    assert kept.exists()


def leave_result(study, key, **changes):
    """A result that a killed call did not collect; no checkpoint is left."""
    run = next(run for run in Plan(study).runs if run.key == key)
    scores = {"mask": {subset: {"AP": 0.7} for subset in "AB"}}
    result = {"digest": run.digest, "seconds": 1.0, "evaluations": {"a_to_b": scores}} | changes
    path = pathlib.Path("runs/study_tiny/pending", f"{key}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({k: v for k, v in result.items() if v is not None}))


@pytest.mark.parametrize(
    ("digest", "score"), [({}, 70), ({"digest": None}, 70), ({"digest": "of another"}, 20)]
)
def test_a_result_that_was_not_collected_counts_for_its_own_options(study, digest, score):
    """As do those that were written without a digest."""
    key = "seed0/a_to_b/transfer"
    leave_result(study, key, **digest)
    assert (key in go(study, only=["transfer"], seeds=[0])) == (score == 20)
    assert results_of(study).value(0, "a_to_b", "transfer", "B") == pytest.approx(score)


def test_a_result_of_other_options_that_comes_late_is_dropped(study, monkeypatch):
    """A worker whose call was killed goes on, and may write while the next call waits."""
    pathlib.Path("worker.py").write_text(
        WORKER.replace('"evaluations": {split', '"digest": "of another", "evaluations": {split')
    )
    go(study, only=["transfer"], seeds=[0])
    assert not results_of(study).runs
    assert not list(pathlib.Path("runs/study_tiny/pending").rglob("*.json"))


def test_what_fails_is_named_and_the_rest_is_made(study):
    pathlib.Path("broken.txt").write_text("seed0/b_to_a/agnostic")
    pathlib.Path("asked.txt").touch()
    with pytest.raises(UserError, match="seed0/b_to_a .exit code 1.*group.log"):
        go(study, seeds=[0])
    asked = pathlib.Path("asked.txt").read_text()
    assert "seed0/random2/transfer" in asked and "seed0/b_to_a" in asked
    assert "seed0/b_to_a/transfer" not in asked
    pathlib.Path("broken.txt").write_text("")
    assert go(study, seeds=[0]) == ["seed0/b_to_a/agnostic", "seed0/b_to_a/transfer"]


def test_nothing_is_begun_on_a_detector_that_failed(study):
    pathlib.Path("broken.txt").write_text("seed0/detector")
    with pytest.raises(UserError, match="seed0/detector"):
        go(study, seeds=[0])
    asked = pathlib.Path("asked.txt").read_text().split()
    assert [word for word in asked if "/" in word] == ["seed0/a_to_b/e2e", "seed0/b_to_a/e2e"]


def test_features_are_kept_until_their_group_is_done(study):
    features = pathlib.Path("runs/study_tiny/cache/seed0/a_to_b/features.bin")
    features.parent.mkdir(parents=True)
    features.touch()
    pathlib.Path("broken.txt").write_text("seed0/a_to_b/transfer")
    with pytest.raises(UserError, match="seed0/a_to_b"):
        go(study, seeds=[0])
    assert features.exists()
    pathlib.Path("broken.txt").write_text("")
    go(study, seeds=[0])
    assert not features.parent.exists()


SLEEPER = """#!/bin/sh
echo $$ > started.$$.tmp
mv started.$$.tmp started.$$
exec sleep 60
"""


@contextlib.contextmanager
def terminated(count):
    """Sends SIGTERM to this process once so many sleepers have started; they must have ended."""
    pathlib.Path("sleeper").write_text(SLEEPER)
    pathlib.Path("sleeper").chmod(0o755)

    def started():
        return [path for path in pathlib.Path().glob("started.*") if path.suffix != ".tmp"]

    def send():
        while len(started()) < count and time.monotonic() < end:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    end = time.monotonic() + 30
    thread = threading.Thread(target=send)
    with pytest.raises(Interrupted) as raised:
        thread.start()
        yield
    thread.join()
    assert raised.value.code == 143 and len(started()) == count
    for path in started():
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.read_text()), 0)


def test_sigterm_ends_the_workers(study, monkeypatch):
    monkeypatch.setattr(execution, "WORKER", (os.path.abspath("sleeper"),))
    features = pathlib.Path("runs/study_tiny/cache/seed0/a_to_b/features.bin")
    features.parent.mkdir(parents=True)
    features.touch()
    checkpoint = checkpoint_of("seed0/detector", "ckpt-100.index")
    with terminated(count=2):
        go(study, seeds=[0], jobs=2)
    assert features.exists() and not checkpoint.exists()


def test_sigterm_ends_what_a_worker_has_started(study, monkeypatch):
    arguments = {"a_to_b": ["--output=x.json"]}
    entry = {"result": "absent.json", "digest": "", "splits": {}, "evaluate": arguments}
    pathlib.Path("group.json").write_text(json.dumps({"deadline": None, "entries": [entry]}))
    options = types.SimpleNamespace(FLAGS=types.SimpleNamespace(group="group.json"))
    monkeypatch.setattr(worker, "flags", options)
    monkeypatch.setattr(worker.sys, "executable", os.path.abspath("sleeper"))
    with terminated(count=1):
        worker.main()


def test_several_jobs_wait_for_their_detector(study):
    asked = go(study, jobs=3)
    for seed in (0, 1):
        mine = [key for key in asked if key.startswith(f"seed{seed}")]
        first = mine.index(f"seed{seed}/detector")
        assert all("e2e" in key for key in mine[:first])
    assert sorted(asked) == sorted(SEED_0 + [k.replace("seed0", "seed1") for k in SEED_0])


def test_nothing_is_begun_after_the_deadline(study):
    assert go(study, deadline=1.0) == []


def test_the_estimate_uses_what_runs_have_taken(study):
    plan, results = Plan(study), results_of(study)
    transfer = next(run for run in plan.runs if run.row.name == "transfer")
    assert estimate.run_seconds(plan, results, transfer) == 20 * 0.5 + 30
    go(study, only=["transfer"], seeds=[0])
    assert estimate.run_seconds(plan, results_of(study), transfer) == 7.0


GOLDEN = """\
|  | A → B: AP on B | B → A: AP on A |
|---|---|---|
| class-agnostic | 10.0 ± 0.0 | 10.0 ± 0.0 |
| transfer | 20.0 ± 0.0 (20.2) | 20.0 ± 0.0 |
| tested only | 30.0 ± 0.0 | 30.0 ± 0.0 |"""


def test_tables(study):
    assert "| transfer | – (20.2) | – |" in tables.table(study, results_of(study), study.tables[0])
    go(study)
    assert tables.table(study, results_of(study), study.tables[0]) == GOLDEN
    assert tables.spread([1.0, 2.0, 3.0]) == "2.0 ± 1.0" and tables.spread([1.0]) == "1.0"


def put(results, plan, key, score, box=30.0):
    run = next(run for run in plan.runs if run.key == key)
    scores = {s: {"AP": score / 100} for s in "AB"}
    given = {s: {"AP": 2 * score / 100} for s in "AB"}
    boxes = {"all": {"AP": box / 100}}
    evaluation = {"mask": scores, "mask_given_boxes": given, "box": boxes}
    results.add(run, {run.splits[0].name: evaluation}, 1.0)


def test_two_processes_do_not_take_each_others_results(study):
    plan, mine, others = Plan(study), results_of(study), results_of(study)
    put(mine, plan, "seed0/a_to_b/transfer", 12)
    put(others, plan, "seed1/a_to_b/transfer", 13)
    put(mine, plan, "seed0/b_to_a/transfer", 14)
    keys = {"seed0/a_to_b/transfer", "seed1/a_to_b/transfer", "seed0/b_to_a/transfer"}
    assert results_of(study).runs.keys() == mine.runs.keys() == keys
    with others.locked():
        assert others.runs.keys() == keys


def test_a_result_is_not_added_while_another_process_adds(study):
    plan, results = Plan(study), results_of(study)
    code = (
        "import sys, time; from maskx_tf.system import files\n"
        f"with files.locked({str(study.results_dir)!r}):\n"
        "    print('locked', flush=True); sys.stdin.read(); time.sleep(0.3); print(time.time())"
    )
    environment = os.environ | {"PYTHONPATH": str(harness.REPOSITORY)}
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    ) as other:
        assert other.stdin and other.stdout and other.stdout.readline() == b"locked\n"
        other.stdin.close()
        put(results, plan, "seed0/a_to_b/transfer", 12)
        assert time.time() >= float(other.stdout.read())


def test_checks_compare_within_seeds_and_splits(study):
    plan, results = Plan(study), results_of(study)
    better, unharmed = study.checks
    assert checks.compare(plan, results, better)[0].holds is None
    put(results, plan, "seed0/a_to_b/agnostic", 10)
    put(results, plan, "seed0/a_to_b/transfer", 12)
    put(results, plan, "seed1/a_to_b/transfer", 90)  # without its partner
    (found,) = checks.compare(plan, results, better)
    assert found.differences == pytest.approx((2.0,)) and found.holds
    put(results, plan, "seed0/b_to_a/agnostic", 10)
    put(results, plan, "seed0/b_to_a/transfer", 6.5)
    (found,) = checks.compare(plan, results, better)
    assert found.differences == pytest.approx((2.0, -3.5)) and not found.holds
    assert checks.compare(plan, results, unharmed)[0].holds  # -0.75 of 1 point
    lines = checks.table(plan, results).splitlines()
    assert lines[2].endswith("| -0.8 ± 3.9 | – | 1 of 2 above 0 | **does not hold** | -1.5 ± 7.8 |")


def test_intervals_are_of_classes_and_runs():
    rng = np.random.default_rng(0)
    groups = [rng.normal(3.0, 2.0, 400) for _ in range(6)]
    low, high = checks.bootstrap(groups)
    half = 1.96 * 2.0 / np.sqrt(6 * 400)  # of the mean of all, were runs not drawn too
    assert low < np.mean(groups) < high and half < high - np.mean(groups) < 3 * half
    assert checks.bootstrap([np.full(5, 2.0)] * 3) == (2.0, 2.0)
    apart = checks.bootstrap([np.zeros(50), np.full(50, 4.0)])
    assert apart == (0.0, 4.0)  # two runs say little, whatever the classes


def test_a_check_has_an_interval_where_all_runs_have_scores_of_classes(study):
    plan, results = Plan(study), results_of(study)
    (better,) = [check for check in study.checks if check.subset == "B"]
    rows = {"transfer": 0.3, "agnostic": 0.2}
    for row, score in rows.items():
        put(results, plan, f"seed0/a_to_b/{row}", 100 * score)
    for row, score in rows.items():
        evaluation = results.runs[f"seed0/a_to_b/{row}"]["evaluations"]["a_to_b"]
        evaluation["classes"] = {"B": {"AP": [score, score + 0.1, None]}}
    (found,) = checks.compare(plan, results, better)
    assert found.interval == pytest.approx((10.0, 10.0))
    put(results, plan, "seed1/a_to_b/transfer", 30)
    put(results, plan, "seed1/a_to_b/agnostic", 20)
    assert checks.compare(plan, results, better)[0].interval is None


def test_given_boxes_have_the_ceiling_beside_them(study):
    plan, results = Plan(study), results_of(study)
    put(results, plan, "seed0/a_to_b/transfer", 10)
    assert "(50.0)" not in report._given(study, results)
    given = results.runs["seed0/a_to_b/transfer"]["evaluations"]["a_to_b"]["mask_given_boxes"]
    for subset in ("all", "B"):
        given[subset] = {"AP": 0.2, "IoU": 0.6, "IoU_shared": 0.7, "ceiling_shared": 0.5}
    (line,) = (x for x in report._given(study, results).splitlines() if "| 70.0 (50.0) |" in x)
    assert line.startswith("| transfer | 20.0 | 60.0 |")


def test_classes_are_listed_by_their_set():
    scores = {"ant": 0.25, "bee": None, "cat": 1 / 3}
    given = {"A": {"AP": 0.5}, "per_class": scores, "iou_per_class": {**scores, "bee": 0.5}}
    evaluation = {"mask": {"A": {"AP": 0.1}, "per_class": scores}, "mask_given_boxes": given}
    found = worker.compact({**evaluation, "checkpoint": "x"}, ["cat", "bee"])
    assert found["mask"] == {"A": {"AP": 0.1}} and "checkpoint" not in found
    assert found["classes"]["A"]["AP"] == [None, 0.3333]
    assert found["classes"]["A"]["IoU"] == [0.5, 0.3333]
    assert found["classes"]["B"] == {"AP": [0.25], "AP_given": [0.25], "IoU": [0.25]}


def test_rows_on_different_detectors_are_not_compared(study):
    plan, results = Plan(study), results_of(study)
    assert plan.stage_wise == {"agnostic", "transfer", "oracle", "tested"}
    better = study.checks[0]
    put(results, plan, "seed0/a_to_b/agnostic", 10)
    put(results, plan, "seed0/a_to_b/transfer", 12)
    put(results, plan, "seed0/b_to_a/agnostic", 10)
    put(results, plan, "seed0/b_to_a/transfer", 16, box=33)
    (found,) = checks.compare(plan, results, better)
    assert found.differences == pytest.approx((2.0,)) and found.unpaired == 1
    line = checks.table(plan, results).splitlines()[2]
    assert line.endswith(
        "| 2.0 | – | 1 of 1 above 0; 1 on different detectors left out | holds | 4.0 |"
    )
    put(results, plan, "seed0/a_to_b/transfer", 12, box=33)
    assert checks.compare(plan, results, better)[0].holds is None
    by_itself = dataclasses.replace(better, higher=("e2e",))
    put(results, plan, "seed0/a_to_b/e2e", 15, box=44)
    assert checks.compare(plan, results, by_itself)[0].differences == pytest.approx((5.0,))


def all_commands(study):
    return [f"    {command}" for run in Plan(study).runs for command in run.commands]


def test_an_evaluation_runs_the_commands_that_are_printed(study, monkeypatch):
    pathlib.Path("runs/study_tiny/pending/seed0/all").mkdir(parents=True)
    go(study, only=["tested"], seeds=[0])
    group = json.loads(pathlib.Path("runs/study_tiny/seed0/all/tested/group.json").read_text())
    typed, results = [], {"box": {}, "mask": {}, "mask_classes": []}

    def run(command):
        typed.append("    " + " ".join(["python", *command[1:]]))
        pathlib.Path(command[-1].removeprefix("--output=")).write_text(json.dumps(results))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", run)
    evaluations = worker._evaluate_alone(group["entries"][0])
    assert all(e["box"] == e["mask"] == {} for e in evaluations.values()) and len(evaluations) == 2
    assert len(typed) == 2 and set(typed) <= set(all_commands(study))
    del results["mask"]
    with pytest.raises(UserError, match="no masks to score; have them made by .--masks=grabcut"):
        worker._evaluate_alone(group["entries"][0])


CONTROL = """[rows.control]
title = "control"
of = "transfer"
evaluate = ["--kernels=mean_a"]

[rows.e2e]"""


def test_a_command_that_names_the_detector_waits_for_it(study):
    prepare = (
        '[[prepare]]\ncommand = "cp {detector}/train.flags there.txt"\ncreates = "there.txt"\n'
    )
    study = redeclared("[splits.a_to_b]", prepare + "\n[splits.a_to_b]")
    plan, there = Plan(study), pathlib.Path("there.txt")
    execution.prepare(plan, 0)
    assert not there.exists()
    go(study, seeds=[0])
    assert (
        there.read_text()
        == (pathlib.Path(plan.detector(0).config.model_dir) / "train.flags").read_text()
    )


def test_a_row_can_evaluate_the_models_of_another(study):
    study = redeclared("[rows.e2e]", CONTROL)
    (group,) = (g for g in Plan(study).groups if g.name == "seed0/a_to_b")
    names = [run.row.name for run in group.runs]
    assert names.index("control") > names.index("transfer")
    control, transfer = (group.runs[names.index(name)] for name in ("control", "transfer"))
    (command,) = control.commands
    assert f"--model_dir={transfer.config.model_dir} " in command and "--kernels=mean_a" in command
    changed = redeclared('flags = ["--learning_rate=0.5"]', 'flags = ["--learning_rate=0.4"]')
    after = next(run for run in Plan(changed).runs if run.key == control.key)
    assert after.digest != control.digest


@pytest.mark.parametrize("of", ["nobody", "tested"])
def test_a_row_of_what_is_not_trained_is_refused(study, of):
    with pytest.raises(UserError, match=of if of == "nobody" else "control"):
        redeclared("[rows.e2e]", CONTROL.replace("transfer", of))


@pytest.mark.parametrize(
    ("splits", "evaluated_on"),
    [
        ({"a_to_b": "set_a.txt"}, []),
        ({"a_to_b": "set_b.txt"}, ["set_b.txt"]),
        ({"a_to_b": "set_a.txt", "b_to_a": "set_b.txt"}, ["set_a.txt", "set_b.txt"]),
    ],
)
def test_a_training_is_evaluated_with_the_set_a_of_the_split(
    tmp_path, monkeypatch, splits, evaluated_on
):
    options = {"eval_records": ("val",), "mask_classes": "set_a.txt"}
    (tmp_path / "x.flags").write_text(config_lib.to_text(batches.tiny_config(**options)))
    seen = []
    trained = {"of": [1]}
    monkeypatch.setattr(worker.training, "train", lambda c: trained if c.eval_records else {})
    vocabulary = Vocabulary.from_names(["ant", "bee"])
    ids = {"set_a.txt": [1], "set_b.txt": [2]}
    monkeypatch.setattr(
        worker.checkpoints, "load_model", lambda path: (None, None, vocabulary, None)
    )
    monkeypatch.setattr(worker, "load_mask_classes", lambda spec, vocabulary: ids[spec])
    monkeypatch.setattr(worker, "set_a_of", lambda path: ["ant"])
    monkeypatch.setattr(worker, "compact", lambda evaluation, names: {**evaluation, "A": names})

    def evaluator(model, config, vocabulary, class_ids):
        seen.append(class_ids)
        return types.SimpleNamespace(evaluate=lambda per_class: {"of": class_ids})

    monkeypatch.setattr(worker.runner, "ModelEvaluator", evaluator)
    cache = {"cache": "", "evaluation_cache": ""}
    entry = {"flagfile": str(tmp_path / "x.flags"), "splits": splits, **cache}
    names = {"set_a.txt": ["ant"], "set_b.txt": ["bee"]}
    wanted = {name: {"of": ids[spec], "A": names[spec]} for name, spec in splits.items()}
    assert worker._train(entry) == wanted
    assert seen == [ids[spec] for spec in evaluated_on]


def test_the_report_has_notes_and_pictures(study):
    go(study)
    notes = study.results_dir / "notes.md"
    notes.write_text("## Where it does not hold\n\nBecause.\n")
    report.write(Plan(study), results_of(study), "python -m maskx_tf.study --study=study.toml")
    text = (study.results_dir / "README.md").read_text()
    assert GOLDEN in text and "Because." in text and "22 of" not in text and "20 of 20" in text
    for name in ("table1.png", "sizes.png"):
        assert name in text and (study.results_dir / name).read_bytes().startswith(b"\x89PNG")
    commands = (study.results_dir / "commands.md").read_text()
    assert all(c in commands.splitlines() for c in all_commands(study))


@pytest.mark.parametrize("is_option", [True, False])
def test_the_printed_commands_draw_the_sets_of_the_study(study, monkeypatch, is_option):
    vocabulary = Vocabulary.from_names(f"class {number}" for number in range(9))
    if is_option:
        vocabulary.save("classes.json")
        with open("detector.flags", "a") as file:
            file.write("\n--vocabulary=classes.json")
    else:
        monkeypatch.setattr(execution, "vocabulary_of", lambda records: vocabulary)
    report.write(Plan(study), results_of(study), "command")
    lines = (study.results_dir / "commands.md").read_text().splitlines()
    for seed in study.seeds:
        path = pathlib.Path(f"runs/study_tiny/seed{seed}/random2.txt")
        path.unlink()
        execution.prepare(Plan(study), seed)
        wanted = classes.read_names(path)
        path.unlink()
        (detector,) = Plan(study).detector(seed).commands
        command = lines[lines.index(f"    {detector}") + 1]
        run = [line for line in lines if f"--mask_classes={path}" in line]
        assert lines.index(run[0]) > lines.index(command)
        vocabulary.save(f"runs/study_tiny/seed{seed}/detector/vocabulary.json")
        environment = os.environ | {"PYTHONPATH": str(harness.REPOSITORY)}
        python, *arguments = command.split()
        assert python == "python"
        subprocess.run([sys.executable, *arguments], env=environment, check=True)
        assert classes.read_names(path) == wanted and len(wanted) == 2


def reported(study):
    report.write(Plan(study), results_of(study), "command")
    return (study.results_dir / "README.md").read_text()


def test_the_report_has_no_results_of_other_options(study):
    go(study)
    pathlib.Path("transfer.flags").write_text(
        "--mode=stage2_masks\n--train_steps=21\n--mask_classes=x.txt\n"
    )
    text = reported(study)
    assert "| transfer | – (20.2) | – |" in text and "14 of 20 runs are done" in text
    assert "| class-agnostic | 10.0 ± 0.0 | 10.0 ± 0.0 |" in text
    go(study, only=["transfer"], seeds=[1])
    assert "| transfer | 20.0 (20.2) | 20.0 |" in reported(study)


def test_the_report_has_the_splits_that_are_as_declared(study):
    go(study)
    study = redeclared("data/seed{seed}/set_b.txt", "data/seed{seed}/set_c.txt")
    assert "| tested only | 30.0 ± 0.0 | – |" in reported(study)


def test_the_report_has_the_newer_way_of_running_a_row(study):
    """All masks in place of a split's: one run in place of several."""
    go(study)
    pathlib.Path("agnostic.flags").write_text("--mode=stage2_masks\n--mask_classes=all\n")
    pathlib.Path("worker.py").write_text(WORKER.replace('"agnostic": 0.1', '"agnostic": 0.4'))
    assert "| class-agnostic | – | – |" in reported(study)
    go(study, only=["agnostic"])
    assert "| class-agnostic | 40.0 ± 0.0 | 40.0 ± 0.0 |" in reported(study)


def test_sizes_has_every_row(study, monkeypatch, tmp_path):
    names = [f"row{number}" for number in range(12)]
    rows = {name: declaration.Row(name, name) for name in names}
    splits = {"random2": dataclasses.replace(study.splits["random2"], rows=tuple(names))}
    study = dataclasses.replace(study, rows=rows, splits=splits)
    labels = []
    monkeypatch.setattr(
        figures, "_save", lambda figure, path: labels.extend(figure.axes[0].get_legend().texts)
    )
    monkeypatch.setattr(Results, "values", lambda *arguments: [1.0])
    assert figures.over_size(study, results_of(study), tmp_path / "x.png")
    assert [label.get_text() for label in labels] == names


def test_no_picture_without_results(study, tmp_path):
    assert not figures.over_size(study, results_of(study), tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('rows = ["agnostic", "transfer", "tested"]', 'rows = ["absent"]', "no rows absent"),
        ("transfer = [20.2, nan]", "transfer = [20.2]", "1 values for 2 columns"),
        ('"b_to_a/A"]', '"nowhere/A"]', "nowhere/A"),
        ('name = "tiny"', "name = ", "not TOML"),
        ('title = "oracle"', "", "title"),
        ('evaluate = ["--masks=grabcut", "--score_threshold=0.5"]', "", "tested needs either"),
        ('flagfile = "oracle.flags"', 'flagfile = "x"\ntypo = 1', "typo"),
        (
            'title = "tested only"',
            'title = "tested only"\nflags = ["--x"]',
            "tested trains nothing",
        ),
        ('subset = "A"', 'subset = "C"', "A unharmed: subset C is none of A, B, all"),
        ("at_least = true", "at_least = false", "A unharmed: tolerance needs at_least"),
        ('"b_to_a/A"]', '"b_to_a/A"]\nmetrics = ["AP", "AP60"]', "Table 1: metrics AP60 are none"),
        ("sizes = [2]", "sizes = [2]\nseed = 3", "sizes and rows, no seed"),
        ("[rows.transfer]", '[rows.detector]\ntitle = "x"\n[rows.transfer]', "called detector"),
    ],
)
def test_a_wrong_declaration_is_named(study, old, new, message):
    with pytest.raises(UserError, match=message):
        redeclared(old, new)


EVAL_RECORDS = ', "--eval_records=data/seed{seed}/val"'


@pytest.mark.parametrize("row", ["tested", "e2e"])
def test_a_row_without_records_to_be_scored_on_is_named(study, row):
    others = set(study.rows) - {row}
    for other in others:
        del study.rows[other]
    Plan(study)
    study = redeclared(EVAL_RECORDS, "")
    for other in others:
        del study.rows[other]
    with pytest.raises(UserError, match=f"row {row} has no --eval_records=DIRECTORY"):
        Plan(study)


@pytest.mark.parametrize("mask_classes", ["all", "x.txt"])
def test_a_row_of_stage_1_is_named(study, mask_classes):
    flags = f"--mode=stage1_boxes\n--mask_classes={mask_classes}\n"
    pathlib.Path("e2e.flags").write_text(flags)
    with pytest.raises(UserError, match="row e2e: e2e.flags has --mode=stage1_boxes"):
        Plan(study)


def test_the_declaration_that_is_explained_is_one(study):
    """That of docs/study.md, with the flagfiles and rows that its tables name."""
    text = (harness.REPOSITORY / "docs" / "study.md").read_text()
    (example,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    pathlib.Path("study.toml").write_text(
        example + '[rows.class_agnostic]\ntitle = "class-agnostic"\nflagfile = "agnostic.flags"\n'
    )
    for stage, name in (("stage1_boxes", "stage1_boxes"), ("stage2_masks", "cls_box")):
        path = pathlib.Path(f"configs/shapes/{name}.flags")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"--mode={stage}\n--mask_classes=x.txt\n")
    assert "seed2/all/grabcut_tested" in {
        run.key for run in Plan(declaration.load("study.toml")).runs
    }


def test_damaged_results_are_named(study):
    path = study.results_dir / "results.json"
    path.parent.mkdir(parents=True)
    path.write_text("{")
    with pytest.raises(UserError, match="results.json is not"):
        results_of(study)


def test_the_shapes_study_is_declared_whole(monkeypatch):
    monkeypatch.chdir(pathlib.Path(__file__).parents[1])
    study = declaration.load("configs/shapes/study.toml")
    assert len(study.rows) == 20 and len(study.tables) == 5 and len(study.seeds) == 3
    for row in study.rows.values():
        assert not row.flagfile or pathlib.Path(row.flagfile).is_file(), row.flagfile


REAL = """
name = "real"
title = "A study that trains"
seeds = [0]
detector = "detector.flags"
[splits.a_to_b]
title = "A → B"
mask_classes = "{data}/set_a.txt"
[splits.b_to_a]
title = "B → A"
mask_classes = "{data}/set_b.txt"
[random_splits]
sizes = [20]
rows = ["transfer"]
[rows.agnostic]
title = "class-agnostic"
flagfile = "agnostic.flags"
[rows.transfer]
title = "transfer"
flagfile = "transfer.flags"
[rows.oracle]
title = "oracle"
flagfile = "oracle.flags"
[rows.tested]
title = "tested only"
evaluate = ["--eval_records={data}/records/val", "--masks=grabcut"]
[[tables]]
title = "Table 1"
rows = ["agnostic", "transfer", "oracle", "tested"]
columns = ["a_to_b/B", "b_to_a/B"]
"""


@pytest.mark.slow
def test_a_whole_study_trains_and_goes_on(tmp_path):
    data = tmp_path / "data"
    options = SceneOptions(image_size=64, side=(20, 36))
    shapes.generate(str(data), train_images=8, val_images=3, workers=1, options=options)
    base = batches.tiny_config(
        mode="stage2_masks",
        train_records=(str(data / "records" / "train"),),
        eval_records=(str(data / "records" / "val"),),
        mask_classes="x.txt",
        train_steps=2,
        num_gpus=0,
        panel_images=0,
        learning_rate=0.01,
    )
    changes = {
        "detector": {"mode": "stage1_boxes"},
        "transfer": {},
        "agnostic": {"mask_output": "class_agnostic"},
        "oracle": {"mask_output": "class_specific", "mask_classes": "all"},
    }
    for name, options in changes.items():
        text = config_lib.to_text(base.replace(**options))
        (tmp_path / f"{name}.flags").write_text(text)
    (tmp_path / "study.toml").write_text(REAL.replace("{data}", str(data)))

    def run(*arguments):
        command = [sys.executable, "-m", "maskx_tf.study", "--study=study.toml", *arguments]
        environment = os.environ | {"PYTHONPATH": str(harness.REPOSITORY)}
        result = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        logs = [path.read_text() for path in tmp_path.rglob("group.log")]
        assert result.returncode == 0, "\n".join([result.stderr, result.stdout, *logs])
        return result.stdout

    assert "8 runs to do, 0 of 7 done" in run("--jobs=2")
    output = tmp_path / "docs" / "results" / "real"
    runs = json.loads((output / "results.json").read_text())["runs"]
    assert len(runs) == 8 and set(runs["seed0/all/oracle"]["evaluations"]) == {"a_to_b", "b_to_a"}
    oracle = runs["seed0/all/oracle"]["evaluations"]
    assert oracle["a_to_b"]["mask"]["A"] == oracle["b_to_a"]["mask"]["B"]
    for row in ("transfer", "agnostic"):  # one detector
        found = runs[f"seed0/a_to_b/{row}"]["evaluations"]["a_to_b"]
        assert found["box"] == oracle["a_to_b"]["box"]
    assert not list((tmp_path / "runs" / "study_real" / "cache").rglob("*.bin"))
    assert "7 of 7 runs are done" in (output / "README.md").read_text()
    assert list((tmp_path / "runs" / "study_real" / "tensorboard").rglob("*.hparams"))
    assert "0 runs to do, 7 of 7 done" in run()
