"""Figures of a study as PNG: AP over the size of A, and a bar chart for each table."""

from __future__ import annotations

import io
import pathlib

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

from maskx_tf.study.declaration import Study, Table
from maskx_tf.study.store import Results
from maskx_tf.system.files import write_atomically

COLORS = plt.get_cmap("tab10").colors  # type: ignore[attr-defined]


def over_size(study: Study, results: Results, path: pathlib.Path) -> bool:
    """AP on B over the number of classes in A, a line a row (the paper's figure 3).

    Returns:
      Whether there was something to draw.
    """
    drawn = sorted((s for s in study.splits.values() if s.size), key=lambda s: s.size)
    names = list(dict.fromkeys(name for split in drawn for name in split.rows))
    figure, axes = plt.subplots(figsize=(5, 3.5), layout="constrained")
    points = 0
    for place, name in enumerate(names):
        color = COLORS[place % len(COLORS)]
        found = [(s.size, results.values(study.seeds, s, name, "B")) for s in drawn]
        found = [(size, values) for size, values in found if values]
        points += len(found)
        for size, values in found:
            axes.plot([size] * len(values), values, ".", color=color, alpha=0.5)
        sizes, means = [size for size, _ in found], [np.mean(values) for _, values in found]
        axes.plot(sizes, means, "o-", color=color, label=study.rows[name].title)
    if points:
        axes.set_xlabel("classes in A, drawn at random")
        axes.set_ylabel("mask AP on B")
        axes.set_xticks(sorted({s.size for s in drawn}))
        axes.set_ylim(bottom=0)
        axes.legend(loc="lower right")
        axes.grid(alpha=0.3)
        _save(figure, path)
    plt.close(figure)
    return points > 0


def bars(study: Study, results: Results, table: Table, path: pathlib.Path) -> bool:
    """Mask AP of a table's rows, one panel a column; bars are means, dots seeds."""
    columns = [column.split("/") for column in table.columns]
    values = {
        (name, *column): results.values(study.seeds, column[0], name, column[1])
        for name in table.rows
        for column in columns
    }
    if not any(values.values()):
        return False
    width, lines = 1.5 + 0.5 * len(table.rows), -(-len(columns) // 2)
    figure, grid = plt.subplots(
        lines, 2, figsize=(2 * width, 3.4 * lines), sharey=True, squeeze=False, layout="constrained"
    )
    panels = grid.flat
    titles = [study.rows[name].title for name in table.rows]
    for axes, (split, subset) in zip(panels, columns, strict=False):
        for place, name in enumerate(table.rows):
            found = values[name, split, subset]
            if found:
                axes.bar(place, np.mean(found), color=COLORS[place % len(COLORS)], alpha=0.7)
                axes.plot([place] * len(found), found, "k.", markersize=4)
        axes.set_xticks(range(len(titles)), titles, rotation=40, ha="right", fontsize=8)
        axes.set_xlim(-0.6, len(titles) - 0.4)  # with room for rows that are not run yet
        axes.set_title(f"{study.splits[split].title}: AP on {subset}", fontsize=10)
        axes.grid(axis="y", alpha=0.3)
    for axes in grid[:, 0]:
        axes.set_ylabel("mask AP")
    _save(figure, path)
    plt.close(figure)
    return True


def _save(figure, path: pathlib.Path) -> None:
    stream = io.BytesIO()
    figure.savefig(stream, dpi=110, format="png", metadata={"Software": None})
    write_atomically(path, stream.getvalue())
