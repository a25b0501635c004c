"""Labels a COCO json image by image: what is to do, what was done, and what went wrong."""

from __future__ import annotations

import pathlib
from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import tqdm

from maskx_tf.data.classes import Vocabulary
from maskx_tf.data.coco.boxes import clean_box
from maskx_tf.data.coco.images import read_image
from maskx_tf.data.image_formats import BadImageError
from maskx_tf.errors import UserError
from maskx_tf.inference.segmenter import Segmenter
from maskx_tf.labeling.journal import Journal
from maskx_tf.labeling.source import Annotation, ImageEntry, Source

# What can be wrong with an annotation or image -> what that means
PROBLEMS = {
    "annotation_unusable": "names no image or no category of the json",
    "box_empty": "the box has no area",
    "box_missing": "there is no bbox",
    "box_not_finite": "the box has a NaN or infinity",
    "box_not_numeric": "the box is not four numbers",
    "box_outside_image": "nothing of the box lies in the image",
    "class_unknown": "the model does not know the class",
    "crowd_left_out": "the format has no crowds: it is left out",
    "image_corrupt": "the image cannot be decoded",
    "image_missing": "there is no image file",
    "image_size_differs": "the json gives another size: masks have the file's",
    "image_size_unknown": "neither json nor file has its size: it is left out with its objects",
    "mask_undecodable": "the existing mask cannot be decoded: it is left out",
}


class Problem(NamedTuple):
    """Something wrong; `annotation` is an index into the source's annotations, None: the image."""

    reason: str
    image_id: int | None
    annotation: int | None = None


class Mask(NamedTuple):
    """A predicted mask.

    Attributes:
      rle: COCO's compressed run-length code, of the size of the image.
      score: see `segmenter.expected_iou`.
    """

    rle: dict
    score: float


class Labels(NamedTuple):
    """The outcome.

    Attributes:
      masks: new masks by the annotation's index.
      sizes: (height, width) of the images that were opened, by id.
      problems: what went wrong.
    """

    masks: dict[int, Mask]
    sizes: dict[int, tuple[int, int]]
    problems: list[Problem]


def wanted(
    source: Source, vocabulary: Vocabulary, overwrite_masks: bool, skip_unknown_classes: bool
) -> tuple[dict[int, list[Annotation]], list[Problem]]:
    """The annotations that need a mask, by image id; and those that cannot get one.

    Raises:
      UserError: there are classes that the model does not know, and they are not to be skipped.
    """
    known = set(vocabulary.names)
    todo: dict[int, list[Annotation]] = {}
    problems = [
        Problem("annotation_unusable", a.image_id, a.index)
        for a in source.annotations
        if a.image_id is None or a.class_name is None
    ]
    unknown: Counter[str] = Counter()
    for image_id, in_image in source.by_image().items():
        for annotation in in_image:
            if annotation.is_crowd or (annotation.has_mask and not overwrite_masks):
                continue
            if annotation.class_name in known:
                todo.setdefault(image_id, []).append(annotation)
            else:
                unknown[str(annotation.class_name)] += 1
                problems.append(Problem("class_unknown", image_id, annotation.index))
    if unknown and not skip_unknown_classes:
        listed = ", ".join(f"{name!r} ({count})" for name, count in unknown.most_common(10))
        raise UserError(
            f"The model does not know {len(unknown)} of the classes: {listed}"
            f"{', …' if len(unknown) > 10 else ''}. Rename the categories to the model's classes, "
            "leave such boxes as they are with --skip_unknown_classes, or teach the model the "
            "classes: maskx add-classes."
        )
    return todo, problems


def label(
    source: Source,
    todo: dict[int, list[Annotation]],
    images: pathlib.Path,
    segmenter: Segmenter,
    vocabulary: Vocabulary,
    journal: Journal,
) -> Labels:
    """Segments what is to do and not in the journal; shows progress.

    Args:
      source: the json.
      todo: as of `wanted`.
      images: directory that file names start from.
      segmenter: the model.
      vocabulary: its classes.
      journal: gets each image's result, and has those of an earlier call that was cut off.
    """
    entries = [image for image in source.images if image.image_id in todo]
    # Images that could not be read are tried again.
    journal.results = [result for result in journal.results if "size" in result]
    done = {result["image_id"] for result in journal.results}
    if done:
        print(f"{len(done)} of {len(entries)} images are labelled already; resuming.")
    rest = [entry for entry in entries if entry.image_id not in done]
    progress = tqdm.tqdm(rest, total=len(entries), initial=len(entries) - len(rest), unit="image")
    for entry in progress:
        journal.add(_label_image(entry, todo[entry.image_id], images, segmenter, vocabulary))
    return _collect(journal.results)


def _label_image(
    entry: ImageEntry,
    annotations: list[Annotation],
    images: pathlib.Path,
    segmenter: Segmenter,
    vocabulary: Vocabulary,
) -> dict[str, Any]:
    """The result of an image, as it is kept in the journal."""
    result: dict[str, Any] = {"image_id": entry.image_id, "problems": [], "masks": []}
    try:
        # The pixels that the boxes refer to: stored ones, unless only turned ones have the size.
        image = read_image(images / entry.file_name, (entry.height, entry.width)).pixels
    except BadImageError as error:
        return result | {"problems": [[error.reason, None]]}
    height, width = image.shape[:2]
    result["size"] = [height, width]
    if (entry.height, entry.width) not in ((height, width), (None, None)):
        result["problems"].append(["image_size_differs", None])
    chosen, boxes = [], []
    for annotation in annotations:
        box, reasons = clean_box(annotation.bbox, height, width)
        if box is None:
            result["problems"].append([reasons[0], annotation.index])
        else:
            chosen.append(annotation)
            boxes.append(box)
    if chosen:
        classes = np.array(vocabulary.ids_of(str(a.class_name) for a in chosen))
        detections = segmenter.segment(image, np.array(boxes), classes)
        result["masks"] = [
            [annotation.index, detection.rle(), detection.score]
            for annotation, detection in zip(chosen, detections, strict=True)
        ]
    return result


def _collect(results: list[dict[str, Any]]) -> Labels:
    masks, sizes, problems = {}, {}, []
    for result in results:
        for index, rle, score in result["masks"]:
            masks[index] = Mask(rle, score)
        if "size" in result:
            sizes[result["image_id"]] = (result["size"][0], result["size"][1])
        problems += [Problem(reason, result["image_id"], i) for reason, i in result["problems"]]
    return Labels(masks, sizes, problems)
