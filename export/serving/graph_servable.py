"""One loaded version of an OpenVINO or ONNX export, served as a SavedModel is."""

from __future__ import annotations

import functools
import json
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2

from export import signatures
from export.serving import errors
from export.serving.servable import Servable, remaining_s
from maskx_tf.data import decoding
from maskx_tf.data.classes import Vocabulary
from maskx_tf.errors import UserError
from maskx_tf.inference import graph_model, image_bytes

_DTYPES = {  # of the outputs that are not float32
    "num_detections": tf.int32,
    "detection_classes": tf.int32,
    "detection_class_names": tf.string,
    "detection_masks": tf.uint8,
    "detection_mask_seen": tf.bool,
    "image_size": tf.int32,
    "class_names": tf.string,
    "mask_seen": tf.bool,
    "num_classes": tf.int32,
}
_INPUTS: dict[str, list[tuple[str, tf.DType, list]]] = {  # of the signatures
    signatures.DEFAULT: [("image_bytes", tf.string, [None])],
    signatures.IMAGES: [("images", tf.uint8, [None, None, None, 3])],
    signatures.BOX_PROMPTS: [
        ("image_bytes", tf.string, [1]),
        ("boxes", tf.float32, [1, None, 4]),
        ("class_names", tf.string, [1, None]),
    ],
    signatures.CLASSES: [("ids", tf.int32, [1, None])],
}
_CLASSES: dict[str, list] = {"class_names": [1, None], "mask_seen": [1, None], "num_classes": [1]}


class GraphServable(Servable):
    """An OpenVINO or ONNX model that is ready to run, with the signatures of a SavedModel's export.

    Files are decoded here and go through the model one by one, as they may differ in size.
    """

    def __init__(self, path: str, threads: int = 0):
        """Loads the model at `path`, to compute in so many threads, 0: the runtime's choice."""
        self._path, self._cache = pathlib.Path(path), None
        classes = self._path / "assets" / "classes.json"
        vocabulary = Vocabulary.load(classes)
        self._names = [name.encode() for name in vocabulary.names]
        self._seen = [bool(c.get("mask_seen")) for c in json.loads(classes.read_text())]
        self._model = graph_model.GraphModel(self._path, vocabulary, threads)
        self.signatures = {
            name: _signature(_INPUTS[name], self._model.shapes)
            for name in (signatures.DEFAULT, signatures.IMAGES)
        }
        self.signatures[signatures.CLASSES] = _signature(_INPUTS[signatures.CLASSES], _CLASSES)
        # Loaded when it is asked for, as it takes as much memory again.
        self._prompts = functools.cache(
            lambda: graph_model.GraphPrompts(self._path, vocabulary, threads)
        )
        if graph_model.is_version(self._path / graph_model.PROMPTS):
            shapes = {
                output: [shape[0], None, *shape[2:]] if output.startswith("detection_") else shape
                for output, shape in self._model.shapes.items()
            }
            name = signatures.BOX_PROMPTS
            self.signatures[name] = _signature(_INPUTS[name], shapes)

    def _run(
        self, signature, inputs: Mapping[str, np.ndarray], names: list[str], deadline: float
    ) -> dict[str, np.ndarray]:
        if "ids" in inputs:
            classes = self._classes(inputs["ids"])
            return {name: classes[name] for name in names}
        if "boxes" in inputs:
            keys = ("image_bytes", "boxes", "class_names")
            image, boxes, classes = (inputs[key][0] for key in keys)
            pixels = _decode(image)
            remaining_s(deadline)
            try:
                found = self._prompts()(pixels, boxes, classes)
            except UserError as error:
                raise errors.invalid(str(error)) from None
            return {name: found[name] for name in names}
        (images,) = inputs.values()
        if not len(images):
            outputs = {name: signature.outputs[name] for name in names}
            return {name: _empty(info) for name, info in outputs.items()}
        if "images" in inputs:
            found = self._model(images)
            return {name: found[name] for name in names}
        parts = []
        for encoded in images:
            remaining_s(deadline)
            parts.append(self._model(_decode(encoded)[None]))
        return {name: np.concatenate([part[name] for part in parts]) for name in names}

    def _classes(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        count = len(self._names)
        if not ((ids > 0) & (ids <= count)).all():
            raise errors.invalid(f"A class has an id of 1 to {count}.")
        return {
            "class_names": np.array(self._names, object)[ids - 1],
            "mask_seen": np.array(self._seen)[ids - 1],
            "num_classes": np.array([count], np.int32),
        }

    def close(self) -> None:
        """Frees the model's memory; nothing may be running."""
        self._prompts.cache_clear()
        del self._model


def _decode(encoded: bytes) -> np.ndarray:
    try:
        return image_bytes.decode(tf.constant(encoded)).numpy()
    except tf.errors.OpError as error:
        raise errors.invalid(decoding.reason(error)) from None


def _signature(inputs: Sequence[tuple], shapes: Mapping[str, list]) -> meta_graph_pb2.SignatureDef:
    signature = meta_graph_pb2.SignatureDef(method_name="tensorflow/serving/predict")
    for taken in inputs:
        signature.inputs[taken[0]].CopyFrom(_tensor_info(*taken))
    for name, shape in shapes.items():
        dtype = _DTYPES.get(name, tf.float32)
        signature.outputs[name].CopyFrom(_tensor_info(name, dtype, shape))
    return signature


def _empty(info: meta_graph_pb2.TensorInfo) -> np.ndarray:
    """An output for no image."""
    shape = [max(dim.size, 0) for dim in info.tensor_shape.dim]
    return np.zeros([0, *shape[1:]], tf.as_dtype(info.dtype).as_numpy_dtype)


def _tensor_info(name: str, dtype: tf.DType, shape: list) -> meta_graph_pb2.TensorInfo:
    return meta_graph_pb2.TensorInfo(
        name=name, dtype=dtype.as_datatype_enum, tensor_shape=tf.TensorShape(shape).as_proto()
    )
