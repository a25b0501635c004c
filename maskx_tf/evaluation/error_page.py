"""The page that shows an evaluation's errors: what they cost, and the pictures with the worst."""

from __future__ import annotations

import base64
import html
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import cv2
import numpy as np

from maskx_tf import visualize
from maskx_tf.evaluation import errors
from maskx_tf.evaluation.coco import CocoEvaluator
from maskx_tf.evaluation.errors import Analysis, Error
from maskx_tf.evaluation.operating_point import MIN_SCORE
from maskx_tf.evaluation.report import SUBSETS, percent

PICTURES = 100
_PAIRS = 30  # of confused classes
_SIDE_PX = 480  # longest side of a picture

_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Errors of {title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 68em; padding: 0 1em;
  color: #222; }}
table {{ border-collapse: collapse; margin: 0.6em 0 1.6em; }}
th, td {{ padding: 0.2em 0.8em; text-align: right; border-bottom: 1px solid #ddd; }}
th:first-child, td:first-child, td.text {{ text-align: left; }}
td.bar {{ min-width: 14em; text-align: left; }}
td.bar i {{ display: block; height: 0.8em; background: #c0504d; }}
figure {{ margin: 0 0 2.2em; }}
figure img {{ max-width: 100%; }}
figcaption {{ color: #444; }}
</style></head><body>
<h1>Errors of {title}</h1>
<p>{about}</p>
<h2>What they cost</h2>
<p>AP at IoU 0.5, and how much of it each kind of error takes: what AP would gain if all of the
kind were mended (TIDE). Gains do not add up.</p>
{costs}
<h2>Classes taken for others</h2>
<p>Detections from score {min_score} on that fit an object of another class, and how often its class
is detected rightly.</p>
{confusions}
<h2>What a score means</h2>
<p>Of the detections with a score in each range: how many there are, and the share that is
right.</p>
{calibration}
<h2>The {count} images with the worst errors</h2>
<p>Left the objects, right the detections from score {min_score} on; classes with masks in training
green, others red. The worst come first: an error weighs its score, a missed object 1.</p>
{pictures}
</body></html>
"""


def page(
    evaluator: CocoEvaluator,
    names: Sequence[str],
    read_image: Callable[[int], np.ndarray],
    *,
    title: str,
    about: str,
) -> tuple[dict, str]:
    """What `errors.summarize` returns, and a page of HTML that needs no other file.

    Args:
      evaluator: has the detections of all images.
      names: of the classes 1..K.
      read_image: image id -> uint8 RGB [H, W, 3].
      title: what was evaluated.
      about: a sentence on it.
    """
    analysis = evaluator.errors()
    summary = errors.summarize(analysis, evaluator.subsets)
    pictures = _worst_pictures(analysis, evaluator, names, read_image)
    figures = [_figure(*of_image) for of_image in pictures]
    return summary, _PAGE.format(
        title=html.escape(title),
        about=html.escape(about),
        costs=_costs(summary),
        min_score=MIN_SCORE,
        confusions=_confusions(analysis, names),
        calibration=_calibration(analysis, evaluator.subsets["all"]),
        count=len(figures),
        pictures="\n".join(figures) or "<p>None: no object is missed, nothing is wrong.</p>",
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells of text, or of HTML where they begin with a tag of a cell."""
    lines = ["".join(f"<th>{html.escape(cell)}</th>" for cell in head)]
    for row in rows:
        lines.append(
            "".join(c if c.startswith("<td") else f"<td>{html.escape(c)}</td>" for c in row)
        )
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _bar(share: float | None) -> str:
    width = 0.0 if share is None else 100 * share
    return f'<td class="bar"><i style="width: {width:.1f}%"></i></td>'


def _costs(summary: Mapping[str, Mapping[str, float | None]]) -> str:
    kinds = {"AP50": "AP at IoU 0.5"} | errors.KINDS
    kinds |= {
        "false_positives": "all that is wrong, of whatever kind",
        "false_negatives": "all objects without a right detection",
    }
    whole = summary["all"]
    rows = []
    for kind, meaning in kinds.items():
        values = [percent(summary[subset][kind]) for subset in SUBSETS]
        bar = '<td class="bar"></td>' if kind == "AP50" else _bar(whole[kind])
        text = f'<td class="text">{html.escape(meaning)}</td>'
        rows.append([kind.replace("_", " "), text, *values, bar])
    return _table(["", "", *SUBSETS, ""], rows)


def _confusions(analysis: Analysis, names: Sequence[str]) -> str:
    counts = analysis.confusions(MIN_SCORE)
    wrong = {pair: n for pair, n in counts.items() if pair[0] != pair[1]}
    if not wrong:
        return "<p>None.</p>"
    ranked = sorted(wrong.items(), key=lambda item: (-item[1], item[0]))[:_PAIRS]
    rows = []
    for (a, b), times in ranked:
        rows.append([f"{names[a - 1]} as {names[b - 1]}", str(times), str(counts[a, a])])
    return _table(["object, detected as", "times", "right"], rows)


def _calibration(analysis: Analysis, class_ids: Collection[int]) -> str:
    table = analysis.calibration(class_ids)
    rows = [
        [
            f"{i / len(table):.1f} to {(i + 1) / len(table):.1f}",
            str(row["count"]),
            percent(row["score"]),
            percent(row["right"]),
            _bar(row["right"]),
        ]
        for i, row in enumerate(table)
    ]
    return _table(["score", "detections", "mean score, %", "right, %", ""], rows)


def _figure(caption: str, picture: np.ndarray, lines: list[str]) -> str:
    data = base64.b64encode(visualize.encode_picture(picture, "JPEG", quality=75)).decode()
    text = "<br>".join(map(html.escape, lines))
    return (
        f'<figure><img loading="lazy" alt="{html.escape(caption)}" '
        f'src="data:image/jpeg;base64,{data}"><figcaption><b>{html.escape(caption)}</b><br>{text}'
        "</figcaption></figure>"
    )


def _worst_pictures(
    analysis: Analysis,
    evaluator: CocoEvaluator,
    names: Sequence[str],
    read_image: Callable[[int], np.ndarray],
) -> Iterable[tuple[str, np.ndarray, list[str]]]:
    """(caption, uint8 RGB [H, W, 3], its errors in words) of the images with the worst errors."""
    ground_truth, detections = evaluator.ground_truth, evaluator.detections
    mask_class_ids = evaluator.subsets["A"]
    files = {image["id"]: str(image.get("file_name", "")) for image in ground_truth["images"]}
    objects = defaultdict(list)
    for annotation in ground_truth["annotations"]:
        objects[annotation["image_id"]].append(annotation)
    visible: dict[int, list[Error]] = defaultdict(list)
    for error in analysis.errors:
        if error.score >= MIN_SCORE:
            visible[error.image_id].append(error)
    ranked = sorted(visible, key=lambda i: (-sum(error.score for error in visible[i]), i))
    for image_id in ranked[:PICTURES]:
        image = read_image(image_id)
        sides = [
            _draw(image, rows, names, mask_class_ids)
            for rows in (objects[image_id], detections.get(image_id, ()))
        ]
        rows = sorted(visible[image_id], key=lambda error: -error.score)
        caption = f"image {image_id} {files.get(image_id, '')}".strip()
        yield caption, visualize.side_by_side(*sides), [_words(row, names) for row in rows]


def _draw(
    image: np.ndarray, rows: Sequence[dict], names: Sequence[str], mask_class_ids: Collection[int]
) -> np.ndarray:
    """Objects or detections over an image, shrunk to `_SIDE_PX`."""
    scale = min(1.0, _SIDE_PX / max(image.shape[:2]))
    if scale < 1:
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    corners = [(y, x, y + height, x + width) for x, y, width, height in (r["bbox"] for r in rows)]
    scores = [row["score"] for row in rows] if rows and "score" in rows[0] else None
    return visualize.draw_detections(
        image,
        scale * np.array(corners, np.float64).reshape(-1, 4),
        [row["category_id"] for row in rows],
        [row.get("segmentation") or None for row in rows],
        names,
        mask_class_ids,
        scores,
        MIN_SCORE,
    )


def _words(error: Error, names: Sequence[str]) -> str:
    """An error as a line."""
    obj = error.annotation and names[error.annotation["category_id"] - 1]
    if error.kind == errors.MISSED:
        return f"{obj} missed"
    assert error.detection
    shown = f"{names[error.detection['category_id'] - 1]} {error.score:.2f}: "
    return (
        shown
        + {
            errors.CLASS: f"is a {obj}",
            errors.BOX: f"the {obj} there is not where it says",
            errors.MASK: f"the box of a {obj}, not its outline",
            errors.BOTH: f"neither the class nor the place of the {obj} there",
            errors.DUPLICATE: f"the {obj} there is detected already",
            errors.BACKGROUND: "nothing is there",
        }[error.kind]
    )
