"""Losses of the box heads on the RoIs of a batch: of one head, or of the stages of a cascade."""

from typing import NamedTuple

import tensorflow as tf

from maskx_tf import losses
from maskx_tf.ops import boxes, sampling

Losses = dict[str, losses.Loss]


class RoiSample(NamedTuple):
    """RoIs of a batch that the heads are trained on, S of each image."""

    boxes_yxyx: tf.Tensor  # float32 [B, S, 4]
    object_indices: tf.Tensor  # int32 [B, S] into the objects of the image
    positive: tf.Tensor  # bool [B, S]
    valid: tf.Tensor  # bool [B, S]


def of_stage(name: str, stage: int) -> str:
    """The name of a loss of a stage, from 1 on: that of the second is class_2."""
    return name if stage == 1 else f"{name}_{stage}"


def box_losses(model, pyramid, sample: RoiSample, labels, image_sizes) -> Losses:
    """The losses of all box heads; each after the first sees the RoIs where the one before does."""
    result: Losses = {}
    for stage, head in enumerate(model.box_heads, start=1):
        rois = sample.boxes_yxyx
        of_rois = model.roi_features(pyramid, rois, model.config.box_roi_size)
        divisor = 1 if model.config.cascade_loss_weights else len(model.box_heads)
        features = head(_share_gradient(of_rois, divisor))
        logits = head.class_logits(features)
        found = losses_of_box_head(head, features, logits, sample, labels)
        result |= {of_stage(name, stage): loss for name, loss in found.items()}
        if head is not model.box_heads[-1]:
            refined = head.refine(features, logits, rois, image_sizes)
            sample = match_again(refined, sample, labels, model.box_heads[stage].positive_iou)
    return result


def _share_gradient(features: tf.Tensor, stages: int) -> tf.Tensor:
    """The same features; of several stages each gives backbone and FPN its part of the gradient."""
    if stages == 1:
        return features

    @tf.custom_gradient
    def identity(values):
        return tf.identity(values), lambda upstream: upstream / stages

    return identity(features)


def match_again(rois_yxyx, sample: RoiSample, labels, positive_iou: float) -> RoiSample:
    """The RoIs of a sample after they moved, each with the object that it overlaps most now."""
    objects = tf.where(labels["is_crowd"][..., None], 0.0, labels["boxes_yxyx"])
    matches = sampling.match(boxes.iou(rois_yxyx, objects))
    positive = sample.valid & (matches.iou >= positive_iou)
    return RoiSample(rois_yxyx, matches.index, positive, sample.valid)


def refined(model, pyramid, sample: RoiSample, labels, image_sizes) -> RoiSample:
    """The RoIs of a sample where the box heads, one after the other, see their objects.

    As detections are. No gradient. Positive is what overlaps an object by the last head's IoU.

    Args:
      model: the model.
      pyramid: of the images.
      sample: RoIs.
      labels: of the batch.
      image_sizes: float32 [B, 2] (height, width).
    """
    rois = sample.boxes_yxyx
    for head in model.box_heads:
        features, _ = model.box_features(head, pyramid, rois)
        rois = head.refine(features, head.class_logits(features), rois, image_sizes)
    return match_again(rois, sample, labels, model.box_heads[-1].positive_iou)


def losses_of_box_head(head, features, logits, sample: RoiSample, labels) -> Losses:
    """Class and box loss of a head.

    Args:
      head: a `BoxHead`.
      features: [B * S, D] of the RoIs.
      logits: [B * S, K + 1], the head's.
      sample: the RoIs.
      labels: of the batch.
    """
    matched = tf.gather(labels["classes"], sample.object_indices, batch_dims=1)
    classes = tf.where(sample.positive, matched, 0)  # [B, S]
    valid = tf.reshape(sample.valid, [-1])
    class_loss = losses.class_loss(logits, tf.reshape(classes, [-1]), valid)
    positive = tf.where(sample.positive)  # [F, 2]
    objects = tf.gather(labels["boxes_yxyx"], sample.object_indices, batch_dims=1)
    targets = boxes.encode(
        tf.gather_nd(objects, positive),
        tf.gather_nd(sample.boxes_yxyx, positive),
        head.delta_weights,
    )
    rows = tf.where(tf.reshape(sample.positive, [-1]))[:, 0]
    deltas = head.class_deltas(tf.gather(features, rows), tf.gather_nd(classes, positive))
    return {"class": class_loss, "box": losses.box_loss(deltas, targets, class_loss[1])}
