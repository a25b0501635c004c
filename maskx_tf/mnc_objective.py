"""Training of Multi-task Network Cascades: masks of RoIs, and classes that see these masks.

The passes share all weights. From one to the next, RoIs move to where the box head sees their
objects, and the gradient of the later pass reaches the boxes (RoI warping).
"""

import math

import tensorflow as tf

from maskx_tf import losses
from maskx_tf.box_objective import Losses, RoiSample, losses_of_box_head, match_again, of_stage
from maskx_tf.ops import sampling
from maskx_tf.ops.mask_targets import mask_ious, mask_targets, object_areas

MASK_THRESHOLD = 0.4  # from which a pixel belongs to a mask that is judged (published)
GOOD_MASK_IOU = 0.5  # with its object, from which the mask is one of the object's class (published)
BOX_GRADIENT = 1.0 / 512.0  # the largest per coordinate (published)


def stage_losses(
    model, pyramid, sample: RoiSample, labels, has_mask: tf.Tensor, image_sizes: tf.Tensor
) -> Losses:
    """The losses of box and mask head in each pass.

    Args:
      model: with `--box_head=mnc`.
      pyramid: of the images.
      sample: RoIs of the first pass.
      labels: of the batch.
      has_mask: bool [B, M], the objects with a mask to train on.
      image_sizes: float32 [B, 2] (height, width).
    """
    head, config = model.box_heads[-1], model.config
    result: Losses = {}
    rois = sample.boxes_yxyx
    for stage in range(1, config.box_passes + 1):
        features = model.roi_features(pyramid, rois, config.mask_roi_size)
        logits = model.roi_mask_logits(features, training=True)  # [B * S, m, m]
        found, is_good, is_judged = _mask_losses(model, features, logits, sample, labels, has_mask)
        # Masks learn from the classes only where they are good.
        probabilities = tf.sigmoid(logits)
        learns = tf.reshape(is_good, [-1, 1, 1])
        probabilities = tf.where(learns, probabilities, tf.stop_gradient(probabilities))
        seen = head(features, probabilities)
        by_box = losses_of_box_head(head, seen, head.box_class_logits(seen), sample, labels)
        by_mask = sample._replace(positive=sample.positive & (is_good | ~is_judged))
        class_logits = head.class_logits(seen)
        found |= {"class_of_box": by_box["class"], "box": by_box["box"]}
        found["class"] = losses_of_box_head(head, seen, class_logits, by_mask, labels)["class"]
        result |= {of_stage(name, stage): loss for name, loss in found.items()}
        if stage < config.box_passes:
            rois = head.refine(seen, class_logits, rois, image_sizes, gradient=True)
            rois = _limited(rois)  # for the features; targets take them as constants
            sample = match_again(tf.stop_gradient(rois), sample, labels, head.positive_iou)
    return result


def _mask_losses(model, features, roi_logits, sample: RoiSample, labels, has_mask):
    """Losses of the masks of RoIs that belong to objects with masks.

    Returns:
      The losses; bool [B, S], the RoIs whose masks are good; and those whose masks were judged.
    """
    config, size = model.config, model.config.mask_size
    learns = sample.positive & tf.gather(has_mask, sample.object_indices, batch_dims=1)
    chosen, valid = sampling.where_or_first(learns)  # [R, 2], [R]
    batch, most = tf.unstack(tf.shape(labels["classes"]))
    places = tf.stack([chosen[:, 0], tf.gather_nd(sample.object_indices, chosen)], axis=1)
    masks = labels["masks"]
    of_objects = (
        tf.reshape(masks, [batch * most, *masks.shape[2:]]),
        tf.reshape(labels["boxes_yxyx"], [-1, 4]),
        model.conventions.mask_regions(tf.gather_nd(sample.boxes_yxyx, chosen)),
        places[:, 0] * most + places[:, 1],
        size,
    )
    targets = mask_targets(*of_objects)
    weights = labels.get("mask_weight")
    if weights is not None:
        weights = tf.gather_nd(weights, places)
    rows = chosen[:, 0] * tf.shape(sample.positive)[1] + chosen[:, 1]
    logits = tf.gather(roi_logits, rows)
    found = {"mask": losses.mask_loss(logits, targets, valid, weights)}
    if config.has_transfer:
        found["roi_mask"] = found["mask"]
        of_class = model.mask_logits(
            tf.gather(features, rows), tf.gather_nd(labels["classes"], places), training=True
        )
        found["mask"] = losses.mask_loss(of_class, targets, valid, weights)
    shifted = logits - math.log(MASK_THRESHOLD / (1 - MASK_THRESHOLD))
    ious = mask_ious(shifted, targets, object_areas(*of_objects))
    is_good = valid & (ious >= GOOD_MASK_IOU)
    shape = tf.shape(learns)
    is_good = tf.scatter_nd(chosen, tf.cast(is_good, tf.int32), shape) > 0
    return found, is_good, learns


@tf.custom_gradient
def _limited(boxes_yxyx: tf.Tensor):
    """The same boxes; their gradient is at most `BOX_GRADIENT` per coordinate."""
    return tf.identity(boxes_yxyx), lambda upstream: tf.clip_by_value(
        upstream, -BOX_GRADIENT, BOX_GRADIENT
    )
