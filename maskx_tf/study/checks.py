"""Whether the paper's claims hold here: paired differences between rows."""

from __future__ import annotations

import dataclasses

import numpy as np

from maskx_tf.evaluation.report import EMPTY
from maskx_tf.study.declaration import Check
from maskx_tf.study.plan import Plan
from maskx_tf.study.store import Results
from maskx_tf.study.tables import spread

_SAME_BOXES = 1e-3  # AP points, for the rounding of an evaluation from cached features


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A pair of rows, compared within each seed and split.

    Attributes:
      differences: higher - lower in AP points, one for each seed and split that has both.
      given_boxes: the same of the masks in ground-truth boxes, whatever a detector finds.
      interval: of the mean, 95 %, in AP points: classes, and runs, drawn anew; None where runs have
        no scores of single classes.
      holds: whether their mean has the sign of the claim; None without a difference.
      unpaired: seeds and splits left out because the two rows are on different detectors, so that
        more than their mask heads differs. Rows end to end are detectors of their own.
    """

    check: Check
    higher: str
    lower: str
    differences: tuple[float, ...]
    given_boxes: tuple[float, ...]
    interval: tuple[float, float] | None
    holds: bool | None
    unpaired: int


def compare(plan: Plan, results: Results, check: Check) -> list[Comparison]:
    """Every pair of a claim over the designed splits."""
    return [
        _compare(plan, results, check, higher, lower)
        for higher in check.higher
        for lower in check.lower
    ]


def _compare(plan: Plan, results: Results, check: Check, higher: str, lower: str) -> Comparison:
    differences, given_boxes, of_classes, unpaired = [], [], [], 0
    share_detector = {higher, lower} <= plan.stage_wise
    for split in plan.study.designed_splits:
        for seed in plan.study.seeds:
            of_masks, given = (
                _difference(results, seed, split.name, higher, lower, check.subset, section)
                for section in ("mask", "mask_given_boxes")
            )
            if share_detector and _have_other_boxes(results, seed, split.name, higher, lower):
                unpaired += 1
                continue
            differences += of_masks
            of_classes += _of_classes(results, seed, split.name, higher, lower, check.subset)
            given_boxes += given
    mean = float(np.mean(differences)) if differences else None
    if mean is None:
        holds = None
    elif check.at_least:
        holds = mean >= -check.tolerance
    else:
        holds = mean > 0
    interval = bootstrap(of_classes) if len(of_classes) == len(differences) > 0 else None
    return Comparison(
        check, higher, lower, tuple(differences), tuple(given_boxes), interval, holds, unpaired
    )


def _difference(results: Results, seed, split, higher, lower, subset, section) -> list[float]:
    """AP of one row less that of another; empty where either has none."""
    pair = [results.value(seed, split, r, subset, section=section) for r in (higher, lower)]
    return [] if pair[0] is None or pair[1] is None else [pair[0] - pair[1]]


def _of_classes(results: Results, seed, split, higher, lower, subset) -> list[np.ndarray]:
    """Differences of single classes in AP points, [classes]; empty where either row has none."""
    pair = [results.class_scores(seed, split, row, subset) for row in (higher, lower)]
    if pair[0] is None or pair[1] is None or len(pair[0]) != len(pair[1]):
        return []
    difference = pair[0] - pair[1]
    return [difference[~np.isnan(difference)]]


def bootstrap(groups: list[np.ndarray], draws: int = 2000) -> tuple[float, float]:
    """95 % interval of the mean of group means: groups are drawn anew, and values in each.

    Args:
      groups: of each run the differences of its classes.
      draws: how many; always the same ones.
    """
    rng = np.random.default_rng(0)
    means = [
        np.mean([rng.choice(groups[i], len(groups[i])).mean() for i in chosen])
        for chosen in rng.integers(len(groups), size=(draws, len(groups)))
    ]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def _have_other_boxes(results: Results, seed: int, split: str, one: str, other: str) -> bool:
    """Whether the box AP of two rows differs: one detector finds the same boxes for both."""
    first, second = (results.value(seed, split, row, "all", section="box") for row in (one, other))
    return first is not None and second is not None and abs(first - second) > _SAME_BOXES


def table(plan: Plan, results: Results) -> str:
    """All claims in Markdown: the difference, in how many of the pairs, and the verdict."""
    heads = ["claim", "on", "rows compared", "difference", "95 %", "pairs", "", "given the boxes"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    study = plan.study
    for check in study.checks:
        for found in compare(plan, results, check):
            titles = f"{study.rows[found.higher].title} − {study.rows[found.lower].title}"
            wins = sum(d > 0 for d in found.differences)
            pairs = f"{wins} of {len(found.differences)} above 0" if found.differences else EMPTY
            if found.unpaired:
                pairs += f"; {found.unpaired} on different detectors left out"
            verdict = {True: "holds", False: "**does not hold**", None: "not run"}[found.holds]
            cells = [check.claim, check.subset, titles, spread(list(found.differences))]
            ends = [f"{end:.1f}" for end in found.interval or ()]
            cells.append(" to ".join(ends) or EMPTY)
            cells += [pairs, verdict, spread(list(found.given_boxes))]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
