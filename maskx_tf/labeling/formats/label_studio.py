"""Label Studio: a list of tasks with the boxes and masks as predictions."""

from __future__ import annotations

import json
import urllib.parse
from collections.abc import Sequence
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np
from pycocotools import mask as mask_api

from maskx_tf.labeling.formats.cvat import row_runs
from maskx_tf.labeling.objects import OURS, LabelledImage, LabelledObject
from maskx_tf.ops import polygons

_RLE_SIZES = (3, 4, 8, 16)  # bits that the length of a run may be written with
_WORD = 8  # bits of a value


def to_text(images: Sequence[LabelledImage], image_prefix: str, polygon_iou: float | None) -> str:
    """The json of tasks, to be imported into a project with `labeling_config`.

    Args:
      images: what to write.
      image_prefix: of the file names, as Label Studio reaches them. If it ends in a query (`?d=`),
        file names are percent-encoded.
      polygon_iou: None: brush masks; else polygons, see `polygons.from_rle`.
    """
    tasks = []
    for image in images:
        results: list[dict] = []
        for number, item in enumerate(image.objects):
            results += _results(image, item, str(number), polygon_iou)
        scores = [item.score for item in image.objects if item.score is not None]
        prediction: dict[str, Any] = {"model_version": OURS, "result": results}
        if scores:
            prediction["score"] = round(float(np.mean(scores)), 6)
        name = image.entry.file_name
        url = image_prefix + (urllib.parse.quote(name) if "?" in image_prefix else name)
        data = {"image": url, "image_id": image.entry.image_id}
        tasks.append({"data": data, "predictions": [prediction]})
    return "[\n" + ",\n".join(json.dumps(task) for task in tasks) + "\n]\n"


def labeling_config(names: Sequence[str], polygon_iou: float | None) -> str:
    """The labelling interface that the tasks are for: boxes and brush masks or polygons."""
    labels = "".join(f"    <Label value={quoteattr(name)}/>\n" for name in names)
    tags = [("RectangleLabels", "box")]
    tags += [("BrushLabels", "brush")] if polygon_iou is None else [("PolygonLabels", "polygon")]
    groups = "".join(
        f'  <{tag} name="{name}" toName="image">\n{labels}  </{tag}>\n' for tag, name in tags
    )
    return f'<View>\n  <Image name="image" value="$image" zoom="true"/>\n{groups}</View>\n'


def _results(
    image: LabelledImage, item: LabelledObject, number: str, polygon_iou: float | None
) -> list[dict[str, Any]]:
    common: dict[str, Any] = {
        "to_name": "image",
        "original_width": image.width,
        "original_height": image.height,
        "image_rotation": 0,
        # Label Studio's percentages round; here is what came in.
        "meta": {"annotation_id": item.number, "bbox": [float(v) for v in item.bbox]},
    }
    if item.source is not None:
        common["meta"]["mask_source"] = item.source
    box = box_value([float(v) for v in item.bbox], image.height, image.width)
    box["rectanglelabels"] = [item.class_name]
    kind = {"id": f"{number}-box", "from_name": "box", "type": "rectanglelabels"}
    results = [{**kind, **common, "value": box}]
    if item.rle is None:
        return results
    if item.score is not None:
        common["score"] = round(item.score, 6)
    name = "brush" if polygon_iou is None else "polygon"
    for index, value in enumerate(mask_values(item.rle, polygon_iou)):
        value[f"{name}labels"] = [item.class_name]
        suffix = "" if polygon_iou is None else index
        kind = {"id": f"{number}-mask{suffix}", "from_name": name, "type": f"{name}labels"}
        results.append({**kind, **common, "value": value})
    return results


def box_value(bbox: Sequence[float], height: int, width: int) -> dict[str, Any]:
    """The value of a box's result, in percent: x, y, width, height of pixels of an image."""
    percent = 100 / np.array([width, height], np.float64)
    (x, y), (box_width, box_height) = np.array(bbox, np.float64).reshape(2, 2) * percent
    return {"x": x, "y": y, "width": box_width, "height": box_height, "rotation": 0}


def mask_values(rle: dict, polygon_iou: float | None) -> list[dict[str, Any]]:
    """The values of a mask's results without labels: a brush, or its polygons in percent."""
    if polygon_iou is None:
        return [{"format": "rle", "rle": brush_rle(rle)}]
    height, width = rle["size"]
    percent = 100 / np.array([width, height], np.float64)
    return [
        {"points": (np.reshape(polygon, (-1, 2)) * percent).tolist(), "closed": True}
        for polygon in polygons.from_rle(rle, polygon_iou)
    ]


def brush_rle(rle: dict) -> list[int]:
    """A mask, COCO's run-length code, as the bytes of Label Studio's.

    That is a bit stream: the number of values (32 bits), bits of a value - 1 (5), the four sizes of
    lengths - 1 (4 each), then runs: 1 (a run of equal values), which of the sizes (2), length - 1,
    value. The values are the red, green, blue and alpha of each pixel, row by row: 0 or 255.
    """
    height, width = rle["size"]
    bits = [f"{4 * height * width:032b}", f"{_WORD - 1:05b}"]
    bits += [f"{size - 1:04b}" for size in _RLE_SIZES]
    for index, count in enumerate(row_runs(mask_api.decode(rle))):
        value = f"{255 * (index % 2):0{_WORD}b}"
        left = 4 * count
        while left:
            run = min(left, 1 << _RLE_SIZES[-1])
            which = next(i for i, size in enumerate(_RLE_SIZES) if run <= 1 << size)
            bits.append(f"1{which:02b}{run - 1:0{_RLE_SIZES[which]}b}{value}")
            left -= run
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))
