"""What a person should look at: doubtful masks and problems, as a list and as pictures."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from maskx_tf import visualize
from maskx_tf.data.coco.images import read_image
from maskx_tf.labeling.labeler import Labels
from maskx_tf.labeling.source import Problem, Source
from maskx_tf.ops import masks as mask_ops

_COLUMNS = (
    "reason",
    "image_id",
    "file_name",
    "annotation_id",
    "class",
    "mask_score",
    "mask_agreement",
)
_MARGIN = 0.25  # of the box's sides, around it
_CELL_PX = 320
_PICTURES = 40


class Doubt(NamedTuple):
    """A mask to look at: its annotation's place, and what `labeler.Mask` says of it."""

    reason: str
    place: int
    score: float
    agreement: float


def doubts(labels: Labels, min_quality: float, min_agreement: float = 0.0) -> list[Doubt]:
    """Empty masks and those below one of the limits, the lowest score first."""
    rows = []
    for place, mask in sorted(labels.masks.items(), key=lambda item: item[1].score):
        if not mask_ops.rle_area(mask.rle):
            rows.append(Doubt("mask_empty", place, mask.score, mask.agreement))
        elif mask.score < min_quality or mask.agreement < min_agreement:
            rows.append(Doubt("mask_doubtful", place, mask.score, mask.agreement))
    return rows


def to_csv(source: Source, rows: list[Doubt], problems: list[Problem]) -> str:
    """Doubtful masks and problems as CSV with a head line."""
    files = {image.image_id: image.file_name for image in source.images}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for row in rows:
        annotation, number = source.annotations[row.place], source.number(row.place)
        place = [annotation.image_id, files[annotation.image_id], _plain(number)]
        qualities = [f"{row.score:.3f}", f"{row.agreement:.3f}"]
        writer.writerow([row.reason, *place, annotation.class_name, *qualities])
    for problem in problems:
        file_name = "" if problem.image_id is None else files.get(problem.image_id, "")
        place = [problem.image_id, file_name, _plain(problem.number)]
        writer.writerow([problem.reason, *place, problem.class_name, "", ""])
    return text.getvalue()


def sheet(source: Source, labels: Labels, rows: list[Doubt]) -> np.ndarray:
    """Pictures of the first doubtful masks, each with its surroundings: uint8 RGB [H, W, 3].

    Args:
      source: the json.
      labels: its masks.
      rows: as of `doubts`.
    """
    pictures = [_picture(source, labels, row) for row in rows[:_PICTURES]]
    if not pictures:
        return np.full((_CELL_PX, _CELL_PX, 3), 255, np.uint8)
    return visualize.grid(pictures, columns=5)


def _picture(source: Source, labels: Labels, row: Doubt) -> np.ndarray:
    annotation = source.annotations[row.place]
    entry = next(image for image in source.images if image.image_id == annotation.image_id)
    image = read_image(entry.path, entry.said_size).pixels
    x, y, width, height = annotation.bbox
    left, right = _window(x, width, image.shape[1])
    top, bottom = _window(y, height, image.shape[0])
    mask = mask_ops.decode_rle(labels.masks[row.place].rle)[top:bottom, left:right]
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
    doubtful, empty = (
        sum(row.reason == reason for row in rows) for reason in ("mask_doubtful", "mask_empty")
    )
    lines = [f"{len(labels.masks)} masks made; to look at: {doubtful} doubtful, {empty} empty"]
    counts = Counter((problem.reason, problem.meaning) for problem in labels.problems)
    lines += [f"{n:>7} {reason}: {meaning}" for (reason, meaning), n in counts.most_common()]
    return "\n".join(lines)


def with_problems(labels: Labels, problems: list[Problem]) -> Labels:
    """The labels with further problems."""
    return labels._replace(problems=labels.problems + problems)


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, (int, str)) else json.dumps(value)
