"""A picture of sample images of a record directory, with boxes, masks and names drawn."""

from __future__ import annotations

import pathlib

import cv2
import numpy as np

from maskx_tf import visualize
from maskx_tf.data import decoding
from maskx_tf.data.records import framing, index, schema
from maskx_tf.data.records.manifest import Manifest, find_shards
from maskx_tf.data.records.schema import ImageRecord, ObjectRecord
from maskx_tf.ops import masks as mask_ops

_SIDE_PX = 560  # of a sample


def draw_sheet(directory: str, manifest: Manifest, count: int) -> np.ndarray:
    """Images taken evenly from all records: uint8 [H, W, 3] RGB.

    Green: classes that have masks (or are in the manifest's set A); red: the others.

    Args:
      directory: of the records.
      manifest: its manifest.
      count: images to draw.
    """
    found = index.build(find_shards([directory]), {}, skip_corrupt=False)
    chosen = np.unique(np.linspace(0, len(found) - 1, min(count, len(found))).astype(int))
    green = {
        class_id
        for class_id, name in enumerate(manifest.vocabulary.names, start=1)
        if manifest.class_counts.get(name, (0, 0))[1]
        and (manifest.set_a is None or name in manifest.set_a)
    }
    samples = [_read(found, record) for record in chosen.tolist()]
    pictures = [_draw(sample, manifest.vocabulary.names, green) for sample in samples]
    return visualize.grid(pictures, columns=4)


def _read(found: index.Index, record: int) -> ImageRecord:
    frame = framing.Frame(int(found.offset[record]), int(found.length[record]))
    path = pathlib.Path(found.paths[found.shard[record]])
    return schema.from_example(index.Place(path, frame).read())


def _draw(record: ImageRecord, names: tuple[str, ...], green: set[int]) -> np.ndarray:
    image = decoding.to_array(record.encoded)
    scale = min(1.0, _SIDE_PX / max(image.shape[:2]))
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    factors = np.array([height / record.height, width / record.width] * 2)
    objects = sorted(record.objects, key=_area)  # the first ones are drawn on top
    boxes = np.array([item.box_yxyx for item in objects]).reshape(-1, 4) * factors
    masks = [
        None if item.mask is None else mask_ops.paste_mask(item.mask, box, height, width)
        for item, box in zip(objects, boxes, strict=True)
    ]
    classes = [item.class_id for item in objects]
    return visualize.draw_detections(image, boxes, classes, masks, names, green)


def _area(item: ObjectRecord) -> float:
    y1, x1, y2, x2 = item.box_yxyx.tolist()
    return (y2 - y1) * (x2 - x1)
