"""How long runs will take: as long as their row has taken, or as the declaration says."""

from __future__ import annotations

from collections.abc import Iterable

from maskx_tf.study.plan import Group, Plan, Run
from maskx_tf.study.store import Results
from maskx_tf.system.progress import format_duration

EVALUATION_SECONDS = 30.0  # where nothing has been measured


def run_seconds(plan: Plan, results: Results, run: Run) -> float:
    """Seconds of one run."""
    measured = results.seconds(run)
    if measured is not None:
        return measured
    per_step = plan.study.seconds_per_step.get(run.mode, 0.0)
    training = per_step * run.config.train_steps if run.config else 0.0
    return training + EVALUATION_SECONDS * len(run.splits)


def remaining_seconds(plan: Plan, results: Results, runs: Iterable[Run]) -> float:
    """Seconds of several runs, one after the other."""
    return sum(run_seconds(plan, results, run) for run in runs)


def describe(plan: Plan, results: Results, groups: list[Group], jobs: int) -> str:
    """The plan for people: groups in order, their runs and their time."""
    lines, total = [], 0.0
    for group in groups:
        seconds = remaining_seconds(plan, results, group.runs)
        total += seconds
        names = ", ".join(run.row.name for run in group.runs)
        lines.append(f"{group.name:32} {format_duration(seconds):>10}  {names}")
    runs = sum(len(group.runs) for group in groups)
    outdated = [r.key for group in groups for r in group.runs if results.is_outdated(r)]
    done = sum(results.has(run) for run in plan.runs)
    lines.append(
        f"{runs} runs to do, {done} of {len(plan.runs)} done; about "
        f"{format_duration(total / jobs)} with --jobs={jobs}"
    )
    if outdated:
        lines.append(f"some are repeated because their options changed: {', '.join(outdated)}")
    return "\n".join(lines)
