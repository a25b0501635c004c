"""FiftyOne: samples with detections, whose masks cover their boxes."""

from __future__ import annotations

import base64
import io
import json
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as mask_api

from maskx_tf.labeling.objects import LabelledImage, LabelledObject

FIELD = "ground_truth"


def to_text(images: Sequence[LabelledImage]) -> str:
    """The json of samples, each of which `fiftyone.Sample.from_dict` takes (docs/labeling.md).

    Args:
      images: what to write.
    """
    samples = []
    for image in images:
        detections = [_detection(image, item) for item in image.objects]
        samples.append(
            {
                "filepath": str(image.entry.path.absolute()),
                "tags": [],
                "metadata": {
                    "_cls": "ImageMetadata",
                    "width": image.width,
                    "height": image.height,
                },
                "image_id": image.entry.image_id,
                FIELD: {"_cls": "Detections", "detections": detections},
            }
        )
    rows = ",\n".join(json.dumps(sample) for sample in samples)
    return f'{{"samples": [\n{rows}\n]}}\n'


def _detection(image: LabelledImage, item: LabelledObject) -> dict[str, Any]:
    x, y, width, height = (float(v) for v in item.bbox)
    detection = {
        "_cls": "Detection",
        "tags": [],
        "label": item.class_name,
        "bounding_box": [
            x / image.width,
            y / image.height,
            width / image.width,
            height / image.height,
        ],
        "coco_id": item.number,
        "coco_bbox": [x, y, width, height],  # exact; the relative one rounds
    }
    if item.rle is not None:
        packed = base64.b64encode(pack(crop(item.rle, (x, y, width, height)))).decode()
        detection["mask"] = {"$binary": {"base64": packed, "subType": "00"}}
        detection["mask_source"] = item.source
    if item.score is not None and item.agreement is not None:
        detection["mask_score"] = round(item.score, 6)
        detection["mask_agreement"] = round(item.agreement, 6)
    return detection


def crop(rle: dict, bbox: tuple[float, float, float, float]) -> np.ndarray:
    """The part of a mask in its box rounded to whole pixels, bool [h, w], as FiftyOne crops it."""
    x, y, width, height = bbox
    rows, columns = rle["size"]
    top, bottom = (min(max(round(v), 0), rows) for v in (y, y + height))
    left, right = (min(max(round(v), 0), columns) for v in (x, x + width))
    return mask_api.decode(rle)[top:bottom, left:right].astype(bool)


def pack(array: np.ndarray) -> bytes:
    """An array as FiftyOne stores it: a .npy file, compressed with zlib."""
    with io.BytesIO() as file:
        np.save(file, array, allow_pickle=False)
        return zlib.compress(file.getvalue())
