"""Results of any tool, COCO's json of detections, scored as a model's are."""

from __future__ import annotations

import math
import pathlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as mask_lib

from maskx_tf.config import Config
from maskx_tf.data.classes import Vocabulary, load_mask_classes
from maskx_tf.data.coco import instances, kinds
from maskx_tf.data.coco.json_stream import JsonStream
from maskx_tf.data.coco.masks import MaskError, read_segmentation
from maskx_tf.data.coco.values import as_number, short, whole_number
from maskx_tf.data.records.manifest import vocabulary_of
from maskx_tf.errors import UserError
from maskx_tf.evaluation.checkpoint import Evaluation, exact_ground_truth, report_of
from maskx_tf.evaluation.coco import CocoEvaluator
from maskx_tf.evaluation.ground_truth import ground_truth_from_records
from maskx_tf.ops import masks as mask_ops


class Result(NamedTuple):
    """A row of the file.

    Attributes:
      box_yxyx: (y1, x1, y2, x2) in pixels of the image.
      class_id: 1..K; 0 if the row has no category_id.
      score: any number; a mask in a given box needs none.
      rle: its mask; None if it has none.
    """

    box_yxyx: tuple[float, ...]
    class_id: int
    score: float
    rle: mask_ops.Rle | None


def read(
    path: str, flag: str, ground_truth: Mapping[str, Any], class_ids: Mapping[int, int]
) -> dict[int, list[Result]]:
    """The rows of a file by image id, in its order.

    Args:
      path: of a json list of {"image_id", "category_id", "bbox" or "segmentation", "score"}; a
        "file_name", or an image_id that is text, is that of an image, perhaps without its ending.
      flag: that named it.
      ground_truth: COCO layout.
      class_ids: category id of the file -> 1..K.

    Raises:
      UserError: it is none, a row cannot be used, or is of an unknown image or category.
    """
    sizes = {image["id"]: (image["height"], image["width"]) for image in ground_truth["images"]}
    by_name = {
        name: image["id"]
        for image in ground_truth["images"]
        for name in _names(image.get("file_name", ""))
    }
    results: dict[int, list[Result]] = defaultdict(list)
    try:
        with open(path, "rb") as file:
            if kind := kinds.no_json(file.read(kinds.HEAD_BYTES)):
                raise UserError(f"{flag}={path} is not json: {kind}.")
            file.seek(0)
            stream = JsonStream(file, path, pathlib.Path(path).stat().st_size)
            for number, row in enumerate(stream.values()):
                try:
                    image_id, result = _read_row(row, sizes, by_name, class_ids)
                except _BadRowError as error:
                    raise UserError(
                        f"{flag}={path}: row {number}, {short(row)}: {error}."
                    ) from None
                results[image_id].append(result)
    except OSError as error:
        raise UserError(f"{flag}={path} cannot be read: {error.strerror}.") from None
    return results


def add_detections(
    evaluator: CocoEvaluator, results: Mapping[int, Sequence[Result]], flag: str
) -> None:
    """Adds detections: with masks if all have one, boxes alone if none has.

    Raises:
      UserError: some have a mask and some have none, or one has no class or no score.
    """
    rows = [row for of_image in results.values() for row in of_image]
    masked = sum(row.rle is not None for row in rows)
    if masked not in (0, len(rows)):
        raise UserError(
            f"{flag}: {masked} of {len(rows)} detections have a mask; give all or none."
        )
    if any(not row.class_id or math.isnan(row.score) for row in rows):
        raise UserError(f"{flag}: every detection needs a category_id and a score.")
    for image_id, of_image in results.items():
        evaluator.add(
            image_id,
            np.array([row.box_yxyx for row in of_image]),
            [row.score for row in of_image],
            [row.class_id for row in of_image],
            [row.rle for row in of_image if row.rle is not None] if masked else None,
        )


def add_given_boxes(
    evaluator: CocoEvaluator, results: Mapping[int, Sequence[Result]], flag: str
) -> None:
    """Adds masks that a tool made for the boxes of the ground truth.

    Without a category_id, as of a tool that is given boxes alone, each object takes the row whose
    box is nearest to its own: objects in one box share a mask.

    Raises:
      UserError: a row has no mask, or some have a category_id and some have none.
    """
    rows = [row for of_image in results.values() for row in of_image]
    if any(row.rle is None for row in rows):
        raise UserError(f"{flag}: every row needs a segmentation: the mask of a given box.")
    if len({row.class_id > 0 for row in rows}) > 1:
        raise UserError(f"{flag}: give all rows a category_id, or none.")
    has_class = bool(rows and rows[0].class_id)
    objects = defaultdict(list)
    for annotation in evaluator.ground_truth["annotations"]:
        if not annotation["iscrowd"]:
            objects[annotation["image_id"]].append(annotation)
    for image_id, of_image in results.items():
        chosen = of_image if has_class else _nearest(objects[image_id], of_image)
        if chosen:
            evaluator.add_given_boxes(
                image_id,
                np.array([row.box_yxyx for row in chosen]),
                [row.class_id for row in chosen],
                [row.rle for row in chosen if row.rle is not None],
            )


def evaluate(
    detections: str,
    given_boxes: str,
    config: Config,
    *,
    annotations: str = "",
    engine: str = "faster_coco_eval",
    error_page: bool = False,
) -> Evaluation:
    """Scores results on `config.eval_records`, without a model; every class's AP is listed.

    Args:
      detections: path of a COCO json of detections; "" if there is none.
      given_boxes: path of a COCO json of masks for the boxes of the ground truth; "" if there is
        none.
      config: has `eval_records`, `vocabulary` and `mask_classes`, which is set A.
      annotations: COCO json of the same images: its exact masks, and its category ids.
      engine: one of `coco.ENGINES`.
      error_page: see `checkpoint.evaluate`; of detections.

    Raises:
      UserError: the results, the records or the json cannot be used.
    """
    if not config.eval_records:
        raise UserError("There is nothing to compare with: set --eval_records=DIRECTORY.")
    vocabulary = (
        Vocabulary.load(config.vocabulary)
        if config.vocabulary
        else vocabulary_of(config.eval_records)
    )
    of_file = instances.read_categories(annotations) if annotations else vocabulary
    class_ids = class_ids_of(of_file, vocabulary)
    if annotations:
        truth = exact_ground_truth(annotations, config, vocabulary)
    else:
        truth = ground_truth_from_records(config.eval_records, vocabulary)
    set_a = load_mask_classes(config.mask_classes, vocabulary)
    evaluator = CocoEvaluator(truth, vocabulary, set_a, engine)
    for path, flag, add in (
        (detections, "--results", add_detections),
        (given_boxes, "--given_box_results", add_given_boxes),
    ):
        if path:
            add(evaluator, read(path, flag, truth, class_ids), f"{flag}={path}")
    results = evaluator.evaluate(per_class=True)
    what = " and ".join(path for path in (detections, given_boxes) if path)
    return report_of(what, evaluator, results, vocabulary, config, annotations, error_page)


class _BadRowError(ValueError):
    """Why a row cannot be used."""


def _names(file_name: str) -> tuple[str, str]:
    """What other tools call an image: the name of its file, with and without ending."""
    path = pathlib.PurePosixPath(file_name)
    return path.name, path.stem


def _read_row(
    row: Any,
    sizes: Mapping[int, tuple[int, int]],
    by_name: Mapping[str, int],
    class_ids: Mapping[int, int],
) -> tuple[int, Result]:
    if not isinstance(row, dict):
        raise _BadRowError("it is no object")
    said = row.get("file_name", row.get("image_id"))
    image_id = by_name.get(_names(said)[0]) if isinstance(said, str) else None
    if image_id is None:
        image_id = whole_number(row.get("image_id"))
    if image_id is None or image_id not in sizes:
        raise _BadRowError(f"image_id is none of the {len(sizes)} images of the ground truth")
    class_id = 0
    if row.get("category_id") is not None:
        number = whole_number(row["category_id"])
        if number is None or number not in class_ids:
            raise _BadRowError(f"category_id is none of {short(sorted(class_ids))}")
        class_id = class_ids[number]
    score = math.nan if row.get("score") is None else as_number(row["score"])
    if score is None or math.isinf(score):
        raise _BadRowError("score is no number")
    size = sizes[image_id]
    try:
        segmentation = read_segmentation(row.get("segmentation"), [size])
        rle = None if segmentation is None else segmentation.rle(size)
    except MaskError as error:
        raise _BadRowError(f"its segmentation cannot be read ({error.reason})") from None
    bbox = row.get("bbox")
    if bbox is None and rle is not None:
        bbox = mask_lib.toBbox(rle).tolist()
    numbers = [as_number(value) for value in bbox] if isinstance(bbox, list) else []
    values = [number for number in numbers if number is not None and math.isfinite(number)]
    if len(numbers) != 4 or len(values) < 4:
        raise _BadRowError("bbox is not four numbers")
    x, y, width, height = values
    return image_id, Result((y, x, y + height, x + width), class_id, score, rle)


def _nearest(objects: Sequence[Mapping[str, Any]], rows: Sequence[Result]) -> list[Result]:
    """For each object the row whose box overlaps it most, if any, as of the object's class."""
    if not objects:
        return []
    boxes = np.array([each["bbox"] for each in objects], np.float64)
    corners = (row.box_yxyx for row in rows)
    others = np.array([(x1, y1, x2 - x1, y2 - y1) for y1, x1, y2, x2 in corners], np.float64)
    overlaps = mask_lib.iou(boxes, others, np.zeros(len(rows), np.uint8))  # [objects, rows]
    return [
        rows[int(of_object.argmax())]._replace(class_id=each["category_id"])
        for each, of_object in zip(objects, overlaps, strict=True)
        if of_object.max() > 0
    ]


def class_ids_of(file_ids: Vocabulary, vocabulary: Vocabulary) -> dict[int, int]:
    """Category id of one vocabulary -> class id 1..K of the same name in another."""
    numbers = {name: number for number, name in enumerate(vocabulary.names, start=1)}
    pairs = zip(file_ids.external_ids, file_ids.names, strict=True)
    return {category: numbers[name] for category, name in pairs if name in numbers}
