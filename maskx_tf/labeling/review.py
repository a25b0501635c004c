"""What a person should look at: doubtful masks and problems, as a list and as pictures."""

from __future__ import annotations

import csv
import io
import json
import pathlib
from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from maskx_tf import visualize
from maskx_tf.data.coco.images import read_image
from maskx_tf.labeling.labeler import PROBLEMS, Labels, Problem
from maskx_tf.labeling.source import Source
from maskx_tf.ops import masks as mask_ops

_COLUMNS = ("reason", "image_id", "file_name", "annotation_id", "class", "mask_score")
_MARGIN = 0.25  # of the box's sides, around it
_CELL_PX = 320
_PICTURES = 40


class Doubt(NamedTuple):
    """A row of the list: a mask with its score, or a problem (score None)."""

    reason: str
    image_id: int | None
    annotation: int | None
    score: float | None


def doubts(labels: Labels, min_quality: float) -> list[Doubt]:
    """Empty masks and those that score below `min_quality`, the worst first; then problems."""
    rows = []
    for index, mask in sorted(labels.masks.items(), key=lambda item: item[1].score):
        if not mask_ops.rle_area(mask.rle):
            rows.append(Doubt("mask_empty", None, index, mask.score))
        elif mask.score < min_quality:
            rows.append(Doubt("mask_doubtful", None, index, mask.score))
    return rows + [Doubt(p.reason, p.image_id, p.annotation, None) for p in labels.problems]


def to_csv(source: Source, rows: list[Doubt]) -> str:
    """The list as CSV with a head line."""
    files = {image.image_id: image.file_name for image in source.images}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for row in rows:
        image_id, number, name = row.image_id, None, None
        if row.annotation is not None:
            annotation = source.annotations[row.annotation]
            image_id, number, name = (annotation.image_id, annotation.number, annotation.class_name)
        score = "" if row.score is None else f"{row.score:.3f}"
        file_name = files.get(image_id, "") if image_id is not None else ""
        writer.writerow([row.reason, image_id, file_name, _plain(number), name, score])
    return text.getvalue()


def sheet(source: Source, labels: Labels, rows: list[Doubt], images: pathlib.Path) -> np.ndarray:
    """Pictures of the first doubtful masks, each with its surroundings: uint8 RGB [H, W, 3].

    Args:
      source: the json.
      labels: its masks.
      rows: as of `doubts`; those without a mask are left out.
      images: directory of the image files.
    """
    chosen = [row for row in rows if row.score is not None][:_PICTURES]
    pictures = [_picture(source, labels, row, images) for row in chosen]
    if not pictures:
        return np.full((_CELL_PX, _CELL_PX, 3), 255, np.uint8)
    return visualize.grid(pictures, columns=5)


def _picture(source: Source, labels: Labels, row: Doubt, images: pathlib.Path) -> np.ndarray:
    assert row.annotation is not None
    annotation = source.annotations[row.annotation]
    entry = next(image for image in source.images if image.image_id == annotation.image_id)
    image = read_image(images / entry.file_name, (entry.height, entry.width)).pixels
    x, y, width, height = annotation.bbox
    left, right = _window(x, width, image.shape[1])
    top, bottom = _window(y, height, image.shape[0])
    mask = mask_ops.decode_rle(labels.masks[row.annotation].rle)[top:bottom, left:right]
    part = np.ascontiguousarray(image[top:bottom, left:right])
    box = np.array([[y - top, x - left, y + height - top, x + width - left]])
    color = visualize.instance_colors([1], {1})
    drawn = visualize.draw(part, box, [mask], [f"{annotation.class_name} {row.score:.2f}"], color)
    scale = _CELL_PX / max(drawn.shape[:2])
    size = [max(round(side * scale), 1) for side in drawn.shape[:2]]
    resized = tf.image.resize(drawn, size, method="area")
    return tf.cast(tf.round(resized), tf.uint8).numpy()


def _window(low: float, length: float, limit: int) -> tuple[int, int]:
    """The pixels of a side with its margin that lie in the image; at least one."""
    margin = _MARGIN * length + 4
    start = int(np.clip(np.floor(low - margin), 0, limit - 1))
    return start, int(np.clip(np.ceil(low + length + margin), start + 1, limit))


def summary(labels: Labels, rows: list[Doubt]) -> str:
    """What was done and what went wrong, in a few lines."""
    counts = Counter(row.reason for row in rows)
    doubtful, empty = counts.pop("mask_doubtful", 0), counts.pop("mask_empty", 0)
    lines = [f"{len(labels.masks)} masks made; to look at: {doubtful} doubtful, {empty} empty"]
    lines += [f"{count:>7} {reason}: {PROBLEMS[reason]}" for reason, count in counts.most_common()]
    return "\n".join(lines)


def with_problems(labels: Labels, problems: list[Problem]) -> Labels:
    """The labels with further problems."""
    return labels._replace(problems=labels.problems + problems)


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, (int, str)) else json.dumps(value)
