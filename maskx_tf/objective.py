"""The training objective: targets, heads and losses of one batch, with partial supervision."""

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from maskx_tf import losses, mnc_objective
from maskx_tf.box_objective import Losses, RoiSample, box_losses, of_stage, refined
from maskx_tf.config import Config
from maskx_tf.layers import roi_align, rpn
from maskx_tf.layers.point_head import FineFeatures
from maskx_tf.model import MaskXRCNN
from maskx_tf.ops import boxes, points, replicas, sampling
from maskx_tf.ops.colors import rgb_to_lab
from maskx_tf.ops.mask_targets import mask_targets, object_areas, point_targets
from maskx_tf.ops.semantic_targets import semantic_targets


class PointExamples(NamedTuple):
    """Where the point head's examples come from: they depend on what the mask head predicts."""

    fine: FineFeatures
    random: tf.Tensor  # float32 [R, points.draws(P), 2], of which points the P are chosen
    # Arguments of `ops.mask_targets.point_targets`:
    masks: tf.Tensor
    mask_boxes_yxyx: tf.Tensor
    rois_yxyx: tf.Tensor
    mask_indices: tf.Tensor


class MaskExamples(NamedTuple):
    """What the mask head and its losses see of a batch: R RoIs, R >= 1."""

    features: tf.Tensor  # [R, S, S, C], RoIAlign at the size of the mask head
    classes: tf.Tensor  # int32 [R]
    targets: tf.Tensor  # float32 {0, 1} [R, m, m]
    valid: tf.Tensor  # bool [R], False without a mask, as of the RoI that stands in for none
    weights: tf.Tensor | None = None  # float32 [R] of the masks, above 0 where valid; None: all 1
    # Where a loss learns from boxes alone, see `losses.Term`:
    # float32 [R, 4], the object's box in cells of the mask, within 0 and m; empty of the RoI that
    # stands in for none.
    boxes_yxyx: tf.Tensor | None = None
    images_yxyx: tf.Tensor | None = None  # float32 [R, 4], the whole image in the same cells
    colors: tf.Tensor | None = None  # float32 [R, m, m, 3], LAB of the image
    # Where the mask head scores classes too, of RoIs without an object as well (class 0):
    scored: tf.Tensor | None = None  # bool [R], False of the RoI that stands in for none
    class_logits: tf.Tensor | None = None  # float32 [R, K + 1], of the box head; then of both
    # With mask scoring:
    areas: tf.Tensor | None = None  # float32 [R] of the whole objects, in cells of the masks
    ious: tf.Tensor | None = None  # float32 [R], predicted once the mask head has predicted
    # With a point head:
    points: PointExamples | None = None
    point_logits: tf.Tensor | None = None  # float32 [R, P], once the mask head has predicted
    point_targets: tf.Tensor | None = None  # float32 [R, P] in [0, 1], likewise


def loss_terms(config: Config, stages: int = 1) -> tuple[losses.Term, ...]:
    """The losses that a run trains, with their weights; `stages` is the number of box heads."""
    trains_boxes, trains_masks = config.mode != "stage2_masks", config.has_masks
    stages = config.box_passes if config.has_mnc else stages
    stage_weights = config.cascade_loss_weights or [1.0] * stages
    trained = []
    for stage, stage_weight in enumerate(stage_weights, start=1):
        for term in losses.TERMS:
            weight, steps = (
                getattr(config, value) if isinstance(value, str) else value
                for value in (term.weight, term.warmup_steps)
            )
            of_heads = term.part == "box_head" or (config.has_mnc and term.part == "mask_head")
            is_trained = trains_masks if term.part == "mask_head" else trains_boxes
            if weight and is_trained and (of_heads or stage == 1):
                name, mean_over = (of_stage(name, stage) for name in (term.name, term.mean_over))
                weight = weight * stage_weight if of_heads else weight
                trained.append(
                    term._replace(name=name, mean_over=mean_over, weight=weight, warmup_steps=steps)
                )
    return tuple(trained)


def learns_from_boxes(config: Config) -> bool:
    """Whether RoIs of objects without a mask reach the mask head."""
    return not all(term.needs_masks for term in loss_terms(config))


def trim_objects(labels: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Cuts the padding that no image of a step needs: [B, M, …] -> [B, M', …], M' >= 1."""
    # Over all replicas: M' decides which random number a candidate gets.
    present = replicas.anywhere(tf.reduce_any(labels["classes"] > 0, axis=0))
    used = tf.where(present, tf.range(1, tf.size(present) + 1), 1)
    most = tf.reduce_max(used)
    return {name: value[:, :most] for name, value in labels.items()}


def training_losses(
    model: MaskXRCNN,
    features: dict[str, tf.Tensor],
    labels: dict[str, tf.Tensor],
    seed: tf.Tensor,
) -> Losses:
    """All losses of one batch, or of a replica's part of it (see `replicas`).

    Supervision is per object: each object with a box takes part in the RPN and box losses; its
    mask takes part in the mask loss if `has_mask` says so and its weight, if there are weights, is
    not 0. A RoI's mask target comes only from the
    object the RoI was matched to. Objects without a mask add exactly nothing to the mask loss, and
    the sampling of RoIs for the box losses does not depend on masks.

    In mode `stage2_masks` only the mask loss exists and no gradient is computed through backbone,
    FPN, RPN or box head; its RoIs are drawn among those of objects with masks.

    Args:
      model: built.
      features, labels: a batch of `data.pipeline`; in stage 2 also `MaskExamples` computed before,
        "features" in the first and the rest in the second.
      seed: int32 [2], what the sampling of anchors and RoIs follows from; the same on all
        replicas.

    Returns:
      {name: (value, count)} of the run's `loss_terms`, without their weights.
    """
    config = model.config
    if config.mode == "stage2_masks" and "features" in features:  # of a feature cache
        return _mask_losses(model, MaskExamples(**features, **labels))
    labels = trim_objects(labels)
    if config.mode == "stage2_masks":
        pyramid = _frozen_pyramid(model, features)
        semantic, result = _semantic_losses(model, pyramid, features, labels)
        if config.has_mask_head:
            sample = _frozen_sample(model, pyramid, features, labels, seed)
            examples = _mask_examples(model, pyramid, sample, features, labels, seed, semantic)
            result |= _mask_losses(model, examples)
        return result
    image_sizes = features["image_size"]
    pyramid = model.pyramid(features["image"], image_sizes, training=True)
    rpn_seed, roi_seed = tf.unstack(tf.random.split(seed, 2))
    outputs = model.rpn(pyramid)
    sample = _sample_rois(model, _proposals(model, outputs, image_sizes), labels, roi_seed)
    result = _rpn_losses(model, outputs, labels, image_sizes, rpn_seed)
    if config.has_mnc:
        has_mask = _has_mask(labels)
        return result | mnc_objective.stage_losses(
            model, pyramid, sample, labels, has_mask, image_sizes
        )
    result |= box_losses(model, pyramid, sample, labels, image_sizes)
    if config.mode == "end_to_end":
        semantic, of_maps = _semantic_losses(model, pyramid, features, labels)
        result |= of_maps
        if config.has_mask_head:
            examples = _mask_examples(model, pyramid, sample, features, labels, seed, semantic)
            result |= _mask_losses(model, examples)
    return result


def frozen_mask_examples(
    model: MaskXRCNN,
    features: dict[str, tf.Tensor],
    labels: dict[str, tf.Tensor],
    seed: tf.Tensor,
) -> MaskExamples:
    """The part of stage 2 that no training step changes: arguments as of `training_losses`."""
    labels = trim_objects(labels)
    pyramid = _frozen_pyramid(model, features)
    sample = _frozen_sample(model, pyramid, features, labels, seed)
    return _mask_examples(model, pyramid, sample, features, labels, seed)


def _frozen_pyramid(model, features) -> dict[int, tf.Tensor]:
    pyramid = model.pyramid(features["image"], features["image_size"], training=False)
    return {level: tf.stop_gradient(value) for level, value in pyramid.items()}


def _frozen_sample(model, pyramid, features, labels, seed) -> RoiSample:
    _, roi_seed = tf.unstack(tf.random.split(seed, 2))
    proposals = _proposals(model, model.rpn(pyramid), features["image_size"])
    return _sample_rois(model, proposals, labels, roi_seed)


def _semantic_losses(model, pyramid, images, labels) -> tuple[tf.Tensor | None, Losses]:
    """Features of the semantic head and its loss, of the classes that an image has masks of."""
    if model.semantic_head is None:
        return None, {}
    features = model.semantic_head(pyramid, training=True)
    classes = labels["classes"]
    if model.config.mask_output == "class_agnostic":  # one map, of all classes
        classes = tf.minimum(classes, 1)
    level = min(pyramid)
    targets = semantic_targets(
        labels["masks"],
        labels["boxes_yxyx"],
        classes,
        _has_mask(labels) & ~labels["is_crowd"],
        images["image_size"],
        tf.shape(pyramid[level])[1:3],
        2**level,
        labels.get("mask_weight"),
    )
    logits = model.semantic_logits(features, targets.classes)  # [B, P, h, w]
    logits = tf.image.resize(tf.transpose(logits, [0, 2, 3, 1]), tf.shape(targets.maps)[2:])
    of_maps = (tf.transpose(logits, [0, 3, 1, 2]), targets.maps, targets.weights)
    return features, {"semantic": losses.semantic_loss(*of_maps, targets.classes > 0)}


def _mask_losses(model, examples: MaskExamples) -> Losses:
    if examples.class_logits is None:
        logits = model.mask_logits(examples.features, examples.classes, training=True)
    else:
        logits, examples = _jointly(model, examples)
    if examples.points is not None:
        examples = _at_points(model, examples, logits)
    if model.mask_iou_head is not None:
        ious = model.mask_ious(examples.features, logits, examples.classes)
        examples = examples._replace(ious=ious)
    of_masks = {term.name: term.of_masks for term in loss_terms(model.config) if term.of_masks}
    return {name: compute(logits, examples, model.config) for name, compute in of_masks.items()}


def _jointly(model, examples: MaskExamples) -> tuple[tf.Tensor, MaskExamples]:
    """Mask logits [R, m, m] and class logits of the same maps; only hard RoIs still count."""
    logits, class_logits = model.joint_logits(
        examples.features, examples.classes, tf.stop_gradient(examples.class_logits), training=True
    )
    valid, scored = examples.valid, examples.scored
    if model.config.hard_rois < 1:
        of_masks, of_classes = (examples.targets, valid), (class_logits, examples.classes, scored)
        hard = losses.hard_rois(logits, *of_masks, *of_classes, model.config.hard_rois)
        valid, scored = valid & hard, hard
    return logits, examples._replace(class_logits=class_logits, valid=valid, scored=scored)


def _at_points(model, examples: MaskExamples, logits: tf.Tensor) -> MaskExamples:
    """The examples with points where the mask head's logits [R, m, m] are uncertain."""
    seen = examples.points
    assert seen is not None
    at = points.for_training(logits, seen.random, point_count(model.config))
    of_masks = (seen.masks, seen.mask_boxes_yxyx, seen.rois_yxyx, seen.mask_indices)
    return examples._replace(
        point_logits=model.point_logits(seen.fine, logits, at, examples.classes),
        point_targets=point_targets(*of_masks, at),
    )


def point_count(config: Config) -> int:
    """P, the points of a RoI in training: published 14 x 14, with a mask of 28 x 28."""
    return config.mask_size**2 // 4


def _proposals(model, outputs, image_sizes) -> tf.Tensor:
    config = model.config
    limits = (config.rpn_pre_nms_train, config.rpn_post_nms_train)
    return model.rpn.propose(outputs, image_sizes, *limits)[0]


def _rpn_losses(model, outputs, labels, image_sizes, seed) -> Losses:
    config = model.config
    logits = tf.concat([output["logits"] for output in outputs.values()], axis=1)  # [B, N]
    deltas = tf.concat([output["deltas"] for output in outputs.values()], axis=1)  # [B, N, 4]
    anchors = tf.concat([output["anchors_yxyx"] for output in outputs.values()], axis=0)
    objects = tf.where(labels["is_crowd"][..., None], 0.0, labels["boxes_yxyx"])
    size = config.rpn_batch_size
    sample, matched = sampling.sample_anchors(
        anchors,
        objects,
        image_sizes,
        replicas.uniform(tf.unstack(tf.shape(logits)), seed),
        size=size,
        positive_fraction=config.rpn_positive_fraction,
        positive_iou=config.rpn_positive_iou,
        negative_iou=config.rpn_negative_iou,
        straddle_threshold=config.rpn_straddle_threshold,
    )
    targets = boxes.encode(
        tf.gather(objects, matched, batch_dims=1),
        tf.gather(anchors, sample.indices),
        rpn.DELTA_WEIGHTS,
    )
    return {
        "rpn_score": losses.rpn_score_loss(
            tf.gather(logits, sample.indices, batch_dims=1), sample.positive, sample.valid, size
        ),
        "rpn_box": losses.rpn_box_loss(
            tf.gather(deltas, sample.indices, batch_dims=1), targets, sample.positive, size
        ),
    }


def _sample_rois(model, proposals, labels, seed) -> RoiSample:
    config = model.config
    crowd = labels["is_crowd"][..., None]
    objects = tf.where(crowd, 0.0, labels["boxes_yxyx"])
    crowds = tf.where(crowd, labels["boxes_yxyx"], 0.0)
    from_boxes = learns_from_boxes(config) or config.has_joint_scores
    masks_only = config.mode == "stage2_masks" and not from_boxes
    eligible = _has_mask(labels) if masks_only else labels["classes"] > 0
    candidates = tf.shape(proposals)[1] + tf.shape(objects)[1]
    sample, rois, matched = sampling.sample_rois(
        proposals,
        objects,
        eligible,
        crowds,
        replicas.uniform([tf.shape(proposals)[0], candidates], seed),
        size=config.roi_batch_size,
        positive_fraction=config.roi_positive_fraction,
        positive_iou=model.box_heads[0].positive_iou,
    )
    return RoiSample(rois, matched, sample.positive, sample.valid)


def _mask_examples(
    model, pyramid, sample: RoiSample, images, labels, seed, semantic: tf.Tensor | None = None
) -> MaskExamples:
    from_boxes, is_scored = learns_from_boxes(model.config), model.config.has_joint_scores
    has_mask = _has_mask(labels)
    usable = labels["classes"] > 0 if from_boxes else has_mask
    if model.config.mask_rois == "refined":
        sample = refined(model, pyramid, sample, labels, images["image_size"])
    if model.config.mask_rois == "ground_truth":
        chosen, valid = sampling.where_or_first(usable & ~labels["is_crowd"])  # [R, 2]
        rois, object_indices = tf.gather_nd(labels["boxes_yxyx"], chosen), chosen[:, 1]
        candidates = tf.shape(usable)  # [2]: images, RoIs of each
    else:
        matched = tf.gather(usable, sample.object_indices, batch_dims=1)
        seen = sample.valid if is_scored else sample.positive & matched
        chosen, valid = sampling.where_or_first(seen)  # [R, 2]
        rois = tf.gather_nd(sample.boxes_yxyx, chosen)
        object_indices = tf.gather_nd(sample.object_indices, chosen)
        candidates = tf.shape(sample.positive)
    rois = boxes.mask_windows(rois, model.config.mask_roi_scale)
    image_indices = chosen[:, 0]
    batch, most = tf.unstack(tf.shape(labels["classes"]))
    masks, size = labels["masks"], model.config.mask_size
    regions = model.conventions.mask_regions(rois)
    of_targets = (
        tf.reshape(masks, [batch * most, *masks.shape[2:]]),
        tf.reshape(labels["boxes_yxyx"], [-1, 4]),
        regions,
        image_indices * most + object_indices,
    )
    targets = mask_targets(*of_targets, size)
    places = tf.stack([image_indices, object_indices], axis=1)
    classes = tf.gather_nd(labels["classes"], places)
    features = model.mask_roi_features(pyramid, rois, image_indices, classes, semantic)
    weights = labels.get("mask_weight")
    if weights is not None:
        weights = tf.gather_nd(weights, places)
    examples = MaskExamples(features, classes, targets, valid, weights=weights)
    if is_scored:
        examples = examples._replace(
            scored=valid,
            class_logits=tf.gather_nd(model.class_logits(pyramid, sample.boxes_yxyx), chosen),
        )
        valid &= tf.gather_nd(sample.positive, chosen)
        examples = examples._replace(
            classes=tf.where(valid, classes, 0), valid=valid & tf.gather_nd(has_mask, places)
        )
    if model.point_head is not None:
        fine = model.fine_features(pyramid, rois, image_indices)
        random = tf.gather_nd(_point_draws(model.config, candidates, seed), chosen)
        examples = examples._replace(points=PointExamples(fine, random, *of_targets))
    if model.mask_iou_head is not None:
        examples = examples._replace(areas=object_areas(*of_targets, size))
    if not from_boxes:
        return examples
    cells = boxes.in_cells(tf.gather_nd(labels["boxes_yxyx"], places), regions, size)
    sizes = tf.gather(images["image_size"], image_indices)
    colors = roi_align.roi_align(
        tf.cast(images["image"], tf.float32),
        rois,
        image_indices,
        size,
        stride=1,
        half_pixel=model.conventions.half_pixel,
    )
    return examples._replace(
        valid=valid & tf.gather_nd(has_mask, places),
        boxes_yxyx=tf.where(valid[:, None], cells, 0.0),
        images_yxyx=boxes.in_cells(tf.concat([0.0 * sizes, sizes], axis=1), regions, size),
        colors=rgb_to_lab(colors),
    )


def _point_draws(config: Config, candidates: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Random points of each candidate RoI, float32 [B, S, draws, 2]; candidates int32 [2]: B, S."""
    batch, count = tf.unstack(candidates)
    draws = points.draws(point_count(config))
    drawn = replicas.uniform([batch, 2 * draws * count], tf.random.fold_in(seed, 1))
    return tf.reshape(drawn, [batch, count, draws, 2])


def _has_mask(labels) -> tf.Tensor:
    """The objects with a mask to train on, bool [B, M]; a mask of weight 0 is none."""
    if "mask_weight" not in labels:
        return labels["has_mask"]
    return labels["has_mask"] & (labels["mask_weight"] > 0)


def shares(
    values: Losses, terms: Sequence[losses.Term], step: tf.Tensor | None = None
) -> dict[str, tf.Tensor]:
    """This replica's part of each loss of the whole batch: its sum over replicas is that loss.

    A mean over RoIs is one over the RoIs of all replicas: it weighs a replica by its count.

    Args:
      values: {name: (value, count)} of this replica's images.
      terms: over what each is a mean, and its weight.
      step: int32 [], steps taken before this one; None: all warm-ups are over.

    Returns:
      {name: float []} in the order of `terms`.
    """
    count = tf.distribute.get_replica_context().num_replicas_in_sync
    counted = sorted({term.mean_over for term in terms} - {losses.IMAGES})
    totals = (
        tf.unstack(replicas.total(tf.stack([values[name][1] for name in counted])))
        if counted
        else []
    )
    of_replica = {
        name: values[name][1] / tf.maximum(total, 1.0)
        for name, total in zip(counted, totals, strict=True)
    }

    def share(term: losses.Term) -> tf.Tensor:
        value = values[term.name][0]
        if term.mean_over == losses.IMAGES:
            value = value / count
        else:
            value = value * of_replica[term.mean_over]
        if step is not None and term.warmup_steps:
            value *= tf.minimum(tf.cast(step + 1, tf.float32) / term.warmup_steps, 1.0)
        return value if term.weight == 1.0 else value * term.weight

    return {term.name: share(term) for term in terms}
