"""Region proposal network: the shared head, its anchors and the proposals it makes."""

import tensorflow as tf
import tf_keras

from maskx_tf.layers import initializers
from maskx_tf.layers.convolution import Conv2D
from maskx_tf.ops import anchors, boxes
from maskx_tf.ops.conventions import CONVENTIONS

DELTA_WEIGHTS = (1.0, 1.0, 1.0, 1.0)


class RPN(tf_keras.layers.Layer):
    """One 3x3 convolution with objectness and box deltas, shared by all levels.

    Args:
      filters: channels of the 3x3 convolution.
      anchor_size: side of the square anchor in strides.
      anchor_ratios: height / width of each anchor.
      anchor_offset: see `anchors.level_anchors`.
      nms_iou: NMS threshold, within a level.
      conventions: a key of `CONVENTIONS`.
    """

    def __init__(
        self,
        filters: int,
        anchor_size: float,
        anchor_ratios: tuple[float, ...],
        anchor_offset: float,
        nms_iou: float,
        conventions: str = "aligned",
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.anchor_size, self.anchor_ratios = anchor_size, anchor_ratios
        self.anchor_offset = anchor_offset
        self.conventions = CONVENTIONS[conventions]
        self.nms_threshold = self.conventions.nms_threshold(nms_iou)

        def conv(channels: int, size: int, name: str, activation=None, dtype=None):
            return Conv2D(
                channels,
                size,
                activation=activation,
                kernel_initializer=initializers.gaussian_fill(0.01),
                dtype=dtype,
                name=name,
            )

        self.conv = conv(filters, 3, "conv", "relu")
        # Outputs are float32 also in mixed precision: rounded logits would tie.
        self.objectness = conv(len(anchor_ratios), 1, "objectness", dtype="float32")
        self.deltas = conv(4 * len(anchor_ratios), 1, "deltas", dtype="float32")

    def call(self, pyramid: dict[int, tf.Tensor]) -> dict[int, dict[str, tf.Tensor]]:
        """Logits and deltas of every level.

        Args:
          pyramid: {level: [B, H, W, C]}.

        Returns:
          {level: {"logits": [B, H * W * A], "deltas": [B, H * W * A, 4],
          "anchors_yxyx": [H * W * A, 4]}}; float32, in row, column, ratio order.
        """
        return {level: self._level(level, features) for level, features in pyramid.items()}

    def _level(self, level: int, features: tf.Tensor) -> dict[str, tf.Tensor]:
        batch, height, width = tf.unstack(tf.shape(features)[:3])
        hidden = self.conv(features)
        logits, deltas = self.objectness(hidden), self.deltas(hidden)
        return {
            "logits": tf.reshape(logits, [batch, -1]),
            "deltas": tf.reshape(deltas, [batch, -1, 4]),
            "anchors_yxyx": self.anchors_yxyx(level, height, width),
        }

    def anchors_yxyx(self, level, height, width):
        """Anchors [H * W * A, 4] of a level whose feature map has height x width cells."""
        return anchors.level_anchors(
            height,
            width,
            2**level,
            self.anchor_size,
            self.anchor_ratios,
            self.anchor_offset,
            self.conventions.anchor_rounding,
        )

    def propose(
        self,
        outputs: dict[int, dict[str, tf.Tensor]],
        image_sizes: tf.Tensor,
        pre_nms: int,
        post_nms: int,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """The best boxes of each image, after NMS within each level. No gradient.

        Args:
          outputs: what `call` returned.
          image_sizes: float32 [B, 2] (height, width), to clip to.
          pre_nms: boxes per level that reach the NMS, and that may leave it.
          post_nms: boxes per image over all levels, P.

        Returns:
          boxes_yxyx float32 [B, P, 4] by falling score, and their logits [B, P]; zeros and -inf as
          padding.
        """
        levels = [
            self._candidates(level, output, image_sizes, pre_nms)
            for level, output in outputs.items()
        ]  # boxes [B, n_l, 4], logits [B, n_l]

        def suppress(image_levels):
            """Logits with -inf where NMS removed a box; the only step that takes image by image."""
            return [self._suppress(*level) for level in image_levels]

        kept = tf.map_fn(suppress, levels, fn_output_signature=[tf.float32] * len(levels))
        scores = tf.concat(kept, axis=1)
        best = tf.math.top_k(scores, tf.minimum(post_nms, tf.shape(scores)[1]))
        proposals = tf.concat([candidates for candidates, _ in levels], axis=1)
        proposals = tf.gather(proposals, best.indices, batch_dims=1)
        proposals = tf.where((best.values > float("-inf"))[..., None], proposals, 0.0)
        missing = post_nms - tf.shape(best.values)[1]
        proposals = tf.pad(proposals, [[0, 0], [0, missing], [0, 0]])
        scores = tf.pad(best.values, [[0, 0], [0, missing]], constant_values=float("-inf"))
        return tf.ensure_shape(proposals, [None, post_nms, 4]), tf.ensure_shape(
            scores, [None, post_nms]
        )

    def _candidates(self, level, output, image_sizes, pre_nms):
        """The best boxes of a level, clipped [B, n, 4], with their logits [B, n], n <= pre_nms."""
        logits, deltas = tf.stop_gradient(output["logits"]), tf.stop_gradient(output["deltas"])
        logits = self.eligible(level, logits, output["anchors_yxyx"], image_sizes)
        best = tf.math.top_k(logits, tf.minimum(pre_nms, tf.shape(logits)[1]))
        return self.decode(
            best.values,
            tf.gather(deltas, best.indices, batch_dims=1),
            tf.gather(output["anchors_yxyx"], best.indices),
            image_sizes,
        )

    def eligible(self, level, logits, anchors_yxyx, image_sizes):
        """Logits [B, N] of a level's anchors [N, 4], -inf where one must not become a proposal."""
        if not self.conventions.keep_border_pixel:
            return logits
        # Clipping would leave a pixel of every box of the padding beyond: drop its cells.
        corners = anchors_yxyx[:, :2] + anchors_yxyx[:, 2:]
        cells = corners / 2 - self.anchor_offset * 2**level  # [N, 2]
        inside = tf.reduce_all(cells < image_sizes[:, None], axis=-1)  # [B, N]
        return tf.where(inside, logits, float("-inf"))

    def decode(self, logits, deltas, anchors_yxyx, image_sizes):
        """Boxes [B, n, 4] of anchors [B, n, 4], clipped, with their logits; -inf of empty ones."""
        candidates = boxes.decode(deltas, anchors_yxyx, DELTA_WEIGHTS)
        candidates = boxes.clip(candidates, image_sizes, self.conventions.keep_border_pixel)
        return candidates, tf.where(boxes.area(candidates) > 0, logits, float("-inf"))

    def _suppress(self, candidates, scores):
        """NMS among the boxes [n, 4] of one level of one image: scores [n], -inf if removed."""
        keep, count = tf.raw_ops.NonMaxSuppressionV4(
            boxes=candidates,
            scores=scores,
            max_output_size=tf.size(scores),
            iou_threshold=self.nms_threshold,
            score_threshold=float("-inf"),
        )
        keep = keep[:count]
        removed = tf.fill(tf.shape(scores), float("-inf"))
        return tf.tensor_scatter_nd_update(removed, keep[:, None], tf.gather(scores, keep))
