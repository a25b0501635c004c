"""Masks of given boxes of an image, in two stages: its features, then masks out of them."""

from __future__ import annotations

import functools
from collections.abc import Callable

import tensorflow as tf

from maskx_tf.config import Config
from maskx_tf.data import decoding, preprocessing
from maskx_tf.inference.image_bytes import decode
from maskx_tf.inference.inputs import MOST_BOXES
from maskx_tf.inference.segmenter import expected_iou

Tensors = dict[str, tf.Tensor]


class BoxPrompts:
    """Both stages as graphs, traced when they are first asked for.

    Args:
      model: a `MaskXRCNN`.
      config: its options.
      names: string [K + 1], of the classes 0..K.
      results: what a call returns for masks in boxes, see `module.DetectionModule`; takes the
        network's outputs, the boxes [1, N, 4] and the image's size [1, 2].
      max_pixels: encoded images with more are refused.
    """

    def __init__(
        self,
        model,
        config: Config,
        names: tf.Tensor,
        results: Callable[[Tensors, tf.Tensor, tf.Tensor], Tensors],
        max_pixels: int,
    ):
        self._model, self._names, self._results = model, names, results
        self._sides = config.image_min_side, config.image_max_side
        self._max_pixels = max_pixels

    @functools.cached_property
    def features(self):
        """Graph: `image_bytes`, string [1], to what the other stage takes beside the boxes.

        image_size      int32 [1, 2], (height, width) of the upright image
        image_scale     float32 [1, 2], network-input pixels per pixel of the image, (y, x)
        pyramid_LEVEL   [1, H, W, C], features of the image in the network's input
        """
        spec = tf.TensorSpec([1], tf.string, name="image_bytes")

        @tf.function(autograph=False, input_signature=[spec])
        def features(image_bytes: tf.Tensor) -> Tensors:
            image = decode(image_bytes[0], self._max_pixels)
            canvas, size, scale = preprocessing.resize_and_pad(image, *self._sides)
            pyramid = self._model.pyramid(canvas[None], size[None])
            sizes = {"image_size": tf.shape(image)[None, :2], "image_scale": scale[None]}
            return sizes | {f"pyramid_{level}": value for level, value in pyramid.items()}

        return features.get_concrete_function()

    @functools.cached_property
    def masks(self):
        """Graph: features with `boxes` [1, N, 4] and `class_names` [1, N] to the results."""
        taken = self.features.structured_outputs
        specs = {key: tf.TensorSpec(value.shape, value.dtype, key) for key, value in taken.items()}

        @tf.function(autograph=False)
        def masks(boxes: tf.Tensor, class_names: tf.Tensor, **features: tf.Tensor) -> Tensors:
            return self._segment(features, boxes, class_names)

        return masks.get_concrete_function(
            boxes=tf.TensorSpec([1, None, 4], tf.float32, "boxes"),
            class_names=tf.TensorSpec([1, None], tf.string, "class_names"),
            **specs,
        )

    def _segment(self, features: Tensors, boxes: tf.Tensor, class_names: tf.Tensor) -> Tensors:
        image_size, scale = features["image_size"], features["image_scale"]
        boxes = tf.clip_by_value(boxes, 0.0, tf.cast(tf.tile(image_size, [1, 2]), tf.float32))
        classes = self._class_ids(class_names[0])
        sides = boxes[0, :, 2:] - boxes[0, :, :2]
        count = tf.shape(boxes)[1]
        text = (
            f"The request has {{}} boxes and {{}} classes; at most {MOST_BOXES}, as many of each."
        )
        fits = (count == tf.size(classes)) & (count <= MOST_BOXES)
        boxes = decoding.require(boxes, fits, text, count, tf.size(classes))
        has_area = tf.reduce_all(sides > 0.0)
        boxes = decoding.require(boxes, has_area, "A box has no area in the image.")
        filling = tf.cast(count == 0, tf.int32)  # a box for the network where there is none
        of_network = tf.pad(boxes * tf.tile(scale, [1, 2]), [[0, 0], [0, filling], [0, 0]])
        classes = tf.pad(classes, [[0, filling]], constant_values=1)[None]
        pyramid = {
            int(key.removeprefix("pyramid_")): value
            for key, value in features.items()
            if key.startswith("pyramid_")
        }
        likeliest = lambda: self._model.likeliest_classes(pyramid, of_network)  # noqa: E731
        chosen = tf.cond(tf.reduce_all(classes > 0), lambda: classes, likeliest)
        classes = tf.where(classes > 0, classes, chosen)
        masks = self._model.masks(pyramid, of_network, classes, scale)
        found = {
            "detection_classes": classes,
            "detection_scores": tf.cast(expected_iou(masks), tf.float32),
            "detection_masks": tf.cast(tf.round(255 * masks), tf.uint8),
        }
        found = {key: value[:, :count] for key, value in found.items()}
        return self._results(found | {"num_detections": count[None]}, boxes, image_size)

    def _class_ids(self, names: tf.Tensor) -> tf.Tensor:
        """int32 [N] ids of names, 0 of an empty one."""
        is_of = names[:, None] == self._names[None, 1:]  # [N, K]
        known = tf.reduce_any(is_of, axis=1)
        unknown = tf.boolean_mask(names, ~known & (names != ""))
        text = "The model does not know the classes {}."
        names = decoding.require(names, tf.size(unknown) == 0, text, unknown)
        is_named = known & (names != "")
        return tf.where(is_named, tf.argmax(is_of, axis=1, output_type=tf.int32) + 1, 0)
