"""The served function: encoded or decoded images in, detections in original pixels out."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from maskx_tf.config import Config
from maskx_tf.data import preprocessing
from maskx_tf.data.classes import Vocabulary


class DetectionModule(tf.Module):
    """A model with everything around it: decoding, resizing, and results in original pixels.

    Both functions return, for B images and D = config.max_detections:

      num_detections          int32 [B]
      detection_boxes         float32 [B, D, 4], boxes_yxyx in pixels of the original image
      detection_scores        float32 [B, D], descending
      detection_classes       int32 [B, D], 1..K; 0 in the padding
      detection_class_names   string [B, D], "background" in the padding
      detection_masks         uint8 [B, D, m, m], 255 times the mask probability over the box
      detection_mask_seen     bool [B, D], the class had training masks (set A)
      image_size              int32 [B, 2], (height, width) of the original image

    Every image goes through the model on its own: its result does not depend on its neighbours.
    """

    def __init__(
        self,
        model,
        config: Config,
        vocabulary: Vocabulary,
        mask_class_ids: Sequence[int],
    ):
        """Takes a `MaskXRCNN`, its options, its class names, and the classes of set A."""
        super().__init__(name="maskx_detector")
        # Not an attribute: a saved Keras model would bring every layer's own graphs along.
        self._run_model = lambda image, size, scale: model(image, size, scale, training=False)
        self._sides = config.image_min_side, config.image_max_side
        count = vocabulary.num_classes
        self._names = tf.constant(("background", *vocabulary.names))  # [K + 1]
        self._mask_seen = tf.constant([c in set(mask_class_ids) for c in range(count + 1)])
        most, side = config.max_detections, config.mask_size
        self._signature = {
            "num_detections": tf.TensorSpec([], tf.int32),
            "detection_boxes": tf.TensorSpec([most, 4], tf.float32),
            "detection_scores": tf.TensorSpec([most], tf.float32),
            "detection_classes": tf.TensorSpec([most], tf.int32),
            "detection_class_names": tf.TensorSpec([most], tf.string),
            "detection_masks": tf.TensorSpec([most, side, side], tf.uint8),
            "detection_mask_seen": tf.TensorSpec([most], tf.bool),
            "image_size": tf.TensorSpec([2], tf.int32),
        }

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")])
    def detect_bytes(self, image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        """Detections of JPEG, PNG, BMP or GIF files (of a GIF its first frame), string [B]."""
        return self._map(lambda encoded: self._detect(decode_image(encoded)), image_bytes)

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8, name="images")])
    def detect_images(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        """Detections of RGB images of one size, uint8 [B, H, W, 3]."""
        return self._map(self._detect, images)

    def _map(self, detect, images: tf.Tensor) -> dict[str, tf.Tensor]:
        # One image at a time bounds the memory; the operations inside use all cores.
        return tf.map_fn(detect, images, fn_output_signature=self._signature, parallel_iterations=1)

    def _detect(self, image: tf.Tensor) -> dict[str, tf.Tensor]:
        """Detections of one image, uint8 [H, W, 3]."""
        resized, size, scale = preprocessing.resize_and_pad(image, *self._sides)
        found = self._run_model(resized[None], size[None], scale[None])
        found = {key: value[0] for key, value in found.items()}
        image_size = tf.shape(image)[:2]
        limit = tf.cast(tf.tile(image_size, [2]), tf.float32)  # [4]
        boxes = found["detection_boxes"] / tf.tile(scale, [2])
        classes = found["detection_classes"]
        return {
            "num_detections": found["num_detections"],
            "detection_boxes": tf.clip_by_value(boxes, 0.0, limit),
            "detection_scores": found["detection_scores"],
            "detection_classes": classes,
            "detection_class_names": tf.gather(self._names, classes),
            "detection_masks": tf.cast(tf.round(255 * found["detection_masks"]), tf.uint8),
            "detection_mask_seen": tf.gather(self._mask_seen, classes),
            "image_size": image_size,
        }


def decode_image(encoded: tf.Tensor) -> tf.Tensor:
    """uint8 RGB [H, W, 3] from JPEG, PNG, BMP or GIF bytes, JPEG as in training; no EXIF."""
    image = tf.cond(
        tf.io.is_jpeg(encoded),
        lambda: preprocessing.decode_image(encoded),
        lambda: tf.io.decode_image(encoded, channels=3, expand_animations=False),
    )
    return tf.ensure_shape(image, [None, None, 3])
