"""The paper's tables in Markdown: mean ± standard deviation over seeds, published values beside."""

from __future__ import annotations

import numpy as np

from maskx_tf.evaluation.report import EMPTY
from maskx_tf.study.declaration import Study, Table
from maskx_tf.study.store import Results

GIVEN = "mask_given_boxes"


def table(study: Study, results: Results, declared: Table, section: str = "mask") -> str:
    """One table, with the published value in brackets after ours."""
    heads = []
    for column in declared.columns:
        split, subset = column.split("/")
        for metric in declared.metrics:
            heads.append(f"{study.splits[split].title}: {metric} on {subset}")
    lines = [_line(["", *heads]), "|---" * (len(heads) + 1) + "|"]
    for name in declared.rows:
        cells = []
        published = declared.published.get(name, (None,) * len(heads))
        for index, column in enumerate(declared.columns):
            split, subset = column.split("/")
            for place, metric in enumerate(declared.metrics):
                values = results.values(study.seeds, split, name, subset, metric, section)
                paper = published[index * len(declared.metrics) + place]
                cells.append(_cell(values, paper if section == "mask" else None))
        lines.append(_line([study.rows[name].title, *cells]))
    return "\n".join(lines)


def given_table(study: Study, results: Results, declared: Table) -> str:
    """AP, mean IoU, and that in shared boxes with the class-agnostic ceiling, a line a row."""
    columns = [column.split("/") for column in declared.columns]
    heads = [
        f"{study.splits[split].title}: {metric} on {subset}"
        for split, subset in columns
        for metric in ("AP", "IoU", "shared")
    ]
    lines = [_line(["", *heads]), "|---" * (len(heads) + 1) + "|"]
    for name in declared.rows:
        cells = []
        for split, subset in columns:
            of_metric = {
                metric: results.values(study.seeds, split, name, subset, metric, GIVEN)
                for metric in ("AP", "IoU", "IoU_shared", "ceiling_shared")
            }
            ceiling = of_metric.pop("ceiling_shared")
            cells += [spread(values) for values in of_metric.values()]
            cells[-1] += f" ({np.mean(ceiling):.1f})" if ceiling else ""
        lines.append(_line([study.rows[name].title, *cells]))
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    """`17.8 ± 3.8`: mean and sample standard deviation; the latter of several values only."""
    if not values:
        return EMPTY
    mean = f"{np.mean(values):.1f}"
    return f"{mean} ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else mean


def _cell(values: list[float], published: float | None) -> str:
    ours = spread(values)
    return ours if published is None or np.isnan(published) else f"{ours} ({published})"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def detector_table(study: Study, results: Results) -> str:
    """Box AP of the rows: that of the detector where it is shared."""
    splits = study.designed_splits
    heads = [f"{split.title}: {subset}" for split in splits for subset in ("A", "B")]
    lines = [_line(["", *heads]), "|---" * (len(heads) + 1) + "|"]
    for row in study.rows.values():
        cells = [
            spread(results.values(study.seeds, split, row.name, subset, section="box"))
            for split in splits
            for subset in ("A", "B")
        ]
        if any(cell != EMPTY for cell in cells):
            lines.append(_line([row.title, *cells]))
    return "\n".join(lines)
