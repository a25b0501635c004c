"""Warm-up requests in a SavedModel, which TensorFlow Serving answers before it takes others.

The messages are written field by field: TensorFlow Serving's own package is not needed.
"""

from __future__ import annotations

import os
import pathlib

import numpy as np
import tensorflow as tf

from maskx_tf.data.records.example_proto import field
from maskx_tf.inference.batching import Batching

FILE = "assets.extra/tf_serving_warmup_requests"
# Field numbers of tensorflow_serving/apis/{prediction_log,predict,model}.proto.
_PREDICT_LOG = 6  # of PredictionLog
_REQUEST = 1  # of PredictLog
_MODEL_SPEC, _INPUTS = 1, 2  # of PredictRequest
_NAME, _SIGNATURE_NAME = 1, 3  # of ModelSpec
_KEY, _VALUE = 1, 2  # of a map's entry


def prediction_log(model_name: str, signature: str, inputs: dict[str, tf.TensorProto]) -> bytes:
    """A serialised PredictionLog with a PredictRequest."""
    model_spec = field(_NAME, model_name.encode()) + field(_SIGNATURE_NAME, signature.encode())
    entries = b"".join(
        field(_INPUTS, field(_KEY, key.encode()) + field(_VALUE, value.SerializeToString()))
        for key, value in sorted(inputs.items())
    )
    request = field(_MODEL_SPEC, model_spec) + entries
    return field(_PREDICT_LOG, field(_REQUEST, request))


def write(
    directory: pathlib.Path,
    model_name: str,
    batching: Batching,
    landscape: np.ndarray,
    portrait: np.ndarray,
) -> None:
    """Writes a request for each allowed batch size, or one for each lie where both are too many.

    Args:
      directory: the SavedModel.
      model_name: written into the requests.
      batching: of the graph. For a batch size, so many images of each lie are sent, for each lie
        is batched on its own.
      landscape: uint8 [H, W, 3], sent as JPEG.
      portrait: the same.
    """
    path = directory / FILE
    path.parent.mkdir(exist_ok=True)
    pair = [tf.io.encode_jpeg(image).numpy() for image in (landscape, portrait)]
    with tf.io.TFRecordWriter(os.fspath(path)) as writer:
        for size in batching.allowed_sizes:
            together = len(pair) * size <= batching.most_rows
            for images in [pair] if together else [[image] for image in pair]:
                inputs = {"image_bytes": tf.make_tensor_proto(images * size)}
                writer.write(prediction_log(model_name, "serving_default", inputs))
