"""What the command writes beyond `Detections.to_coco`: a data set's own ids, files of masks."""

from __future__ import annotations

import dataclasses
import io
import pathlib
from collections.abc import Mapping

import numpy as np
from PIL import Image

from maskx_tf.data.coco import instances
from maskx_tf.errors import UserError
from maskx_tf.inference.detections import Detection, Detections
from maskx_tf.system.files import write_atomically


def write_mask(detection: Detection, path: pathlib.Path) -> None:
    """Writes the mask as a PNG of the image's size, 255 where it is set."""
    buffer = io.BytesIO()
    Image.fromarray(detection.mask() * np.uint8(255)).save(buffer, "PNG")
    write_atomically(path, buffer.getvalue())


def with_category_ids(detections: Detections, ids: Mapping[str, int]) -> Detections:
    """The same with a data set's ids, given by class name; UserError if a class has none."""
    for name in detections.class_names:
        if name not in ids:
            raise UserError(f"--annotations has no category {str(name)!r} of the model.")
    category_ids = np.array([ids[name] for name in detections.class_names], int)
    return dataclasses.replace(detections, category_ids=category_ids)


def category_ids(annotations: str) -> dict[str, int] | None:
    """Ids by name of the categories in a COCO json; None without one."""
    if not annotations:
        return None
    vocabulary = instances.read_categories(annotations)
    return dict(zip(vocabulary.names, vocabulary.external_ids, strict=True))
