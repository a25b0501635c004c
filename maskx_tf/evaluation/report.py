"""What people read of an evaluation: the table and the json file."""

from __future__ import annotations

import json
from collections.abc import Collection

from maskx_tf.evaluation import ceiling, federated
from maskx_tf.evaluation.errors import KINDS
from maskx_tf.system.files import write_atomically

SECTIONS = {"box": "box", "mask": "mask", "mask_given_boxes": "mask, boxes given"}
SUBSETS = ("A", "B", "all")
EMPTY = "–"


def format_table(results: dict, mask_classes: Collection[str] | None = None) -> str:
    """Aligned text of what `CocoEvaluator.evaluate` returns, AP in percent, "–" where undefined.

    Args:
      results: sections "box", "mask" and perhaps "mask_given_boxes".
      mask_classes: names of set A, for a table of all classes as well, each with its set.

    Returns:
      Lines without a trailing newline: A, B and all per section; then, if the results have them,
      the operating point, and on request one line per class.
    """
    sections = [section for section in SECTIONS if section in results]
    metrics = [name for name in results[sections[0]]["all"] if name not in ceiling.METRICS]
    rows = [["", "", *metrics]]
    for section in sections:
        for subset in SUBSETS:
            values = [percent(results[section][subset][metric]) for metric in metrics]
            rows.append([SECTIONS[section] if subset == SUBSETS[0] else "", subset, *values])
    text = align(rows, left_columns=2)
    if "protocol" in results:
        text += (
            f"\n{results['protocol']}'s protocol: up to {federated.MAX_DETECTIONS} detections of "
            "an image, of those classes that it is annotated for; APr, APc, APf of rare, common, "
            "frequent classes."
        )
    if "mask_given_boxes" in results:
        text += f"\n{align(_iou_rows(results['mask_given_boxes']), left_columns=1)}"
    if "operating_point" in results:
        text += f"\n{format_operating_point(results['operating_point'])}"
    if mask_classes is not None:
        text += "\n\n" + _class_table(results, sections, mask_classes)
    return text


def _iou_rows(section: dict) -> list[list[str]]:
    """Mean IoU of masks in given boxes, and the most that a class-agnostic model can reach."""
    names = {"IoU": "mean IoU, boxes given"}
    if section["all"]["shared"]:
        names |= {
            "ceiling": "  class-agnostic: at most",
            "shared": "share in another class's box",
            "IoU_shared": "  mean IoU of these",
            "ceiling_shared": "  class-agnostic: at most",
        }
    rows = [["", *SUBSETS]]
    for metric, title in names.items():
        rows.append([title, *(percent(section[subset][metric]) for subset in SUBSETS)])
    return rows


def format_operating_point(point: dict) -> str:
    """A sentence on what `operating_point.operating_point` returns, over all classes."""
    return (
        f"At score {point['score']}, {percent(point['all']['recall'])} % of the objects are shown, "
        f"and {percent(point['all']['precision'])} % of what is shown is right (class, and box "
        f"IoU from {point['box_iou']} on)."
    )


def format_errors(summary: dict) -> str:
    """A table of what `errors.summarize` returns: what each kind of error takes from AP."""
    rows = [["AP lost to", *SUBSETS]]
    for kind in KINDS:
        values = [percent(summary[subset][kind]) for subset in SUBSETS]
        rows.append([f"{kind}: {KINDS[kind]}", *values])
    return align(rows, left_columns=1)


def _class_table(results: dict, sections: list[str], mask_classes: Collection[str]) -> str:
    rows = [["AP per class", "set", *(SECTIONS[section] for section in sections)]]
    for name in results[sections[0]]["per_class"]:
        subset = "A" if name in mask_classes else "B"
        values = [percent(results[section]["per_class"][name]) for section in sections]
        rows.append([name, subset, *values])
    return align(rows, left_columns=2)


def percent(value: float | None) -> str:
    """A score in [0, 1] as tables have it."""
    return EMPTY if value is None else f"{100 * value:.1f}"


def align(rows: list[list[str]], left_columns: int) -> str:
    """Columns of equal width, the first ones flush left, numbers flush right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    widths = [w if i < left_columns else max(w, 5) for i, w in enumerate(widths)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if i < left_columns else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def write_json(results: dict, path: str) -> None:
    """Writes results as indented json, atomically; makes the directory."""
    write_atomically(path, json.dumps(results, indent=2, ensure_ascii=False) + "\n")


def scalars(results: dict) -> dict[str, float]:
    """The defined values of every section and subset under names like `mask/B/AP50`."""
    return {
        f"{section}/{subset}/{metric}": value
        for section in SECTIONS
        if section in results
        for subset in SUBSETS
        for metric, value in results[section][subset].items()
        if value is not None
    }
