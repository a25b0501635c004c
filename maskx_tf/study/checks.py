"""Whether the paper's claims hold here: paired differences between rows."""

from __future__ import annotations

import dataclasses

import numpy as np

from maskx_tf.study.declaration import Check, Study
from maskx_tf.study.store import Results
from maskx_tf.study.tables import spread


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A pair of rows, compared within each seed and split.

    Attributes:
      differences: higher - lower in AP points, one for each seed and split that has both.
      holds: whether their mean has the sign of the claim; None without a difference.
    """

    check: Check
    higher: str
    lower: str
    differences: tuple[float, ...]
    holds: bool | None


def compare(study: Study, results: Results, check: Check) -> list[Comparison]:
    """Every pair of a claim over the designed splits."""
    return [
        _compare(study, results, check, higher, lower)
        for higher in check.higher
        for lower in check.lower
    ]


def _compare(study: Study, results: Results, check: Check, higher: str, lower: str) -> Comparison:
    differences = []
    for split in study.designed_splits:
        for seed in study.seeds:
            pair = [results.value(seed, split.name, r, check.subset) for r in (higher, lower)]
            if pair[0] is not None and pair[1] is not None:
                differences.append(pair[0] - pair[1])
    mean = float(np.mean(differences)) if differences else None
    if mean is None:
        holds = None
    elif check.at_least:
        holds = mean >= -check.tolerance
    else:
        holds = mean > 0
    return Comparison(check, higher, lower, tuple(differences), holds)


def table(study: Study, results: Results) -> str:
    """All claims in Markdown: the difference, in how many of the pairs, and the verdict."""
    lines = ["| claim | on | rows compared | difference | pairs | |", "|---|---|---|---|---|---|"]
    for check in study.checks:
        for found in compare(study, results, check):
            titles = f"{study.rows[found.higher].title} − {study.rows[found.lower].title}"
            wins = sum(d > 0 for d in found.differences)
            pairs = f"{wins} of {len(found.differences)} above 0" if found.differences else "–"
            verdict = {True: "holds", False: "**does not hold**", None: "not run"}[found.holds]
            cells = [check.claim, check.subset, titles, spread(list(found.differences))]
            lines.append(f"| {' | '.join(cells)} | {pairs} | {verdict} |")
    return "\n".join(lines)
