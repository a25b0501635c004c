"""Warm-up requests in a SavedModel, which TensorFlow Serving answers before it takes others."""

from __future__ import annotations

import os
import pathlib

import numpy as np
import tensorflow as tf

from export import predict_pb2
from maskx_tf.inference.batching import Batching

FILE = "assets.extra/tf_serving_warmup_requests"


def prediction_log(model_name: str, signature: str, inputs: dict[str, tf.TensorProto]) -> bytes:
    """A serialised PredictionLog with a PredictRequest."""
    log = predict_pb2.PredictionLog()
    request = log.predict_log.request
    request.model_spec.name, request.model_spec.signature_name = model_name, signature
    for name, tensor in inputs.items():
        request.inputs[name].MergeFromString(tensor.SerializeToString())
    return log.SerializeToString(deterministic=True)


def write(
    directory: pathlib.Path,
    model_name: str,
    batching: Batching,
    landscape: np.ndarray,
    portrait: np.ndarray,
) -> None:
    """Writes a request for each allowed batch size; one an orientation where both are too many.

    Args:
      directory: the SavedModel.
      model_name: written into the requests.
      batching: of the graph. For a batch size, so many images of each orientation are sent, for
        each is batched on its own.
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
