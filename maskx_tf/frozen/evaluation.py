"""Predictions of a model whose detector is frozen: boxes and features once, masks each time.

Models that differ in the mask head only find the same boxes. What their mask heads see, of the
detections and of the ground-truth boxes, is kept in `config.feature_cache` as in training.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from maskx_tf.config import Config
from maskx_tf.frozen import training as feature_cache
from maskx_tf.frozen.row_store import Array, RowStore
from maskx_tf.model import MaskXRCNN, with_mask_scores


def predictions(
    model: MaskXRCNN, config: Config, dataset: tf.data.Dataset, num_images: int
) -> Iterator[dict[str, np.ndarray]]:
    """What `runner.add_image` reads, batch by batch.

    Args:
      model: of stage 2.
      config: its options.
      dataset: evaluation batches of `data.pipeline`.
      num_images: how many images they hold.
    """
    arrays = _arrays(config)
    names = [array.name for array in arrays]
    digest = feature_cache.key(model, config, config.eval_records, ["eval"])
    store = RowStore(pathlib.Path(config.feature_cache) / digest, arrays)
    if store.total("image_id") < num_images:
        with store.filling():
            if store.total("image_id") < num_images:
                store.append(_compute(model, dataset.skip(len(store)), names))
    side = config.mask_roi_size
    signature = (
        tf.TensorSpec([None, side, side, config.fpn_filters], tf.float32),
        tf.TensorSpec([None, None], tf.int32),
    )
    compute = tf.function(model.results_of_features, input_signature=signature, autograph=False)
    for number in range(len(store)):
        batch = dict(zip(names, store.read(number), strict=True))
        results = {
            kind: compute(tf.constant(batch.pop(f"{kind}_features")), tf.constant(batch[classes]))
            for kind, classes in (("detection", "detection_classes"), ("given", "classes"))
        }
        found = with_mask_scores(tf.constant(batch["detection_scores"]), results["detection"])
        found["given_masks"] = results["given"]["masks"]
        batch |= {name: value.numpy() for name, value in found.items()}
        yield batch


def _compute(model: MaskXRCNN, dataset: tf.data.Dataset, names: list[str]) -> Iterator[list]:
    @tf.function(autograph=False)
    def compute(features, labels):
        sizes, scales = features["image_size"], features["image_scale"]
        pyramid = model.pyramid(features["image"], sizes)
        detected = model.detect_boxes(pyramid, sizes, scales)
        classes = detected["detection_classes"]
        detected["detection_features"] = model.mask_features(
            pyramid, detected["detection_boxes"], classes, scales
        )
        detected["given_features"] = model.mask_features(
            pyramid, labels["boxes_yxyx"], labels["classes"], scales
        )
        values = {**features, **labels, **detected}
        return [values[name] for name in names]

    for batch in dataset:
        yield [value.numpy() for value in compute(*batch)]


def _arrays(config: Config) -> tuple[Array, ...]:
    objects, detections = config.max_objects, config.max_detections
    features = (config.mask_roi_size, config.mask_roi_size, config.fpn_filters)
    return (
        Array("image_id", "int64"),
        Array("original_size", "int32", (2,)),
        Array("image_scale", "float32", (2,)),
        Array("boxes_yxyx", "float32", (objects, 4)),
        Array("classes", "int32", (objects,)),
        Array("is_crowd", "bool", (objects,)),
        Array("num_detections", "int32"),
        Array("detection_boxes", "float32", (detections, 4)),
        Array("detection_scores", "float32", (detections,)),
        Array("detection_classes", "int32", (detections,)),
        Array("detection_features", "float32", features),
        Array("given_features", "float32", features),
    )
