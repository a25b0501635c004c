"""LVIS's federated protocol, as ground truth and detections that COCO's evaluation takes.

With thousands of classes nobody looks for all of them in every image. An image is annotated for the
classes of its objects and for some that it has none of; only there is a detection right or wrong
(Gupta et al., "LVIS", 2019, and lvis-api).
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

NAME = "LVIS"
MAX_DETECTIONS = 300  # per image, of all classes together
FREQUENCIES = {"APr": "r", "APc": "c", "APf": "f"}  # rare, common and frequent classes

Truth = dict[str, Any]
Detections = Mapping[int, Sequence[dict]]


def is_federated(ground_truth: Truth) -> bool:
    """Whether images (COCO layout) are annotated for some classes only."""
    return any("neg_category_ids" in image for image in ground_truth["images"])


def classes_by_frequency(ground_truth: Truth) -> dict[str, list[int]]:
    """Metric of `FREQUENCIES` -> ids of its classes."""
    return {
        metric: [c["id"] for c in ground_truth["categories"] if c.get("frequency") == letter]
        for metric, letter in FREQUENCIES.items()
    }


def add_frequencies(ground_truth: Truth, attributes: Mapping[str, Mapping[str, str]]) -> None:
    """Adds to the categories what a manifest or json says of their classes, by name."""
    for category in ground_truth["categories"]:
        if frequency := attributes.get(category["name"], {}).get("frequency"):
            category["frequency"] = frequency


def with_ignored_regions(ground_truth: Truth) -> Truth:
    """The ground truth with a crowd region over each image for its classes that are incomplete.

    What is detected there without an object is neither right nor wrong. Objects without an area are
    left out, as lvis-api does it.
    """
    annotations = [a for a in ground_truth["annotations"] if a["area"] > 0]
    next_id = max([0, *(a["id"] for a in annotations)]) + 1
    for image in ground_truth["images"]:
        width, height = image["width"], image["height"]
        for class_id in image.get("not_exhaustive_category_ids", ()):
            region = {
                "id": next_id + len(annotations),
                "image_id": image["id"],
                "category_id": class_id,
                "bbox": [-width, -height, 3 * width, 3 * height],  # boxes may leave the image
                "area": float(width * height),
                "iscrowd": 1,
            }
            annotations.append(region)
    return {**ground_truth, "annotations": annotations}


def that_count(detections: Detections, ground_truth: Truth) -> dict[int, list[dict]]:
    """The best 300 of each image, without those of classes that it is not annotated for.

    Args:
      detections: COCO results by image id.
      ground_truth: COCO layout; images without neg_category_ids are annotated for all classes.
    """
    annotated = defaultdict(set)
    for annotation in ground_truth["annotations"]:
        annotated[annotation["image_id"]].add(annotation["category_id"])
    counting = {}
    for image in ground_truth["images"]:
        results = detections.get(image["id"], ())
        if len(results) > MAX_DETECTIONS:
            results = heapq.nlargest(MAX_DETECTIONS, results, key=lambda result: result["score"])
        if "neg_category_ids" in image:
            known = annotated[image["id"]].union(image["neg_category_ids"])
            results = [result for result in results if result["category_id"] in known]
        counting[image["id"]] = list(results)
    return counting
