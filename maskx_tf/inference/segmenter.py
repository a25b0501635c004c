"""Masks for given boxes of an image, and how much to trust each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from maskx_tf.checkpoints import LoadedModel
from maskx_tf.data import preprocessing
from maskx_tf.data.classes import Vocabulary
from maskx_tf.data.decoding import reason
from maskx_tf.errors import UserError
from maskx_tf.inference.detections import Detections
from maskx_tf.inference.inputs import MOST_BOXES
from maskx_tf.ops.boxes import mask_windows


class Segmenter:
    """A model that gives masks to boxes.

    Args:
      loaded: the model with its options.
    """

    def __init__(self, loaded: LoadedModel):
        model, config = loaded.model, loaded.config
        self._vocabulary, self._mask_class_ids = loaded.vocabulary, loaded.mask_class_ids
        self._whole_pixels = model.conventions.paste_whole_pixels
        self._mask_size, self._mask_roi_scale = config.refined_mask_size, config.mask_roi_scale

        @tf.function(autograph=False, input_signature=[tf.TensorSpec([None, None, 3], tf.uint8)])
        def pyramid(image):
            sides = config.image_min_side, config.image_max_side
            resized, size, scale = preprocessing.resize_and_pad(image, *sides)
            return model.pyramid(resized[None], size[None]), scale

        @tf.function(autograph=False, reduce_retracing=True)
        def masks(features, boxes_yxyx, classes, scale):
            boxes_yxyx = boxes_yxyx * tf.tile(scale, [2])
            return model.masks(features, boxes_yxyx[None], classes[None], scale[None])[0]

        self._pyramid, self._masks = pyramid, masks

    def segment(
        self, image: np.ndarray, boxes_yxyx: np.ndarray, class_ids: np.ndarray, **others: Any
    ) -> Detections:
        """Masks of boxes.

        Args:
          image: uint8 RGB [H, W, 3].
          boxes_yxyx: float [N, 4], pixels of the image.
          class_ids: int [N], 1..K.
          **others: further attributes of the result, such as `name`.

        Returns:
          Detections in the order of the boxes, with probabilities float32 [N, m, m] as masks and
          `expected_iou` as scores.
        """
        probabilities = [np.zeros([0, self._mask_size, self._mask_size], np.float32)]
        if len(boxes_yxyx):
            features, scale = self._pyramid(tf.constant(image))
        for start in range(0, len(boxes_yxyx), MOST_BOXES):
            part = slice(start, start + MOST_BOXES)
            boxes = tf.constant(boxes_yxyx[part], tf.float32)
            classes = tf.constant(class_ids[part], tf.int32)
            probabilities.append(self._masks(features, boxes, classes, scale).numpy())
        masks = np.concatenate(probabilities)
        windows = mask_windows(boxes_yxyx, self._mask_roi_scale).numpy()
        return Detections(
            boxes_yxyx=boxes_yxyx,
            scores=expected_iou(masks).numpy(),
            class_ids=class_ids,
            class_names=np.array(self._vocabulary.names)[class_ids - 1],
            category_ids=np.array(self._vocabulary.external_ids)[class_ids - 1],
            mask_seen=np.isin(class_ids, self._mask_class_ids),
            box_masks=masks,
            mask_windows_yxyx=windows if self._mask_roi_scale > 1.0 else None,
            image_size=(image.shape[0], image.shape[1]),
            image=image,
            whole_pixels=self._whole_pixels,
            **others,
        )


# (image uint8 RGB [H, W, 3], boxes_yxyx float [N, 4] in its pixels, names [N]) -> outputs as of
# `module.DetectionModule.segment_boxes`; at most `MOST_BOXES` boxes.
Prompts = Callable[[np.ndarray, np.ndarray, np.ndarray], Mapping[str, np.ndarray]]


def prompts_of(signature: Callable[..., Mapping[str, tf.Tensor]]) -> Prompts:
    """A SavedModel's signature `box_prompts` as `Prompts`; it raises UserErrors."""

    def prompts(image, boxes_yxyx, names):
        try:
            outputs = signature(
                image_bytes=tf.io.encode_png(image, compression=1)[None],
                boxes=tf.constant(boxes_yxyx[None], tf.float32),
                class_names=tf.constant(names[None], tf.string),
            )
        except tf.errors.InvalidArgumentError as error:
            raise UserError(f"The exported model refuses this: {reason(error)}") from None
        return {key: value.numpy() for key, value in outputs.items()}

    return prompts


class ExportedSegmenter:
    """An exported model that gives masks to boxes.

    Args:
      prompts: the export's way to do it.
      vocabulary: its classes.
    """

    def __init__(self, prompts: Prompts, vocabulary: Vocabulary):
        self._prompts, self._vocabulary = prompts, vocabulary

    def segment(
        self, image: np.ndarray, boxes_yxyx: np.ndarray, class_ids: np.ndarray, **others: Any
    ) -> Detections:
        """As `Segmenter.segment`, with masks uint8, 255 times the probability.

        Raises:
          UserError: the export refuses the image or a box.
        """
        names = np.array(self._vocabulary.names, object)[class_ids - 1]
        parts = []
        for start in range(0, max(len(boxes_yxyx), 1), MOST_BOXES):
            part = slice(start, start + MOST_BOXES)
            outputs = self._prompts(image, boxes_yxyx[part], names[part])
            parts.append({key: value[0] for key, value in outputs.items()})
        joined: dict[str, Any] = {
            key: np.concatenate([part[key] for part in parts])
            for key in parts[0]
            if key not in ("num_detections", "image_size")
        }
        joined |= {"num_detections": len(boxes_yxyx), "image_size": parts[0]["image_size"]}
        category_ids = np.array(self._vocabulary.external_ids)[class_ids - 1]
        return Detections.from_outputs(joined, category_ids=category_ids, image=image, **others)


def expected_iou(probabilities: tf.Tensor | np.ndarray) -> tf.Tensor:
    """How good masks are by the model's own account: [..., m, m] in [0, 1] -> float64 [...].

    The mask is where p >= 0.5. Were the probabilities right, its intersection with the true mask
    would be, in the mean, the sum of p over it, and their union its area and the sum of p over the
    rest. The score is the ratio of the two: 1 for a mask without doubt, and 0 for an empty one.
    """
    probabilities = tf.cast(probabilities, tf.float64)
    inside = probabilities >= 0.5
    intersection = tf.reduce_sum(tf.where(inside, probabilities, 0.0), axis=[-2, -1])
    union = tf.reduce_sum(tf.where(inside, tf.ones_like(probabilities), probabilities), [-2, -1])
    return tf.math.divide_no_nan(intersection, union)
