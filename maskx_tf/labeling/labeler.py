"""Labels a COCO json image by image: what is to do, what was done, and what went wrong."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import tqdm

from maskx_tf.data.classes import Vocabulary
from maskx_tf.data.coco import issues
from maskx_tf.data.coco.images import read_image
from maskx_tf.data.coco.issues import Issue
from maskx_tf.data.image_formats import BadImageError
from maskx_tf.errors import UserError
from maskx_tf.labeling.source import Annotation, ImageEntry, Problem, Source
from maskx_tf.ops import dense_crf
from maskx_tf.ops.masks import box_agreement
from maskx_tf.system.journal import Journal

if TYPE_CHECKING:  # the formats of labelling tools need no TensorFlow
    from maskx_tf.inference.tiles import Segmenter


class Mask(NamedTuple):
    """A predicted mask.

    Attributes:
      rle: COCO's compressed run-length code, of the size of the image.
      score: see `segmenter.expected_iou`.
      agreement: with the given box, see `masks.box_agreement`.
    """

    rle: dict
    score: float
    agreement: float


class Labels(NamedTuple):
    """The outcome.

    Attributes:
      masks: new masks by the annotation's place.
      problems: what went wrong.
      num_read: images that could be read.
    """

    masks: dict[int, Mask]
    problems: list[Problem]
    num_read: int = 0


def wanted(
    source: Source, vocabulary: Vocabulary, overwrite_masks: bool, skip_unknown_classes: bool
) -> tuple[dict[int, list[Annotation]], list[Problem]]:
    """The annotations that need a mask, by image id; and those that cannot get one.

    Raises:
      UserError: there are classes that the model does not know, and they are not to be skipped;
        or there are annotations, but no object.
    """
    if source.texts and all(item.is_crowd for item in source.annotations.values()):
        raise UserError(_no_object(source))
    known = set(vocabulary.names)
    todo: dict[int, list[Annotation]] = {}
    problems = list(source.problems)
    unknown: Counter[str] = Counter()
    for image_id, in_image in source.by_image().items():
        for annotation in in_image:
            if annotation.is_crowd or (annotation.has_mask and not overwrite_masks):
                continue
            if annotation.class_name in known:
                todo.setdefault(image_id, []).append(annotation)
            else:
                name = annotation.class_name
                unknown[name] += 1
                number = source.number(annotation.place)
                problems.append(Problem("class_unknown", image_id, number, name))
    if unknown and not skip_unknown_classes:
        listed = ", ".join(f"{name!r} ({count})" for name, count in unknown.most_common(10))
        raise UserError(
            f"The model does not know {len(unknown)} of the classes: {listed}"
            f"{', …' if len(unknown) > 10 else ''}. Rename the categories to the model's classes, "
            "leave such boxes as they are with --skip_unknown_classes, or teach the model the "
            "classes: maskx add-classes."
        )
    return todo, problems


def _no_object(source: Source) -> str:
    table = issues.tabulate(Issue(p.reason, p.image_id, p.number) for p in source.problems)
    why = issues.why_no_object(table)
    return f"None of the {len(source.texts)} annotations is an object to label{why}."


def label(
    source: Source,
    todo: dict[int, list[Annotation]],
    segmenter: Segmenter,
    vocabulary: Vocabulary,
    journal: Journal,
    crf: dense_crf.Parameters | None = None,
) -> Labels:
    """Segments what is to do and not in the journal; shows progress.

    Args:
      source: the json.
      todo: as of `wanted`.
      segmenter: the model.
      vocabulary: its classes.
      journal: gets each image's result, and has those of an earlier call that was cut off.
      crf: refines the masks; the scores are those of before.
    """
    entries = [image for image in source.images if image.image_id in todo]
    # Images that could not be read are tried again.
    journal.results = [result for result in journal.results if "masks" in result]
    done = {result["image_id"] for result in journal.results}
    if done:
        print(f"{len(done)} of {len(entries)} images are labelled already; resuming.")
    rest = [entry for entry in entries if entry.image_id not in done]
    progress = tqdm.tqdm(rest, total=len(entries), initial=len(entries) - len(rest), unit="image")
    for entry in progress:
        journal.add(_label_image(entry, todo[entry.image_id], segmenter, vocabulary, crf))
    return _collect(journal.results, source)


def _label_image(
    entry: ImageEntry,
    annotations: list[Annotation],
    segmenter: Segmenter,
    vocabulary: Vocabulary,
    crf: dense_crf.Parameters | None,
) -> dict[str, Any]:
    """The result of an image, as it is kept in the journal."""
    result: dict[str, Any] = {"image_id": entry.image_id}
    try:
        # The pixels that the boxes refer to: stored ones, unless only turned ones have the size.
        image = read_image(entry.path, entry.said_size)
    except BadImageError as error:
        return result | {"problem": error.reason}
    boxes = np.array([annotation.box_yxyx for annotation in annotations])
    classes = np.array(vocabulary.ids_of(annotation.class_name for annotation in annotations))
    detections = segmenter.segment(image.pixels, boxes, classes)
    if crf:
        detections = detections.with_crf(crf)
    masks = [
        [annotation.place, detection.rle(), detection.score]
        for annotation, detection in zip(annotations, detections, strict=True)
    ]
    return result | {"masks": masks}


def _collect(results: list[dict[str, Any]], source: Source) -> Labels:
    masks = {
        place: Mask(rle, score, box_agreement(rle, source.annotations[place].box_yxyx))
        for result in results
        for place, rle, score in result.get("masks", [])
    }
    unread = [Problem(r["problem"], r["image_id"]) for r in results if "problem" in r]
    return Labels(masks, unread, len(results) - len(unread))
