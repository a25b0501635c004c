"""What people read of a study: `docs/results/STUDY/`, written anew after every result."""

from __future__ import annotations

from maskx_tf.checkpoints import VOCABULARY
from maskx_tf.study import checks, figures, tables
from maskx_tf.study.declaration import Study
from maskx_tf.study.plan import Plan
from maskx_tf.study.store import Results
from maskx_tf.system.files import write_atomically

NOTES = "notes.md"  # written by people


def write(plan: Plan, results: Results, command: str) -> None:
    """Writes README.md, commands.md and the figures; `notes.md`, if there, becomes a part.

    Results that are not of the plan's runs as they are declared now are left out.
    """
    study, directory = plan.study, plan.study.results_dir
    results = results.current(plan.runs)
    parts = [f"# {study.title}", _head(plan, results, command)]
    for number, table in enumerate(study.tables, start=1):
        parts.append(f"## {table.title}\n\n{tables.table(study, results, table)}")
        picture = f"table{number}.png"
        if figures.bars(study, results, table, directory / picture):
            parts.append(f"![Mask AP of the rows of {table.title}]({picture})")
    if figures.over_size(study, results, directory / "sizes.png"):
        parts.append(f"## AP on B by the size of A\n\n{_sizes(study, results)}")
        parts.append("![Mask AP on B over the number of classes in A](sizes.png)")
    title = "The paper's orderings" if is_published(study) else "Claims"
    parts.append(f"## {title}\n\n{_ABOUT_CHECKS}\n\n{checks.table(plan, results)}")
    notes = directory / NOTES
    if notes.is_file():
        parts.append(f"## Notes\n\n{notes.read_text().strip()}")
    parts.append(f"## Masks in the ground-truth boxes\n\n{_given(study, results)}")
    parts.append(f"## Boxes\n\nBox AP.\n\n{tables.detector_table(study, results)}")
    parts.append("The exact command of every run: [commands.md](commands.md).")
    write_atomically(directory / "README.md", "\n\n".join(parts) + "\n")
    write_atomically(directory / "commands.md", _commands(plan))


def is_published(study: Study) -> bool:
    """Whether there are published scores beside the study's."""
    return any(table.published for table in study.tables)


_ABOUT_CHECKS = (
    "Differences in mask AP between rows, paired within each seed and split: mean ± standard "
    "deviation, and how many of the pairs are above 0. A claim holds if the mean has its sign. The "
    "last column is the same difference in the ground-truth boxes, whatever a detector finds."
)


def _head(plan: Plan, results: Results, command: str) -> str:
    study = plan.study
    done = sum(results.has(run) for run in plan.runs)
    seeds = ", ".join(map(str, study.seeds))
    brackets = (
        " The paper's score of the same row on COCO is in brackets." if is_published(study) else ""
    )
    text = (
        "Mask AP in percent on A (classes with masks) and on B (classes without): mean ± standard "
        f"deviation over the seeds.{brackets} Seeds {seeds}; {done} of {len(plan.runs)} runs are "
        f"done. Command:\n\n    {command}"
    )
    return text


def _sizes(study: Study, results: Results) -> str:
    drawn = sorted((s for s in study.splits.values() if s.size), key=lambda s: s.size)
    lines = ["| classes in A | row | AP on B | AP on A |", "|---|---|---|---|"]
    for split in drawn:
        for name in split.rows:
            on_b, on_a = (
                tables.spread(results.values(study.seeds, split, name, subset))
                for subset in ("B", "A")
            )
            lines.append(f"| {split.size} | {study.rows[name].title} | {on_b} | {on_a} |")
    return "\n".join(lines)


def _given(study: Study, results: Results) -> str:
    parts = ["AP of the masks alone: the boxes and classes are given."]
    has_ious = any(
        "IoU" in evaluation.get(tables.GIVEN, {}).get("all", {})
        for run in results.runs.values()
        for evaluation in run["evaluations"].values()
    )
    if has_ious:
        parts[0] += (
            " Mean IoU of all objects; and of those whose box an object of another class shares, "
            "in brackets the most that a model can reach which does not see the class."
        )
    for table in study.tables:
        text = (
            tables.given_table(study, results, table)
            if has_ious
            else tables.table(study, results, table, section=tables.GIVEN)
        )
        parts.append(f"**{table.title}**\n\n{text}")
    return "\n\n".join(parts)


def _commands(plan: Plan) -> str:
    lines = [f"# The commands of {plan.study.title}", ""]
    lines += ["Run them in the root of the repository; a run comes after those it needs.", ""]
    for seed in plan.study.seeds:
        lines += [f"    {plan.fill(command, seed)}" for command, _ in plan.study.prepare]
        detector = plan.detector(seed)
        lines += [f"    {command}" for command in detector.commands]
        assert detector.config
        # The detector's classes, which are those of the records.
        vocabulary = f"--vocabulary={detector.config.model_dir}/{VOCABULARY}"
        for split in plan.drawn_splits(seed):
            draw = f"--size={split.size} --seed={seed} --output={split.mask_classes}"
            lines.append(f"    python -m tf_records.splits {vocabulary} {draw}")
        for group in (group for group in plan.groups if group.seed == seed):
            lines += [f"    {command}" for run in group.runs for command in run.commands]
        lines.append("")
    return "\n".join(lines)
