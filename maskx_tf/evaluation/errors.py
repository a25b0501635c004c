"""What each kind of error costs in AP, and which detections and objects are in error.

The kinds and their order are those of TIDE (Bolya, Foley, Hays, Hoffman: TIDE: A General Toolbox
for Identifying Object Detection Errors, ECCV 2020). A mask that fits badly is one kind in a box
that fits, and another in one that does not.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from pycocotools import mask as mask_lib

from maskx_tf.evaluation.operating_point import MIN_IOU

CLASS, BOX, MASK, BOTH = "class", "box", "mask", "both"
DUPLICATE, BACKGROUND, MISSED = "duplicate", "background", "missed"
KINDS = {
    CLASS: "right place, wrong class",
    BOX: "right class, box fits badly",
    MASK: "right class and box, mask fits badly",
    BOTH: "wrong class, fits badly",
    DUPLICATE: "second detection of an object",
    BACKGROUND: "where no object is",
    MISSED: "objects that no detection is near",
}
_PLACES = {kind: place for place, kind in enumerate(KINDS)}
BACKGROUND_IOU = 0.1  # up to which a detection is of no object
MAX_DETECTIONS = 100  # of an image, all classes together
_RECALLS = np.linspace(0.0, 1.0, 101)  # as COCO has them
_BINS = 10  # of scores


class Error(NamedTuple):
    """A detection in error, or a missed object.

    Attributes:
      kind: one of `KINDS`.
      image_id: of its image.
      score: of the detection; 1 of a missed object.
      detection: COCO result; None of a missed object.
      annotation: the object that it was taken for, or that is missed; None where it is of none.
    """

    kind: str
    image_id: int
    score: float
    detection: dict | None
    annotation: dict | None


class _Row(NamedTuple):
    """A detection: as it counts, and as it would if its error were mended."""

    class_id: int
    score: float
    counts: bool  # not, where it overlaps a crowd only
    is_right: bool
    kind: int  # place in `KINDS`, -1 if right
    mended_class: int  # 0: it would be gone


@dataclasses.dataclass(frozen=True)
class Analysis:
    """The errors of a set of detections.

    Attributes:
      errors: all of them, image by image.
      objects: number of objects of each class.
      unmatched: of those, number without a right detection.
      missed: of those, number that no error accounts for.
    """

    errors: list[Error]
    objects: Counter[int]
    unmatched: Counter[int]
    missed: Counter[int]
    _rows: np.ndarray  # [detections, fields of _Row]

    def ap(self, mend: Collection[str] = ()) -> dict[int, float]:
        """AP at IoU 0.5 of each class with objects, in [0, 1].

        Args:
          mend: kinds of errors that are taken as mended: a wrong class or a bad fit becomes right
            if no other detection has the object, other detections are gone, missed objects do not
            count.
        """
        class_id, score, counts, is_right, kind, mended_class = self._rows.T
        mended = np.isin(kind, [_PLACES[name] for name in mend])
        keep = np.where(mended, mended_class > 0, counts > 0)
        classes, is_right = np.where(mended, mended_class, class_id), (is_right > 0) | mended
        gone = self.missed if MISSED in mend else Counter[int]()
        return self._by_class(classes[keep], score[keep], is_right[keep], gone)

    def ap_without(self, wrong: str) -> dict[int, float]:
        """As `ap`, without "false_positives" below right detections, or "false_negatives"."""
        class_id, score, _, is_right, _, _ = self._rows[self._rows[:, 2] > 0].T
        if wrong == "false_positives":
            return self._by_class(class_id, is_right, is_right, Counter())
        assert wrong == "false_negatives", wrong
        return self._by_class(class_id, score, is_right, self.unmatched)

    def _by_class(
        self, classes: np.ndarray, scores: np.ndarray, is_right: np.ndarray, gone: Counter[int]
    ) -> dict[int, float]:
        result = {}
        for class_id, count in sorted(self.objects.items()):
            of_class = classes == class_id
            left = count - gone[class_id]
            result[class_id] = _average_precision(scores[of_class], is_right[of_class], left)
        return result

    def calibration(self, class_ids: Collection[int]) -> list[dict]:
        """Of ten ranges of the score: {"count", "score": its mean, "right": share of the right}."""
        class_id, score, counts, is_right, _, _ = self._rows.T
        chosen = (counts > 0) & np.isin(class_id, list(class_ids))
        bins = np.minimum((score * _BINS).astype(int), _BINS - 1)
        table = []
        for i in range(_BINS):
            inside = chosen & (bins == i)
            means = [float(v[inside].mean()) if inside.any() else None for v in (score, is_right)]
            table.append({"count": int(inside.sum()), "score": means[0], "right": means[1]})
        return table

    def confusions(self, min_score: float) -> Counter[tuple[int, int]]:
        """(class of the object, class detected): how often, from a score on; also right ones."""
        class_id, score, counts, is_right, _, _ = self._rows.T
        right = class_id[(counts > 0) & (is_right > 0) & (score >= min_score)].astype(int)
        pairs = Counter((c, c) for c in right.tolist())
        for error in self.errors:
            if error.kind == CLASS and error.score >= min_score:
                assert error.annotation and error.detection
                pairs[error.annotation["category_id"], error.detection["category_id"]] += 1
        return pairs


def analyse(
    annotations: Sequence[dict], detections: Mapping[int, Sequence[dict]], iou_type: str
) -> Analysis:
    """Sorts the errors of detections by kind.

    In each image the best 100 detections, by falling score, take the object of their class that
    they overlap most of those that are left, from IoU 0.5 on. One that overlaps a crowd of its
    class is neither right nor wrong.

    Args:
      annotations: of COCO's layout, `iscrowd` of what is ignored.
      detections: COCO results by image id.
      iou_type: "bbox" or "segm", what has to overlap.
    """
    of_image = defaultdict(list)
    for annotation in annotations:
        of_image[annotation["image_id"]].append(annotation)
    errors: list[Error] = []
    rows: list[_Row] = []
    objects, unmatched, missed = Counter[int](), Counter[int](), Counter[int]()
    for image_id in sorted(of_image.keys() | detections.keys()):
        image = _Image(image_id, of_image[image_id], detections.get(image_id, ()), iou_type)
        objects.update(obj["category_id"] for obj in image.objects)
        image.match()
        rows += image.rows(errors)
        for obj, has_detection, is_claimed in zip(
            image.objects, image.has_detection, image.is_claimed, strict=True
        ):
            unmatched[obj["category_id"]] += not has_detection
            if not has_detection and not is_claimed:
                missed[obj["category_id"]] += 1
                errors.append(Error(MISSED, image_id, 1.0, None, obj))
    table = np.array(rows, np.float64).reshape(-1, len(_Row._fields))
    return Analysis(errors, objects, unmatched, missed, table)


class _Image:
    """The detections and objects of one image.

    Attributes:
      objects: without crowds.
      has_detection: bool [objects], whether a detection of it is right.
      is_claimed: bool [objects], whether an error, mended, would be a right detection of it.
    """

    def __init__(
        self, image_id: int, annotations: list[dict], detections: Sequence[dict], iou_type: str
    ):
        self._image_id, self._iou_type = image_id, iou_type
        self.objects = [a for a in annotations if not a["iscrowd"]]
        crowds = [a for a in annotations if a["iscrowd"]]
        self._ranked = sorted(detections, key=lambda result: -result["score"])[:MAX_DETECTIONS]
        self._ious = self._overlaps(self.objects, crowd=False)  # [detections, objects]
        self._same = _same_class(self._ranked, self.objects)
        in_crowd = self._overlaps(crowds, crowd=True) > MIN_IOU
        self._in_crowd = (in_crowd & _same_class(self._ranked, crowds)).any(axis=1)
        self._is_right = np.zeros(len(self._ranked), bool)
        self.has_detection = np.zeros(len(self.objects), bool)
        self.is_claimed = np.zeros(len(self.objects), bool)

    def _overlaps(self, annotations: list[dict], crowd: bool) -> np.ndarray:
        key = "bbox" if self._iou_type == "bbox" else "segmentation"
        return _ious(self._ranked, annotations, key, crowd)

    def match(self) -> None:
        left = self._ious * self._same
        for i in range(len(self._ranked) if self.objects else 0):
            best = int(left[i].argmax())
            if left[i, best] >= MIN_IOU:
                self._is_right[i] = self.has_detection[best] = True
                left[:, best] = 0

    def rows(self, errors: list[Error]) -> list[_Row]:
        """A row of each detection; adds the errors."""
        rows = []
        for i, detection in enumerate(self._ranked):
            class_id, score = detection["category_id"], detection["score"]
            if self._is_right[i]:
                rows.append(_Row(class_id, score, True, True, -1, 0))
                continue
            kind, place = self._kind(i)
            obj = None if place is None else self.objects[place]
            errors.append(Error(kind, self._image_id, score, detection, obj))
            mended = 0
            if kind in (CLASS, BOX, MASK) and obj and not self.has_detection[place]:
                # Of several that would take an object, the first has the highest score.
                mended = 0 if self.is_claimed[place] else obj["category_id"]
                self.is_claimed[place] = True
            counts = not self._in_crowd[i]
            rows.append(_Row(class_id, score, counts, False, _PLACES[kind], mended))
        return rows

    def _kind(self, i: int) -> tuple[str, int | None]:
        """Kind of the error of detection i, and the object that it is about."""
        if not self.objects:
            return BACKGROUND, None
        same, other = self._ious[i] * self._same[i], self._ious[i] * ~self._same[i]
        best = int(same.argmax())
        if BACKGROUND_IOU <= same[best] <= MIN_IOU:
            return (MASK if self._box_fits(i, best) else BOX), best
        best = int(other.argmax())
        if other[best] >= MIN_IOU:
            return CLASS, best
        taken = same * self.has_detection
        best = int(taken.argmax())
        if taken[best] >= MIN_IOU:
            return DUPLICATE, best
        if self._ious[i].max() <= BACKGROUND_IOU:
            return BACKGROUND, None
        return BOTH, int(self._ious[i].argmax())

    def _box_fits(self, i: int, place: int) -> bool:
        if self._iou_type == "bbox":
            return False
        return _ious([self._ranked[i]], [self.objects[place]], "bbox", False)[0, 0] >= MIN_IOU


def _ious(
    detections: Sequence[dict], annotations: Sequence[dict], key: str, crowd: bool
) -> np.ndarray:
    """IoU, float [detections, annotations]; with `crowd` the share of a detection inside."""
    if not detections or not annotations:
        return np.zeros([len(detections), len(annotations)])
    as_array = np.array if key == "bbox" else list
    regions = (as_array([row[key] for row in rows]) for rows in (detections, annotations))
    return mask_lib.iou(*regions, [int(crowd)] * len(annotations))


def _same_class(detections: Sequence[dict], annotations: Sequence[dict]) -> np.ndarray:
    """Whether classes are equal, bool [detections, annotations]."""
    first, second = (
        np.array([row["category_id"] for row in rows], int) for rows in (detections, annotations)
    )
    return first[:, None] == second[None, :]


def _average_precision(scores: np.ndarray, is_right: np.ndarray, count: int) -> float:
    """The mean of the interpolated precision at 101 recalls, as COCO's; 0 without objects."""
    if not count or not len(scores):
        return 0.0
    right = np.cumsum(is_right[np.argsort(-scores, kind="stable")])
    precision = right / np.arange(1, len(right) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(right / count, _RECALLS, side="left")
    return float(np.append(precision, 0.0)[places].mean())


def summarize(
    analysis: Analysis, subsets: Mapping[str, Collection[int]]
) -> dict[str, dict[str, float | None]]:
    """AP at IoU 0.5 and what each kind of error takes from it, of each subset of the classes.

    Returns:
      {subset: {"AP50", each of `KINDS`: AP that mending them all would add, "localization": the
      same of badly fitting boxes and masks together, "false_positives", "false_negatives": of
      all wrong detections, of all objects without a right one}} in [0, 1]; None where a subset has
      no objects.
    """
    base = analysis.ap()
    gains = {kind: analysis.ap([kind]) for kind in KINDS}
    gains["localization"] = analysis.ap([BOX, MASK])
    for wrong in ("false_positives", "false_negatives"):
        gains[wrong] = analysis.ap_without(wrong)

    def mean(of: Mapping[int, float], class_ids: Collection[int]) -> float | None:
        values = [value for class_id, value in of.items() if class_id in class_ids]
        return float(np.mean(values)) if values else None

    results = {}
    for name, class_ids in subsets.items():
        ap = mean(base, class_ids)
        results[name] = {"AP50": ap} | {
            kind: None if ap is None else max(0.0, (mean(of, class_ids) or 0.0) - ap)
            for kind, of in gains.items()
        }
    return results
