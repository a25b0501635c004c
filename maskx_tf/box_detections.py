"""Detected boxes of a pyramid: proposals, box heads, cascades and passes, joint scores, NMS.

Functions of a `MaskXRCNN`; its masks are made for what is detected here.
"""

from typing import NamedTuple

import tensorflow as tf

from maskx_tf.layers import detections, joint_scores
from maskx_tf.ops import boxes, mask_voting

Detected = dict[str, tf.Tensor]  # the outputs of `MaskXRCNN.detect` but the masks


class _Classified(NamedTuple):
    """RoIs of the last box head and what it says of them."""

    features: tf.Tensor  # float32 [B, P, D]
    logits: tf.Tensor  # float32 [B, P, K + 1], whose probabilities are the mean over the stages
    rois_yxyx: tf.Tensor  # float32 [B, P, 4]
    # With MNC's head float32 [B, P, m, m], for any class; else, where joint scores are added and
    # masks vote, [B, P, U, m, m] of several classes; else 0 x 0.
    masks: tf.Tensor
    mask_classes: tf.Tensor  # int32 [B, P, U] of the masks; U = 0: for any class


def detect(
    model, pyramid: dict[int, tf.Tensor], image_sizes: tf.Tensor, image_scales: tf.Tensor | None
) -> list[Detected]:
    """Boxes of each class group on its own, arguments as of `MaskXRCNN.detect`.

    With `--mask_voting` each group also has "voted_masks" [B, D, m, m].
    """
    config = model.config
    proposals, scores = model.rpn.propose(
        model.rpn(pyramid),
        model.conventions.proposal_limits(image_sizes),
        config.rpn_pre_nms_test,
        config.rpn_post_nms_test,
    )
    valid = scores > float("-inf")
    return of_rois(model, pyramid, proposals, valid, image_sizes, image_scales)


def of_rois(model, pyramid, rois, valid, image_sizes, image_scales=None) -> list[Detected]:
    """Box heads and NMS over RoIs [B, P, 4], those `valid` [B, P], by class group."""
    groups = model.box_heads[-1].groups
    if len(model.box_heads) == model.config.box_passes == 1:
        return _of_groups(model, groups, pyramid, rois, valid, image_sizes, image_scales)
    # Where a RoI moves to follows from the classes of its group and of those before it.
    return [
        detected
        for group in groups
        for detected in _of_groups(model, [group], pyramid, rois, valid, image_sizes, image_scales)
    ]


def _of_groups(model, groups, pyramid, rois, valid, image_sizes, image_scales):
    """`of_rois` of some class groups, which share the RoIs of each stage and pass."""
    config, head, last = model.config, model.box_heads[-1], groups[-1].stop
    seen = _classify(model, last, pyramid, rois, image_sizes, image_scales)
    if config.box_passes == 2:
        flat = tf.reshape(seen.features, [-1, head.units]), tf.reshape(seen.logits, [-1, last])
        again = head.refine(*flat, seen.rois_yxyx, image_sizes)
        again = _classify(model, last, pyramid, again, image_sizes, image_scales)
        both = zip(seen, again, strict=True)
        seen = _Classified(*(tf.concat(values, axis=1) for values in both))
        valid = tf.tile(valid, [1, 2])
    rois = seen.rois_yxyx
    in_original = model.conventions.decode_in_original and image_scales is not None
    if in_original:
        rois = boxes.to_original(rois, image_scales)
        image_sizes = tf.round(image_sizes / image_scales)
    detected = detections.select_by_group(
        seen.features,
        seen.logits,
        rois,
        valid,
        image_sizes,
        head.decode,
        groups,
        score_threshold=config.score_threshold,
        nms_iou=config.nms_iou,
        candidates=config.nms_candidates * len(groups) // len(head.groups),
        max_detections=config.max_detections * len(groups) // len(head.groups),
        conventions=model.conventions,
    )
    for group in detected:
        if in_original:
            group["detection_boxes"] *= tf.tile(image_scales, [1, 2])[:, None]
        if config.mask_voting and seen.masks.shape[-1]:
            group["voted_masks"] = mask_voting.vote_in_batch(
                seen.masks, rois, seen.logits, valid, group, seen.mask_classes
            )
    return detected


def _classify(model, last: int, pyramid, rois, image_sizes, image_scales) -> _Classified:
    """What the box heads say of RoIs [B, P, 4] and classes below `last`."""
    head, (batch, count) = model.box_heads[-1], (tf.shape(rois)[0], rois.shape[1])
    stage_logits: list[tf.Tensor] = []
    for stage in model.box_heads:
        features, masks = model.box_features(stage, pyramid, rois)
        stage_logits.append(stage.class_logits(features)[:, :last])
        if stage is not head:
            rois = stage.refine(features, stage_logits[-1], rois, image_sizes)
    if masks is None:
        masks = tf.zeros([batch * count, 0, 0])
    seen = _Classified(
        tf.reshape(features, [batch, count, head.units]),
        tf.reshape(detections.mean_logits(stage_logits), [batch, count, last]),
        rois,
        tf.reshape(masks, [batch, count, *masks.shape[1:]]),
        tf.zeros([batch, count, 0], tf.int32),
    )
    # The first call of all creates the mask head's weights, after this.
    if model.config.has_joint_scores and model.mask_head.built:
        return _score_jointly(model, pyramid, seen, image_scales)
    return seen


def _score_jointly(model, pyramid, seen: _Classified, image_scales) -> _Classified:
    """The same RoIs with joint scores added and, to vote, masks; image by image."""
    config, body = model.config, model.mask_head.body

    def of_image(inputs):
        index, windows, logits = inputs
        levels = {level: features[index][None] for level, features in pyramid.items()}
        first = tf.zeros_like(windows[:, 0], tf.int32)
        size = config.mask_roi_size
        features = model.flat_roi_features(levels, windows, first, size, config.mask_roi_op)
        pixels = model.mask_head.pixels(features)
        scored, kernels, biases = model.scored_classes(logits)
        found = {"logits": joint_scores.add(logits, scored, body.scores(pixels, kernels))}
        if config.mask_voting:
            found |= {"masks": body.masks(pixels, kernels, biases), "mask_classes": scored}
        return found

    images, count = tf.range(tf.shape(seen.logits)[0]), seen.logits.shape[1]
    inputs = (images, model.mask_rois(seen.rois_yxyx, image_scales), seen.logits)
    spec = {"logits": tf.TensorSpec(seen.logits.shape[1:], tf.float32)}
    if config.mask_voting:
        side = config.mask_size
        spec["masks"] = tf.TensorSpec([count, None, side, side], tf.float32)
        spec["mask_classes"] = tf.TensorSpec([count, None], tf.int32)
    return seen._replace(**tf.map_fn(of_image, inputs, fn_output_signature=spec))
