"""The frozen detector that examples are looked at with: proposals, and box features of regions."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from maskx_tf.checkpoints import LoadedModel


class View(NamedTuple):
    """What a detector sees in an image: its pyramid, and proposals float32 [P, 4] in pixels."""

    pyramid: dict[int, tf.Tensor]
    proposals: tf.Tensor


class FrozenDetector:
    """Graphs of a model's RPN and a box head, for any size and number of regions.

    Attributes:
      loaded: the model.
      head: the box head; of a cascade, that of the stage.
    """

    def __init__(self, loaded: LoadedModel, stage: int = 1):
        model, config = loaded.model, loaded.config
        head = model.box_heads[stage - 1]

        @tf.function(
            autograph=False,
            input_signature=[
                tf.TensorSpec([1, None, None, 3], tf.uint8),
                tf.TensorSpec([1, 2], tf.float32),
            ],
        )
        def look(image, size):
            pyramid = model.pyramid(image, size)
            limits = model.conventions.proposal_limits(size)
            proposals, logits = model.rpn.propose(
                model.rpn(pyramid), limits, config.rpn_pre_nms_test, config.rpn_post_nms_test
            )
            return pyramid, tf.boolean_mask(proposals[0], logits[0] > float("-inf"))

        level = tf.TensorSpec([1, None, None, config.fpn_filters], tf.float32)
        levels = range(config.min_level, config.max_level + 1)

        @tf.function(
            autograph=False,
            input_signature=[
                {number: level for number in levels},
                tf.TensorSpec([None, 4], tf.float32),
            ],
        )
        def features(pyramid, boxes_yxyx):
            found, _ = model.box_features(head, pyramid, boxes_yxyx[None])
            return found, tf.nn.softmax(head.class_logits(found))

        self.loaded, self.head = loaded, head
        self._look, self._features = look, features

    def look(self, image: tf.Tensor, size: tf.Tensor) -> View:
        """View of one image.

        Args:
          image: uint8 [1, H, W, 3] network input.
          size: float32 [1, 2], (height, width) of its valid part.
        """
        return View(*self._look(image, size))

    def features(self, view: View, boxes_yxyx) -> tuple[tf.Tensor, tf.Tensor]:
        """Box features float32 [R, D] and class probabilities [R, K + 1] of regions [R, 4]."""
        return self._features(view.pyramid, tf.constant(boxes_yxyx, tf.float32))
