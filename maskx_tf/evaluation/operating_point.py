"""What a user sees of a detector: the objects it shows at one score, and how many are right."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from pycocotools import mask as mask_lib

MIN_SCORE = 0.5  # from which pictures and the web page show a detection
MIN_IOU = 0.5  # of a right detection's box with its object's


def operating_point(
    ground_truth: dict,
    detections: Mapping[int, Sequence[dict]],
    subsets: Mapping[str, Sequence[int]],
) -> dict:
    """Recall and precision of the boxes that score at least `MIN_SCORE`.

    By falling score, each detection takes the object of its class that it overlaps most, of those
    that are left; it is right from `MIN_IOU` on. One that overlaps only a crowd does not count.

    Args:
      ground_truth: COCO layout.
      detections: COCO results by image id, their boxes xywh in original pixels.
      subsets: {name: class ids}.

    Returns:
      {"score", "box_iou"} and for each subset {"recall": share of the objects that are shown,
      "precision": share of what is shown that is right}; None where that is a share of nothing.
    """
    objects, shown, right = Counter[int](), Counter[int](), Counter[int]()
    annotations = defaultdict(list)
    for annotation in ground_truth["annotations"]:
        annotations[annotation["image_id"], annotation["category_id"]].append(annotation)
        objects[annotation["category_id"]] += not annotation["iscrowd"]
    for image_id, results in detections.items():
        visible = [result for result in results if result["score"] >= MIN_SCORE]
        for class_id in {result["category_id"] for result in visible}:
            of_class = [result for result in visible if result["category_id"] == class_id]
            counted, matched = _match(of_class, annotations[image_id, class_id])
            shown[class_id] += counted
            right[class_id] += matched

    def share(part: Counter[int], whole: Counter[int], class_ids: Sequence[int]) -> float | None:
        total = sum(whole[class_id] for class_id in class_ids)
        return sum(part[class_id] for class_id in class_ids) / total if total else None

    return {"score": MIN_SCORE, "box_iou": MIN_IOU} | {
        name: {"recall": share(right, objects, ids), "precision": share(right, shown, ids)}
        for name, ids in subsets.items()
    }


def _match(detections: list[dict], annotations: list[dict]) -> tuple[int, int]:
    """How many of one class's detections in an image count, and how many are right."""
    if not annotations:
        return len(detections), 0
    crowd = np.array([annotation["iscrowd"] for annotation in annotations], bool)
    ranked = sorted(detections, key=lambda result: -result["score"])
    ious = mask_lib.iou(
        np.array([result["bbox"] for result in ranked], np.float64),
        np.array([annotation["bbox"] for annotation in annotations], np.float64),
        crowd.astype(np.uint8),
    )  # [detections, objects]
    is_free, counted, matched = ~crowd, 0, 0
    for overlaps in ious:
        best = int(np.argmax(np.where(is_free, overlaps, -1.0)))
        if is_free[best] and overlaps[best] >= MIN_IOU:
            is_free[best] = False
            matched += 1
        elif (overlaps[crowd] >= MIN_IOU).any():
            continue
        counted += 1
    return counted, matched
