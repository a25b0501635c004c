"""Makes the missing runs of a plan, group by group, each group in a process of its own."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np

from maskx_tf import config as config_lib
from maskx_tf.checkpoints import best
from maskx_tf.data.classes import Vocabulary, random_names
from maskx_tf.data.records.manifest import vocabulary_of
from maskx_tf.errors import UserError
from maskx_tf.evaluation.report import percent
from maskx_tf.study import plan as plan_lib
from maskx_tf.study import store
from maskx_tf.study.estimate import remaining_seconds
from maskx_tf.study.plan import Group, Plan, Run
from maskx_tf.study.store import Results
from maskx_tf.system.files import write_atomically
from maskx_tf.system.interruption import Interruption
from maskx_tf.system.progress import format_duration

POLL_SECONDS = 0.2
DIGEST = "study_digest.txt"  # in a model directory: `Run.digest` of what is trained there
WORKER = (sys.executable, "-m", "maskx_tf.study.worker")


@dataclasses.dataclass
class _Started:
    group: Group
    process: subprocess.Popen
    log: pathlib.Path
    shown: int  # bytes of the log

    def show_new_lines(self) -> None:
        """Prints what the log got since the last call."""
        with open(self.log, "rb") as file:
            file.seek(self.shown)
            new = file.read()
        self.shown += len(new)
        print(new.decode(errors="replace"), end="", file=sys.stderr, flush=True)


class Execution:
    """The state of one call: what runs, what is missing, what failed.

    Args:
      plan: of which study.
      results: where results are kept; those there are not made again.
      missing: the groups to make, in order, of missing runs only.
      jobs: how many groups run at a time.
      deadline: seconds since 1970 after which no run is begun; None: never.
      on_result: called after each result.
      shows_logs: whether what is written to the logs is printed too.
    """

    def __init__(
        self,
        plan: Plan,
        results: Results,
        missing: list[Group],
        jobs: int = 1,
        deadline: float | None = None,
        on_result: Callable[[], None] = lambda: None,
        shows_logs: bool = False,
    ):
        self._plan, self._results, self._jobs = plan, results, jobs
        self._deadline, self._on_result, self._shows_logs = deadline, on_result, shows_logs
        self._waiting = with_detectors(plan, missing)
        self._total = sum(len(group.runs) for group in self._waiting)
        self._running: list[_Started] = []
        self._made, self._failed = 0, list[str]()

    def run(self) -> None:
        """Makes everything.

        Raises:
          UserError: something failed; the rest is made.
          Interrupted: SIGTERM or SIGINT came; the workers have ended.
        """
        with Interruption().handled():
            try:
                self._make_all()
            finally:
                for started in self._running:
                    started.process.terminate()
                for started in self._running:
                    started.process.wait()
        if self._failed:
            raise UserError(f"failed: {'; '.join(self._failed)}. Repeat the command to resume.")

    def _make_all(self) -> None:
        while self._waiting or self._running:
            while len(self._running) < self._jobs and (group := self._next()):
                self._start(group)
            if not self._running:
                break
            time.sleep(POLL_SECONDS)
            for started in list(self._running):
                self._poll(started)

    def _next(self) -> Group | None:
        """The first waiting group that can start; takes it off the list."""
        if self._deadline and time.time() > self._deadline:
            self._waiting = []
        ahead = {started.group.name for started in self._running}
        for group in self._waiting:
            detector = f"seed{group.seed}/detector"
            is_blocked = detector in ahead or any(g.name == detector for g in self._waiting)
            if group.needs_detector and is_blocked:
                continue
            self._waiting.remove(group)
            return group
        return None

    def _start(self, group: Group) -> None:
        prepare(self._plan, group.seed)
        for run in group.runs:
            self._forget_outdated(run)
        # What a killed call left is taken over first: the worker would not find it any more.
        missing = [run for run in group.runs if not self._collect(run)]
        directory = self._plan.study.runs_dir / group.name
        cache = _cache(self._plan, group)
        entries = [self._entry(run, group, cache) for run in missing]
        content = {"deadline": self._deadline, "entries": entries}
        write_atomically(directory / "group.json", json.dumps(content, indent=1))
        log = directory / "group.log"
        print(f"{group.name}: {len(missing)} runs, see {log}", flush=True)
        with open(log, "ab") as file:
            end = file.tell()
            process = subprocess.Popen(
                [*WORKER, f"--group={directory}/group.json"],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=os.environ | _threads(self._jobs),
            )
            self._running.append(_Started(group, process, log, end))

    def _forget_outdated(self, run: Run) -> None:
        """Removes checkpoints of other options, also of the detector; marks the directory."""
        if run.config is None:
            return
        directory = pathlib.Path(run.config.model_dir)
        if not self._is_current(run, directory):
            print(f"{directory} was trained with other options: starting over", flush=True)
            shutil.rmtree(directory)
        write_atomically(directory / DIGEST, run.digest + "\n")

    def _is_current(self, run: Run, directory: pathlib.Path) -> bool:
        if (directory / DIGEST).is_file():
            return (directory / DIGEST).read_text().strip() == run.digest
        if not (directory / config_lib.FLAGFILE).is_file():
            return True
        # A directory of before that file: its own options, and what was last made of it.
        own = plan_lib.digest(config_lib.load(str(directory)))
        return own == _own_digest(run) and not self._results.is_outdated(run)

    def _entry(self, run: Run, group: Group, cache: pathlib.Path) -> dict:
        result = str(_result_file(self._plan, run))
        entry = {"result": result, "digest": run.digest, "splits": run.mask_classes}
        if run.config is None:
            return {**entry, "evaluate": run.evaluations}
        flagfile = _result_file(self._plan, run).with_suffix(".flags")
        write_atomically(flagfile, config_lib.to_text(run.config))
        can_cache = run.mode == "stage2_masks" and self._plan.study.share_features
        # These read more than is in a cache, or change what it holds.
        can_cache &= not (run.config.has_point_head or run.config.has_joint_scores)
        can_cache &= run.config.semantic_head == "none"
        keeps = str(cache) if can_cache else ""
        training_cache = keeps if group.shares_features else ""
        return {
            **entry,
            "flagfile": str(flagfile),
            "cache": training_cache,
            "evaluation_cache": keeps,
        }

    def _poll(self, started: _Started) -> None:
        code = started.process.poll()
        if self._shows_logs:
            started.show_new_lines()
        for run in started.group.runs:
            self._collect(run)
        if code is None:
            return
        self._running.remove(started)
        if all(self._results.has(run) for run in started.group.runs):
            shutil.rmtree(_cache(self._plan, started.group), ignore_errors=True)
        if code:
            tail = started.log.read_text(errors="replace").splitlines()[-5:]
            print("\n".join(["", *tail]), flush=True)
            self._failed.append(f"{started.group.name} (exit code {code}, {started.log})")
            if started.group.name.endswith("/detector"):
                self._waiting = [
                    group
                    for group in self._waiting
                    if group.seed != started.group.seed or not group.needs_detector
                ]

    def _collect(self, run: Run) -> bool:
        """Takes over a run's result if it is there; drops one of other options."""
        path = _result_file(self._plan, run)
        if not path.is_file():
            return False
        if not store.is_result(path, run.digest, run.mask_classes):
            path.unlink()
            return False
        result = json.loads(path.read_text())
        self._results.add(run, result["evaluations"], result["seconds"])
        path.unlink()
        self._made += 1
        pending = [r for group in self._waiting for r in group.runs]
        pending += [r for s in self._running for r in s.group.runs if not self._results.has(r)]
        left = remaining_seconds(self._plan, self._results, pending) / self._jobs
        took = format_duration(result["seconds"])
        scores = ", ".join(_scores(s, e["mask"]) for s, e in result["evaluations"].items())
        print(
            f"[{self._made}/{self._total}] {run.key}: {took}; {scores or 'trained'}; "
            f"ETA {format_duration(left)}",
            flush=True,
        )
        self._on_result()
        return True


def missing_groups(plan: Plan, results: Results, only: set[str], seeds: set[int]) -> list[Group]:
    """The groups with those of their runs that have no result; empty `only`: all rows."""
    found = []
    for group in plan.groups:
        runs = tuple(
            run
            for run in group.runs
            if not results.has(run) and run.seed in seeds and (not only or run.row.name in only)
        )
        if runs:
            found.append(dataclasses.replace(group, runs=runs))
    return found


def with_detectors(plan: Plan, groups: list[Group]) -> list[Group]:
    """The groups, each seed's detector before the first that needs it, if it is not trained."""
    found: list[Group] = []
    for group in groups:
        detector = plan.detector(group.seed)
        is_there = any(g.name == detector.key for g in found) or is_trained(detector)
        if group.needs_detector and not is_there:
            found.append(Group(detector.key, group.seed, (detector,), False, False))
        found.append(group)
    return found


def is_trained(run: Run) -> bool:
    """Whether the last checkpoint of a run is there, trained as it is declared now."""
    assert run.config
    directory = pathlib.Path(run.config.model_dir)
    return best.is_finished(run.config) and plan_lib.digest(
        config_lib.load(str(directory))
    ) == _own_digest(run)


def _own_digest(run: Run) -> str:
    assert run.config
    return plan_lib.digest(run.config)


def prepare(plan: Plan, seed: int) -> None:
    """Runs the commands of the declaration whose files are not there; draws the random splits.

    A command that names {detector} waits until that is trained.
    """
    for command, creates in plan.study.prepare:
        made = pathlib.Path(plan.fill(creates, seed))
        waits = "{detector}" in command and not is_trained(plan.detector(seed))
        if waits or made.exists():
            continue
        first, *arguments = (plan.fill(word, seed) for word in shlex.split(command))
        print(shlex.join([first, *arguments]), flush=True)
        program = sys.executable if first == "python" else first
        if subprocess.run([program, *arguments]).returncode or not made.exists():
            raise UserError(f"{shlex.join([first, *arguments])} failed or did not make {made}.")
    config = plan.detector(seed).config
    assert config
    for split in plan.drawn_splits(seed):
        path = pathlib.Path(split.mask_classes)
        if not path.is_file():
            vocabulary = (
                Vocabulary.load(config.vocabulary)
                if config.vocabulary
                else vocabulary_of(config.train_records)
            )
            write_split(path, vocabulary, split.size, seed)


def write_split(path: pathlib.Path, vocabulary: Vocabulary, size: int, seed: int) -> None:
    """Draws a set A, as `python -m tf_records.splits` does."""
    names = random_names(vocabulary.names, size, np.random.RandomState(seed))
    write_atomically(path, "\n".join(names) + "\n")


def _cache(plan: Plan, group: Group) -> pathlib.Path:
    return plan.study.runs_dir / "cache" / group.name


def _result_file(plan: Plan, run: Run) -> pathlib.Path:
    return plan.study.runs_dir / "pending" / f"{run.key}.json"


def _threads(jobs: int) -> dict[str, str]:
    if jobs == 1:
        return {}
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    return {"TF_NUM_INTRAOP_THREADS": threads, "OMP_NUM_THREADS": threads}


def _scores(split: str, mask: dict) -> str:
    a, b = (percent(mask[subset]["AP"]) for subset in ("A", "B"))
    return f"{split}: mask AP on A {a}, on B {b}"
