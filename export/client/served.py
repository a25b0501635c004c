"""A served model as a `Detector`, for what needs masks of boxes; needs TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn

import numpy as np

from export import signatures
from export.client.client import Client
from export.client.prompts import inputs_of
from maskx_tf.data import image_formats
from maskx_tf.data.classes import Vocabulary
from maskx_tf.errors import UserError
from maskx_tf.inference.detector import Detector
from maskx_tf.inference.segmenter import ExportedSegmenter


def detector(client: Client) -> Detector:
    """The server's model, whose `segmenter` gives the masks of the export that it serves.

    Raises:
      ServerError: as of `Client.classes`.
    """
    seen = client.classes()
    vocabulary = Vocabulary(tuple(seen), tuple(range(1, len(seen) + 1)))

    def prompts(image, boxes_yxyx, names) -> Mapping[str, np.ndarray]:
        encoded = np.array([image_formats.png(image)], object)
        inputs = {"image_bytes": encoded, **inputs_of(boxes_yxyx, list(names))}
        outputs = client.outputs(inputs, signatures.BOX_PROMPTS)
        return {key: np.asarray(value)[None] for key, value in outputs.items()}

    def detect(images) -> NoReturn:
        raise UserError("Ask the client for detections.")

    of_a = tuple(number for number, is_seen in enumerate(seen.values(), start=1) if is_seen)
    segmenter = ExportedSegmenter(prompts, vocabulary)
    return Detector(detect, vocabulary, lambda: segmenter, mask_class_ids=of_a)
