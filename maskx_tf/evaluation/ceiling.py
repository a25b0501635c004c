"""Mean IoU of masks in given boxes, and the most that a model blind to the class can reach.

A model that sees an image and a box but not the class, as any box-prompted segmenter, gives objects
whose boxes coincide one and the same mask. The best mean IoU under this constraint is a property of
the data: no such model of any size passes it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from pycocotools import mask as mask_lib

SAME_BOX_IOU = 0.7  # boxes count as coinciding: a detector's own error is as large
METRICS = ("IoU", "shared", "IoU_shared", "ceiling", "ceiling_shared")
_MOST_MASKS = 4  # of a group whose best mask is sought among all


def best_shared_mask(masks: Sequence[np.ndarray]) -> float:
    """The largest mean IoU of one mask with each of several, bool [H, W].

    The sum of IoUs is convex in the number of pixels that are taken of each region of the masks'
    Venn diagram, so that the best mask is a union of whole regions, all of which are tried. Of more
    than 4 masks it is the mean over pairs instead, which the largest mean IoU does not exceed.
    """
    count = len(masks)
    if count > _MOST_MASKS:
        pairs = [(a, b) for i, a in enumerate(masks) for b in masks[i + 1 :]]
        return float(np.mean([best_shared_mask(pair) for pair in pairs]))
    bits = 1 << np.arange(count)
    regions = np.tensordot(bits, np.stack(masks).astype(int), axes=1)  # [H, W]
    codes, pixels = np.unique(regions[regions > 0], return_counts=True)
    if not len(codes):
        return 0.0
    inside = (codes[:, None] & bits) > 0  # [regions, masks]
    chosen = (np.arange(1 << len(codes))[:, None] >> np.arange(len(codes))) & 1  # [unions, regions]
    intersection = chosen @ (pixels[:, None] * inside)  # [unions, masks]
    union = (pixels @ inside) + (chosen @ pixels)[:, None] - intersection
    return float((intersection / np.maximum(union, 1)).mean(axis=1).max())


def same_box_groups(boxes_xywh: np.ndarray, classes: Sequence[int]) -> list[list[int]]:
    """Objects of different classes in nearly the same box: each is in one group at most.

    In a group every two boxes overlap by `SAME_BOX_IOU`; the objects are taken in their order.
    """
    overlaps = mask_lib.iou(boxes_xywh, boxes_xywh, np.zeros(len(boxes_xywh), np.uint8))
    groups: list[list[int]] = []
    for i in range(len(boxes_xywh)):
        for group in groups:
            if all(overlaps[i, j] >= SAME_BOX_IOU and classes[i] != classes[j] for j in group):
                group.append(i)
                break
        else:
            groups.append([i])
    return [group for group in groups if len(group) > 1]


def given_box_ious(
    ground_truth: dict, predictions: Mapping[int, Sequence[dict]]
) -> list[tuple[int, float, float]]:
    """IoU of the mask that each object got in its own box, and the ceiling of its group.

    Args:
      ground_truth: COCO layout; objects without a mask and crowds are left out.
      predictions: masks of given boxes by image id, in COCO's result format. An object takes the
        one of its class whose box is nearest to its own; without one its IoU is 0.

    Returns:
      (class id, IoU, ceiling) of each object; a ceiling of nan where no other class shares its box.
    """
    of_image = defaultdict(list)
    for annotation in ground_truth["annotations"]:
        if annotation.get("segmentation") and not annotation["iscrowd"]:
            of_image[annotation["image_id"]].append(annotation)
    return [
        row
        for image_id, annotations in of_image.items()
        for row in _of_image(annotations, predictions.get(image_id, ()))
    ]


def _of_image(annotations: list[dict], given: Sequence[dict]) -> Iterable[tuple[int, float, float]]:
    boxes = np.array([annotation["bbox"] for annotation in annotations], np.float64)
    classes = [annotation["category_id"] for annotation in annotations]
    ious = _ious(annotations, boxes, given)
    ceilings = np.full(len(annotations), np.nan)
    for group in same_box_groups(boxes, classes):
        masks = [mask_lib.decode(annotations[i]["segmentation"]).astype(bool) for i in group]
        ceilings[group] = best_shared_mask(masks)
    return zip(classes, ious.tolist(), ceilings.tolist(), strict=True)


def _ious(annotations: list[dict], boxes: np.ndarray, given: Sequence[dict]) -> np.ndarray:
    """IoU of each object's mask with the one predicted in its box, [objects]."""
    ious = np.zeros(len(annotations))
    if not given:
        return ious
    of_boxes = np.array([row["bbox"] for row in given], np.float64)
    overlaps = mask_lib.iou(boxes, of_boxes, np.zeros(len(given), np.uint8))  # [objects, given]
    for i, annotation in enumerate(annotations):
        same_class = [row["category_id"] == annotation["category_id"] for row in given]
        best = int(np.argmax(np.where(same_class, overlaps[i], -1.0)))
        if same_class[best]:
            masks = ([given[best]["segmentation"]], [annotation["segmentation"]])
            ious[i] = mask_lib.iou(*masks, [0])[0, 0]
    return ious


def mean_ious(objects: Sequence[tuple[int, float, float]], num_classes: int) -> list[float | None]:
    """Mean IoU of `given_box_ious` over the objects of each class 1..K; None without any."""
    table = np.array(objects, np.float64).reshape(-1, 3)
    ids = table[:, 0].astype(int)
    sums = np.bincount(ids, table[:, 1], num_classes + 1)[1:]
    counts = np.bincount(ids, minlength=num_classes + 1)[1:]
    return [float(s / n) if n else None for s, n in zip(sums, counts, strict=True)]


def summarize(
    objects: Sequence[tuple[int, float, float]], subsets: Mapping[str, Sequence[int]]
) -> dict[str, dict[str, float | None]]:
    """Means of `given_box_ious` over the objects of each subset.

    Returns:
      {subset: {"IoU", "ceiling": of all objects, "shared": share of them whose box another class's
      object shares, "IoU_shared", "ceiling_shared": of these}}; None where there are none.
    """
    table = np.array(objects, np.float64).reshape(-1, 3)
    results = {}
    for name, class_ids in subsets.items():
        _, ious, ceilings = table[np.isin(table[:, 0], list(class_ids))].T
        shares = ~np.isnan(ceilings)
        values = (
            ious,
            shares,
            ious[shares],
            np.where(shares, ceilings, 1.0),
            ceilings[shares],
        )
        means = (float(np.mean(value)) if len(value) else None for value in values)
        results[name] = dict(zip(METRICS, means, strict=True))
    return results
