"""From class scores and proposals to final boxes, at a cost that the class count hardly changes."""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from maskx_tf.ops import boxes
from maskx_tf.ops.conventions import CONVENTIONS, Conventions

# Classes are laid out on a grid of this many columns when boxes of different classes are moved
# apart for NMS. A single row would need offsets of millions of pixels at 3,000 classes, where
# float32 has steps of half a pixel.
GRID_COLUMNS = 64


def class_grid_offsets(classes: tf.Tensor, spacing: tf.Tensor) -> tf.Tensor:
    """Offsets that move boxes of different classes apart. int32 [N] -> float32 [N, 4]."""
    row = tf.cast(classes // GRID_COLUMNS, tf.float32) * spacing
    column = tf.cast(classes % GRID_COLUMNS, tf.float32) * spacing
    return tf.stack([row, column, row, column], axis=-1)


def pair_scores(class_logits: tf.Tensor, valid: tf.Tensor, first_class: int) -> tf.Tensor:
    """Scores [P, K] of (proposal, class) pairs, out of logits [P, K + 1]; 0 where not valid."""
    scores = tf.nn.softmax(class_logits)[:, first_class:]
    return scores * tf.cast(valid, tf.float32)[:, None]


def candidate_boxes(
    decoded: tf.Tensor,
    classes: tf.Tensor,
    scores: tf.Tensor,
    image_size: tf.Tensor,
    conventions: Conventions,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """What reaches the NMS: boxes clipped; scores, -1 of empty ones; boxes with classes apart.

    Args:
      decoded: boxes_yxyx [..., n, 4], unclipped.
      classes, scores: [..., n].
      image_size: [..., 2] (height, width).
      conventions: of clipping.
    """
    decoded = boxes.clip(decoded, image_size, conventions.keep_border_pixel)
    scores = tf.where(boxes.area(decoded) > 0, scores, -1.0)
    spacing = tf.reduce_max(image_size, axis=-1, keepdims=True) + 1.0
    return decoded, scores, decoded + class_grid_offsets(classes, spacing)


def select_detections(
    class_logits: tf.Tensor,
    proposals_yxyx: tf.Tensor,
    valid: tf.Tensor,
    image_size: tf.Tensor,
    decode: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
    *,
    score_threshold: float,
    nms_iou: float,
    candidates: int,
    max_detections: int,
    first_class: int = 1,
    conventions: Conventions = CONVENTIONS["aligned"],
) -> dict[str, tf.Tensor]:
    """Final boxes of one image.

    The best (proposal, class) pairs are cut out before any box is decoded; NMS runs once, with the
    classes moved apart.

    Args:
      class_logits: float32 [P, K + 1], background first.
      proposals_yxyx: [P, 4].
      valid: bool [P], False in the padding.
      image_size: [2] (height, width), to clip to.
      decode: (proposal indices [n], classes [n]) -> boxes_yxyx [n, 4], unclipped.
      score_threshold: pairs must score more than this.
      nms_iou: NMS threshold within a class.
      candidates: pairs that reach the NMS at most.
      max_detections: D.
      first_class: classes before it take part in the softmax but are not detected.
      conventions: of clipping and NMS.

    Returns:
      num_detections int32 [], detection_boxes [D, 4], detection_scores [D], detection_classes
      int32 [D] (zeros in the padding).
    """
    scores = pair_scores(class_logits, valid, first_class)
    num_classes = scores.shape[1]
    flat = tf.reshape(scores, [-1])
    best = tf.math.top_k(flat, tf.minimum(candidates, tf.size(flat)))
    proposal_indices = best.indices // num_classes
    classes = best.indices % num_classes + first_class
    decoded, candidate_scores, apart = candidate_boxes(
        decode(proposal_indices, classes), classes, best.values, image_size, conventions
    )
    keep, count = tf.raw_ops.NonMaxSuppressionV4(
        boxes=apart,
        scores=candidate_scores,
        max_output_size=max_detections,
        iou_threshold=conventions.nms_threshold(nms_iou),
        score_threshold=score_threshold,
        pad_to_max_output_size=True,
    )
    present = tf.range(max_detections) < count
    return {
        "num_detections": count,
        "detection_boxes": tf.where(present[:, None], tf.gather(decoded, keep), 0.0),
        "detection_scores": tf.where(present, tf.gather(candidate_scores, keep), 0.0),
        "detection_classes": tf.where(present, tf.gather(classes, keep), 0),
    }


def mean_logits(stages: Sequence[tf.Tensor]) -> tf.Tensor:
    """Logits whose probabilities are the mean over the stages of a cascade, each [..., K + 1]."""
    if len(stages) == 1:
        return stages[0]
    return tf.math.log(tf.add_n([tf.nn.softmax(logits) for logits in stages]) / len(stages))


def select_by_group(
    features: tf.Tensor,
    class_logits: tf.Tensor,
    proposals_yxyx: tf.Tensor,
    valid: tf.Tensor,
    image_sizes: tf.Tensor,
    decode: Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor],
    groups: Sequence[range],
    *,
    candidates: int,
    max_detections: int,
    **options: Any,
) -> list[dict[str, tf.Tensor]]:
    """Final boxes of a batch, by group of classes.

    A class is scored by the softmax over its own group and those before it, and only classes of
    one group compete for places: adding a group changes nothing for the others.

    Args:
      features: [B, P, U] of the box head.
      class_logits: float32 [B, P, K + 1], background first.
      proposals_yxyx: [B, P, 4].
      valid: bool [B, P], False in the padding.
      image_sizes: [B, 2] (height, width), to clip to.
      decode: (features [n, U], classes [n], proposals [n, 4]) -> boxes [n, 4], unclipped.
      groups: the class ids of each group.
      candidates, max_detections: of all groups; each gets an equal share.
      **options: further ones of `select_detections`.

    Returns:
      For each group what `select_detections` returns, with a leading B.
    """
    most = max_detections // len(groups)

    def detect_image(inputs):
        image_features, image_logits, image_proposals, image_valid, image_size = inputs

        def decode_pairs(proposal_indices, classes):
            chosen = tf.gather(image_features, proposal_indices)
            return decode(chosen, classes, tf.gather(image_proposals, proposal_indices))

        return [
            select_detections(
                image_logits[:, : group.stop],
                image_proposals,
                image_valid,
                image_size,
                decode_pairs,
                candidates=max(candidates // len(groups), 1),
                max_detections=most,
                first_class=group.start,
                **options,
            )
            for group in groups
        ]

    signature = {
        "num_detections": tf.TensorSpec([], tf.int32),
        "detection_boxes": tf.TensorSpec([most, 4], tf.float32),
        "detection_scores": tf.TensorSpec([most], tf.float32),
        "detection_classes": tf.TensorSpec([most], tf.int32),
    }
    inputs = (features, class_logits, proposals_yxyx, valid, image_sizes)
    return tf.map_fn(detect_image, inputs, fn_output_signature=[signature for _ in groups])


def by_falling_score(groups: list[dict[str, tf.Tensor]]) -> dict[str, tf.Tensor]:
    """The detections of several groups of classes as one list.

    Args:
      groups: each num_detections [B] and, with D_g places each, detection_scores [B, D_g] and
        others of the same leading shape, padding at the end.

    Returns:
      The same keys with D = sum of D_g places, ordered by falling score; those of a group keep
      their order. One group is returned as it is.
    """
    if len(groups) == 1:
        return groups[0]
    count = tf.add_n([group["num_detections"] for group in groups])
    every = {
        key: tf.concat([group[key] for group in groups], axis=1)
        for key in groups[0]
        if key != "num_detections"
    }
    order = tf.argsort(every["detection_scores"], direction="DESCENDING", stable=True)
    ordered = {key: tf.gather(value, order, batch_dims=1) for key, value in every.items()}
    return {"num_detections": count, **ordered}
