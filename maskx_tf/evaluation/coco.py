"""COCO's box and mask AP for set A, set B and all classes, out of one evaluation each.

AP of a set of classes is the mean over its part of COCOeval's precision array, which equals a new
run of COCOeval on these classes only.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from maskx_tf.data.classes import Vocabulary
from maskx_tf.errors import UserError
from maskx_tf.evaluation import ceiling, errors, federated
from maskx_tf.evaluation.operating_point import operating_point
from maskx_tf.ops import masks as mask_ops

# Metric: (IoU threshold or None for the mean over 0.50:0.95, index of COCO's area range)
METRICS = {
    "AP": (None, 0),
    "AP50": (0.5, 0),
    "AP75": (0.75, 0),
    "APs": (None, 1),
    "APm": (None, 2),
    "APl": (None, 3),
}
CURVE_IOU = 0.5
RECALLS = np.linspace(0.0, 1.0, 101)  # of COCO's precision-recall curves
MAX_DETECTIONS = 100  # per image and class, as in COCO
_MOST_PAIRS = 500_000  # of images and classes at once: the engines keep a list of each


def _faster_coco_eval() -> tuple[Callable, Callable]:
    from faster_coco_eval import COCO, COCOeval_faster

    return COCO, COCOeval_faster


def _pycocotools() -> tuple[Callable, Callable]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    return COCO, COCOeval


ENGINES = {"faster_coco_eval": _faster_coco_eval, "pycocotools": _pycocotools}


class CocoEvaluator:
    """Collects predictions image by image, then scores them.

    Every image of the ground truth counts, also those without predictions. Equal scores are ranked
    by image id, then by the order in which they were added, so that results repeat exactly. An
    object without a mask counts in the box AP; for the mask AP it is like a crowd region: what is
    predicted there is neither right nor wrong.

    Ground truth whose images have `neg_category_ids`, as LVIS's, is scored by LVIS's protocol.

    Attributes:
      ground_truth: COCO layout.
      subsets: class ids of "A", "B" and "all".
      detections: COCO results of what was added, by image id.
      curves: after `evaluate`, {section: {subset: precision [101] at `RECALLS`}} at IoU 0.5, the
        mean over the classes of the subset; only those with ground truth are there.
    """

    def __init__(
        self,
        ground_truth: dict,
        vocabulary: Vocabulary,
        mask_class_ids: Sequence[int],
        engine: str = "faster_coco_eval",
    ):
        """Takes what the predictions are compared with.

        Args:
          ground_truth: COCO layout with category ids 1..K, see `ground_truth`.
          vocabulary: names of the classes 1..K.
          mask_class_ids: set A; the other classes are set B.
          engine: one of `ENGINES`; the results are the same.
        """
        if engine not in ENGINES:
            raise UserError(f"--engine={engine} is not one of: {', '.join(ENGINES)}.")
        every = range(1, vocabulary.num_classes + 1)
        self.subsets = {
            "A": sorted(mask_class_ids),
            "B": sorted(set(every) - set(mask_class_ids)),
            "all": list(every),
        }
        self._federated = federated.is_federated(ground_truth)
        self._frequencies = federated.classes_by_frequency(ground_truth) if self._federated else {}
        if self._federated:
            ground_truth = federated.with_ignored_regions(ground_truth)
        self.ground_truth, self._names, self._engine = ground_truth, vocabulary.names, engine
        self._image_ids = {image["id"] for image in ground_truth["images"]}
        self.detections: dict[int, list[dict]] = {}
        self._given: dict[int, list[dict]] = {}
        self._boxes_only = False
        self.curves: dict[str, dict[str, np.ndarray]] = {}

    def add(
        self,
        image_id: int,
        boxes_yxyx: npt.ArrayLike,
        scores: npt.ArrayLike,
        classes: npt.ArrayLike,
        rles: Sequence[dict] | None,
        mask_scores: npt.ArrayLike | None = None,
    ) -> None:
        """Adds the detections of one image.

        Args:
          image_id: as in the ground truth; each image once.
          boxes_yxyx: float [N, 4], original pixels.
          scores: float [N].
          classes: int [N], 1..K.
          rles: N run-length codes of the size of the original image; None from a model without
            masks: once so, only boxes are scored.
          mask_scores: float [N], what masks are ranked by; None: `scores`.
        """
        if rles is None:
            self._boxes_only = True
            rles = [{}] * len(np.asarray(classes))
        self._add(self.detections, image_id, boxes_yxyx, scores, classes, rles)
        if mask_scores is not None:
            rows = zip(self.detections[int(image_id)], np.asarray(mask_scores), strict=True)
            for row, score in rows:
                row["mask_score"] = float(score)

    def add_given_boxes(
        self, image_id: int, boxes_yxyx: npt.ArrayLike, classes: npt.ArrayLike, rles: Sequence[dict]
    ) -> None:
        """Adds the masks predicted for the ground-truth boxes of one image, each with score 1.

        AP depends on the order of equal scores: it is that of image ids, then of adding.
        """
        self._add(self._given, image_id, boxes_yxyx, np.ones(len(rles)), classes, rles)

    def _add(self, store, image_id, boxes_yxyx, scores, classes, rles) -> None:
        image_id = int(image_id)
        if image_id not in self._image_ids:
            raise UserError(
                f"Image id {image_id} is predicted but is not among the {len(self._image_ids)} "
                "images of the ground truth; use the annotations that the records were made from."
            )
        if image_id in store:
            raise UserError(f"Image id {image_id} is predicted twice; each image counts once.")
        store[image_id] = [
            {
                "image_id": image_id,
                "category_id": int(class_id),
                "bbox": [float(x1), float(y1), float(x2) - float(x1), float(y2) - float(y1)],
                "score": float(score),
                "segmentation": rle,
            }
            for (y1, x1, y2, x2), score, class_id, rle in zip(
                np.asarray(boxes_yxyx, np.float64).reshape(-1, 4),
                np.asarray(scores, np.float64),
                np.asarray(classes),
                rles,
                strict=True,
            )
        ]

    def errors(self) -> errors.Analysis:
        """The errors of the detections that were added: of masks, or of boxes without masks."""
        iou_type = "bbox" if self._boxes_only else "segm"
        detections = self.detections
        if self._federated:
            detections = federated.that_count(detections, self.ground_truth)
        return errors.analyse(ground_truth_for(iou_type, self.ground_truth), detections, iou_type)

    def evaluate(self, per_class: bool = False) -> dict:
        """Scores what was added.

        Args:
          per_class: also list the AP of every class.

        Returns:
          {"box": {"all": {"AP", "AP50", "AP75", "APs", "APm", "APl"}, "A": …, "B": …}}, by LVIS's
          protocol also "APr", "APc" and "APf" each, and "protocol": "LVIS"; if masks
          were added, "mask" likewise, and if masks for given boxes were, "mask_given_boxes", which
          has `ceiling.METRICS` too; with "per_class": {name: AP} beside "all" on request, and
          "iou_per_class" of given boxes. Of masks for given boxes alone, "box", "mask" and
          "operating_point" are not there. Values in [0, 1]; None where the ground
          truth has no object of the kind. "operating_point": see `operating_point`.
        """
        detections, given = self.detections, self._given
        results: dict = {}
        if self._federated:
            results["protocol"] = federated.NAME
            detections, given = (
                federated.that_count(of, self.ground_truth) for of in (detections, given)
            )
        parts = {}
        if detections or not given:
            parts["box"] = ("bbox", detections)
        if "box" in parts and not self._boxes_only:
            parts["mask"] = ("segm", detections)
        if self._given:
            parts["mask_given_boxes"] = ("segm", given)
        results |= {section: self._score(section, *of, per_class) for section, of in parts.items()}
        if self._given:
            self._add_ious(results["mask_given_boxes"], given, per_class)
        if "box" not in parts:
            return results
        point = operating_point(self.ground_truth, detections, self.subsets)
        return {**results, "operating_point": point}

    def _score(
        self, section: str, iou_type: str, predictions: dict[int, list[dict]], per_class: bool
    ) -> dict:
        precision, thresholds, class_ids = self._precision(iou_type, predictions)
        column = {class_id: k for k, class_id in enumerate(class_ids)}

        def average(classes: Sequence[int], iou: float | None, area: int) -> float | None:
            columns = [column[class_id] for class_id in classes if class_id in column]
            part = precision[:, :, columns, area]  # [thresholds, recalls, classes]
            part = part if iou is None else part[np.isclose(thresholds, iou)]
            part = part[part > -1]
            return float(part.mean()) if part.size else None

        at_iou = precision[np.isclose(thresholds, CURVE_IOU), :, :, 0][0]  # [recalls, classes]
        self.curves[section] = {
            subset: at_iou[:, [column[c] for c in ids if c in column]].mean(axis=1)
            for subset, ids in self.subsets.items()
            if not column.keys().isdisjoint(ids)
        }
        results = {
            subset: {metric: average(ids, *what) for metric, what in METRICS.items()}
            for subset, ids in self.subsets.items()
        }
        for metric, of_frequency in self._frequencies.items():
            for subset, ids in self.subsets.items():
                results[subset][metric] = average(
                    sorted(set(ids).intersection(of_frequency)), None, 0
                )
        if per_class:
            results["per_class"] = {
                name: average([i + 1], None, 0) for i, name in enumerate(self._names)
            }
        return results

    def _add_ious(self, section: dict, given: dict[int, list[dict]], per_class: bool) -> None:
        """Adds mean IoU and the class-agnostic ceiling to a section, see `ceiling.summarize`."""
        objects = ceiling.given_box_ious(self.ground_truth, given)
        for subset, values in ceiling.summarize(objects, self.subsets).items():
            section[subset] |= values
        if per_class:
            ious = ceiling.mean_ious(objects, len(self._names))
            section["iou_per_class"] = dict(zip(self._names, ious, strict=True))

    def _precision(
        self, iou_type: str, predictions: dict[int, list[dict]]
    ) -> tuple[np.ndarray, np.ndarray, list[int]]:
        """Precision [IoU thresholds, recalls, classes, areas], thresholds, and the class ids."""
        truth = ground_truth_for(iou_type, self.ground_truth)
        results = _predictions_for(iou_type, predictions)
        if self._federated:  # as lvis-api, which counts nothing without an area
            results = [row for row in results if row["area"] > 0]
        # Classes without ground truth have no AP: leaving them out saves time and memory.
        class_ids = sorted({a["category_id"] for a in truth if not a["iscrowd"]})
        if not class_ids:
            return np.full((10, 101, 0, 4), -1.0), np.linspace(0.5, 0.95, 10), []
        truth_of, results_of = _by_class(truth), _by_class(results)
        count = max(1, _MOST_PAIRS // len(self._image_ids))
        parts = []
        for start in range(0, len(class_ids), count):
            chosen = class_ids[start : start + count]
            both = ([row for c in chosen for row in of.get(c, ())] for of in (truth_of, results_of))
            precision, thresholds = self._precision_of(iou_type, chosen, *both)
            parts.append(precision)
        return np.concatenate(parts, axis=2), thresholds, class_ids

    def _precision_of(
        self, iou_type: str, class_ids: list[int], truth: list[dict], results: list[dict]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Precision [IoU thresholds, recalls, these classes, areas], and the thresholds."""
        coco, coco_eval = ENGINES[self._engine]()
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = coco_eval(self._index(coco, truth), self._index(coco, results), iou_type)
            evaluation.params.imgIds = sorted(self._image_ids)
            evaluation.params.catIds = class_ids
            evaluation.params.maxDets = [
                federated.MAX_DETECTIONS if self._federated else MAX_DETECTIONS
            ]
            evaluation.evaluate()
            evaluation.accumulate()
        return np.asarray(evaluation.eval["precision"])[..., -1], evaluation.params.iouThrs

    def _index(self, coco: Callable, annotations: list[dict]):
        index = coco()
        index.dataset = {
            "info": {},
            "images": self.ground_truth["images"],
            "categories": self.ground_truth["categories"],
            "annotations": annotations,
        }
        index.createIndex()
        return index


def _by_class(rows: list[dict]) -> dict[int, list[dict]]:
    of_class: dict[int, list[dict]] = {}
    for row in rows:
        of_class.setdefault(row["category_id"], []).append(row)
    return of_class


def ground_truth_for(iou_type: str, ground_truth: dict) -> list[dict]:
    """Copies, because the engines write into annotations; an unmasked object as a crowd region."""
    annotations = [dict(annotation) for annotation in ground_truth["annotations"]]
    if iou_type == "bbox":
        return annotations
    sizes = {image["id"]: (image["height"], image["width"]) for image in ground_truth["images"]}
    for annotation in annotations:
        if not annotation.get("segmentation"):
            x, y, width, height = annotation["bbox"]
            (annotation["segmentation"],) = mask_ops.paste_to_rle(
                np.ones((1, 1, 1)),
                np.array([[y, x, y + height, x + width]]),
                *sizes[annotation["image_id"]],
            )
            annotation["iscrowd"] = 1
    return annotations


def _predictions_for(iou_type: str, predictions: dict[int, list[dict]]) -> list[dict]:
    """Predictions by image id with the fields that `loadRes` would add."""
    rows = [row for image_id in sorted(predictions) for row in predictions[image_id]]
    prepared = []
    for index, row in enumerate(rows):
        if iou_type == "segm":
            area = mask_ops.rle_area(row["segmentation"])
            row = {**row, "score": row.get("mask_score", row["score"])}
        else:
            area = row["bbox"][2] * row["bbox"][3]
        prepared.append({**row, "id": index + 1, "area": area, "iscrowd": 0})
    return prepared
