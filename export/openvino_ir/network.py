"""The whole detector as an OpenVINO graph: images to detections with masks.

TensorFlow's functions of the model do the arithmetic; `operations` does what takes TensorFlow's
operations long in OpenVINO, or fails there: top-k, NMS and RoIAlign. The number of classes costs as
little here as in `maskx_tf.layers.detections`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import openvino as ov
import tensorflow as tf
from openvino import opset15 as ops

from export.openvino_ir import operations
from export.openvino_ir.graph import apply, last_products, model
from export.openvino_ir.operations import in_order, rows, where
from maskx_tf.config import Config
from maskx_tf.data import preprocessing
from maskx_tf.inference.segmenter import expected_iou
from maskx_tf.layers import detections, mask_branches, roi_align
from maskx_tf.model import MaskXRCNN
from maskx_tf.ops import boxes


class Graph(NamedTuple):
    """A detector.

    Attributes:
      model: images uint8 [B, H, W, 3] of one size -> the outputs of `DetectionModule` but the class
        names, for any B, H and W.
      prompts: images and boxes_yxyx float32 [B, N, 4] in their pixels, N >= 1, with classes int32
        [B, N], 0 for the likeliest -> the same outputs, D = N in the order of the boxes.
      last_layers: names of the products that logits, box deltas and mask logits are made of.
    """

    model: ov.Model
    prompts: ov.Model
    last_layers: list[str]


class _Frame(NamedTuple):
    """Where the images of a batch are on their canvas."""

    image_size: ov.Output  # int32 [B, 2] (height, width) before resizing
    size: ov.Output  # float32 [B, 2], of the valid part of the canvas
    scale: ov.Output  # float32 [B, 2], network-input pixels per original pixel


class _Level(NamedTuple):
    """A level of the pyramid."""

    features: ov.Output  # [B, C, H, W]
    logits: ov.Output  # [B, N]; -inf of anchors that must not become proposals
    deltas: ov.Output  # [B, N, 4]
    anchors_yxyx: ov.Output  # [N, 4]


class _Detected(NamedTuple):
    """The best boxes of each image; zeros as padding."""

    boxes_yxyx: ov.Output  # float32 [B, D, 4], network-input pixels
    scores: ov.Output  # float32 [B, D]
    classes: ov.Output  # int32 [B, D]


class _Builder:
    """What the steps of `detector` share."""

    def __init__(self, network: MaskXRCNN, config: Config):
        self.network, self.config = network, config
        self.conventions, self.rpn = network.conventions, network.rpn
        self.last_layers: list[str] = []

    def end_at(self, *values: ov.Output) -> None:
        """Remembers the layers that values come out of."""
        for value in values:
            self.last_layers += last_products(value)

    def features(self, images: ov.Output) -> tuple[_Frame, dict[int, _Level]]:
        """Backbone, FPN and the heads of the RPN."""
        levels = range(self.network.fpn.backbone_levels[0], self.config.max_level + 1)

        def run(images):
            count = tf.shape(images)[0]
            # The images of a batch are of one size: resized together, as channels.
            height, width = tf.unstack(tf.shape(images)[1:3])
            as_channels = tf.reshape(tf.transpose(images, [1, 2, 0, 3]), [height, width, 3 * count])
            sides = self.config.image_min_side, self.config.image_max_side
            canvas, size, scale = preprocessing.resize_and_pad(as_channels, *sides)
            canvas_size = tf.shape(canvas)[:2]
            canvas = tf.reshape(canvas, tf.concat([canvas_size, [count, 3]], axis=0))
            size, scale = (tf.tile(value[None], [count, 1]) for value in (size, scale))
            pyramid = self.network.pyramid(tf.transpose(canvas, [2, 0, 1, 3]), size)
            found = [tf.tile(tf.shape(images)[None, 1:3], [count, 1]), size, scale, canvas_size]
            for level, outputs in self.rpn(pyramid).items():
                found.append(tf.transpose(pyramid[level], [0, 3, 1, 2]))
                found += [outputs["logits"], outputs["deltas"]]
            return found

        image_size, size, scale, canvas_size, *of_levels = apply("features", run, images)
        features, logits, deltas = (of_levels[start::3] for start in range(3))
        self.end_at(*logits, *deltas)

        def place(canvas_size, size, *logits):
            # Anchors follow from the canvas: where two levels' follow from their feature maps,
            # OpenVINO 2026.4 takes one for the other.
            limits = self.conventions.proposal_limits(size)
            eligible, anchors = [], []
            for level, values in zip(levels, logits, strict=True):
                height, width = tf.unstack((canvas_size + 2**level - 1) // 2**level)
                anchors.append(self.rpn.anchors_yxyx(level, height, width))
                eligible.append(self.rpn.eligible(level, values, anchors[-1], limits))
            return eligible + anchors

        placed = apply("anchors", place, canvas_size, size, *logits)
        logits, anchors = placed[: len(levels)], placed[len(levels) :]
        found = map(_Level, features, logits, deltas, anchors)
        return _Frame(image_size, size, scale), dict(zip(levels, found, strict=True))

    def proposals(self, levels: dict[int, _Level], size) -> tuple[ov.Output, ov.Output]:
        """RoIs [B, P, 4] in any order and whether each is one, bool [B, P]; as `RPN.propose`."""
        best = []
        for level in levels.values():
            places = operations.places_of_largest(level.logits, self.config.rpn_pre_nms_test)
            best += [operations.take(value, places) for value in (level.logits, level.deltas)]
            best.append(rows(level.anchors_yxyx, places))

        def decode(size, *best):
            limits, found = self.conventions.proposal_limits(size), []
            for start in range(0, len(best), 3):
                logits, deltas, corners = best[start : start + 3]
                candidates, scores = self.rpn.decode(logits, deltas, corners, limits)
                found += [candidates, tf.maximum(scores, operations.LOWEST)]
            return found

        decoded = apply("proposals", decode, size, *best)
        candidates = decoded[::2]
        scores = [
            operations.suppress(of_level, scores, self.rpn.nms_threshold, operations.LOWEST)
            for of_level, scores in zip(candidates, decoded[1::2], strict=True)
        ]
        every_score = ops.concat(scores, 1).output(0)
        places = operations.places_of_largest(every_score, self.config.rpn_post_nms_test)

        def validate(scores, rois):
            is_valid = scores > operations.LOWEST
            return tf.where(is_valid[..., None], rois, 0.0), is_valid

        rois = operations.take(ops.concat(candidates, 1).output(0), places)
        rois, valid = apply("rois", validate, operations.take(every_score, places), rois)
        return rois, valid

    def roi_features(
        self, name: str, levels: dict[int, _Level], rois, image_indices, size: int
    ) -> tuple[ov.Output, ov.Output]:
        """RoIAlign of RoIs [N, 4] -> [N, C, S, S] level by level, and the RoI of each, int32 [N].

        They stay in this order: to sort features takes longer than to sort what is made of them.
        """
        used = self.network.fpn.backbone_levels
        to_last_pixel = not (self.conventions.half_pixel or self.conventions.to_corner)
        canonical = self.config.roi_canonical_size
        (assigned,) = apply(
            f"{name}/levels",
            lambda rois: roi_align.assign_levels(rois, used[0], used[-1], canonical),
            rois,
        )
        crops, order = [], []
        for level in used:
            order.append(operations.where_equal(assigned, level))
            crops.append(
                operations.roi_align(
                    levels[level].features,
                    rows(rois, order[-1]),
                    rows(image_indices, order[-1]),
                    size,
                    2**level,
                    self.conventions.half_pixel,
                    to_last_pixel,
                )
            )
        return ops.concat(crops, 0).output(0), ops.concat(order, 0).output(0)

    def detections(self, levels: dict[int, _Level], rois, valid, frame: _Frame) -> _Detected:
        """As `box_detections.of_rois`, of RoIs of `proposals`."""
        head, logits = self.network.box_heads[-1], []
        for stage in self.network.box_heads:

            def see(crops, stage=stage):
                features = stage(_channels_last(crops))
                return features, stage.class_logits(features)

            flat, image_indices = apply(f"{stage.name}/flatten", _flatten, rois)
            size = self.config.box_roi_size
            crops, order = self.roi_features(stage.name, levels, flat, image_indices, size)
            seen = apply(stage.name, see, crops)
            self.end_at(seen[1])
            features, stage_logits = (in_order(values, order) for values in seen)
            logits.append(stage_logits)
            if stage is not head:
                moved = (features, stage_logits, rois, frame.size)
                (rois,) = apply(f"{stage.name}/refine", stage.refine, *moved)
                self.end_at(rois)
        groups = [self.select(group, features, logits, rois, valid, frame) for group in head.groups]
        found, most = groups[0], self.config.max_detections
        if len(groups) > 1:
            every = [ops.concat(list(values), 1).output(0) for values in zip(*groups, strict=True)]
            _, order = operations.largest(_Detected(*every).scores, most)
            found = _Detected(*(operations.take(values, order) for values in every))
        return _Detected(
            operations.with_sides(found.boxes_yxyx, most, 4),
            operations.with_sides(found.scores, most),
            operations.with_sides(found.classes, most),
        )

    def select(
        self, group: range, features, stage_logits: Sequence[ov.Output], rois, valid, frame: _Frame
    ) -> _Detected:
        """The best of a group of classes; as `detections.select_detections`."""
        head, conventions, config = self.network.box_heads[-1], self.conventions, self.config
        num_classes, name = len(group), f"classes{group.start}"
        most = config.max_detections // len(head.groups)

        def score(features, valid, *stages):
            logits = detections.mean_logits(stages)[:, : group.stop]
            scores = detections.pair_scores(logits, tf.reshape(valid, [-1]), group.start)
            by_image = tf.shape(valid)
            features = tf.reshape(features, tf.concat([by_image, [head.units]], axis=0))
            return tf.reshape(scores, [by_image[0], -1]), features

        scores, features = apply(f"{name}/scores", score, features, valid, *stage_logits)
        candidates = max(config.nms_candidates // len(head.groups), 1)
        scores, pairs = operations.largest(scores, candidates)
        proposals = operations.divide(pairs, num_classes)

        def decode(pairs, scores, features, rois, size, scale):
            classes = pairs % num_classes + group.start
            if conventions.decode_in_original:
                rois, size = boxes.to_original(rois, scale), tf.round(size / scale)
            decoded = head.decode(
                tf.reshape(features, [-1, head.units]),
                tf.reshape(classes, [-1]),
                tf.reshape(rois, [-1, 4]),
            )
            decoded = tf.reshape(decoded, tf.shape(rois))
            decoded, scores, apart = detections.candidate_boxes(
                decoded, classes, scores, size, conventions
            )
            return decoded, scores, classes, apart

        of_pairs = (operations.take(value, proposals) for value in (features, rois))
        decoded, scores, classes, apart = apply(
            f"{name}/decode", decode, pairs, scores, *of_pairs, frame.size, frame.scale
        )
        threshold = conventions.nms_threshold(config.nms_iou)
        kept = operations.suppress(apart, scores, threshold, config.score_threshold)
        scores, best = operations.largest(kept, most)

        def pad(decoded, scores, classes, scale):
            present = scores > operations.LOWEST
            if conventions.decode_in_original:
                decoded *= tf.tile(scale, [1, 2])[:, None]
            padding = [[0, 0], [0, most - tf.shape(scores)[1]]]
            return (
                tf.pad(tf.where(present[..., None], decoded, 0.0), [*padding, [0, 0]]),
                tf.pad(tf.where(present, scores, 0.0), padding),
                tf.pad(tf.where(present, classes, 0), padding),
            )

        chosen = (operations.take(decoded, best), scores, operations.take(classes, best))
        return _Detected(*apply(f"{name}/detections", pad, *chosen, frame.scale))

    def likeliest_classes(self, levels: dict[int, _Level], boxes_yxyx) -> ov.Output:
        """As `MaskXRCNN.likeliest_classes`, of boxes [B, N, 4]."""
        flat, image_indices = apply("prompts/flatten", _flatten, boxes_yxyx)
        size = self.config.box_roi_size
        crops, order = self.roi_features("prompts", levels, flat, image_indices, size)

        def choose(crops):
            features, heads = _channels_last(crops), self.network.box_heads
            logits = detections.mean_logits([head.class_logits(head(features)) for head in heads])
            return tf.argmax(logits[:, 1:], axis=-1, output_type=tf.int32) + 1

        (classes,) = apply("prompts/classes", choose, crops)
        by_image = lambda classes, boxes: tf.reshape(classes, tf.shape(boxes)[:2])  # noqa: E731
        classes = in_order(classes, order)
        return apply("prompts/by_image", by_image, classes, boxes_yxyx)[0]

    def masks(self, levels: dict[int, _Level], boxes_yxyx, classes, scale) -> ov.Output:
        """Mask probabilities [B, N, m, m] of boxes [B, N, 4] and classes; 0 in the padding."""
        config, network = self.config, self.network

        def windows(boxes_yxyx, classes, scale):
            batch, count = tf.unstack(tf.shape(classes))
            rois = tf.reshape(network.mask_rois(boxes_yxyx, scale), [-1, 4])
            flat = tf.reshape(classes, [-1])
            # OpenVINO does not take all operations without a RoI: the first is always there.
            drawn = (flat > 0) | (tf.range(batch * count) == 0)
            empty = tf.zeros([batch * count, config.mask_size, config.mask_size])
            return rois, flat, tf.repeat(tf.range(batch), count), drawn, empty

        rois, flat, image_indices, drawn, masks = apply(
            "mask_rois", windows, boxes_yxyx, classes, scale
        )
        places = where(drawn)  # [R]
        rois, of_boxes, image_indices = (
            rows(value, places) for value in (rois, flat, image_indices)
        )
        crops, order = self.roi_features(
            "mask_head", levels, rois, image_indices, config.mask_roi_size
        )
        seen = []
        if "cam" in config.mask_branches:
            seen = [self.roi_features("cam", levels, rois, image_indices, config.box_roi_size)[0]]

        def draw(crops, classes, *seen):
            features = _channels_last(crops)
            for crops in seen:
                head = network.box_heads[-1]
                activations = head.class_activations(_channels_last(crops), classes)
                prior = mask_branches.class_prior(activations, config.mask_roi_size)
                features += prior[..., None]
            probabilities = tf.sigmoid(network.mask_logits(features, classes))
            return tf.where((classes > 0)[:, None, None], probabilities, 0.0)

        (drawn,) = apply("mask_head", draw, crops, rows(of_boxes, order), *seen)
        self.end_at(drawn)
        masks = operations.put(masks, rows(places, order), drawn)

        def by_image(masks, classes):
            sides = [config.mask_size, config.mask_size]
            return tf.reshape(masks, tf.concat([tf.shape(classes), sides], axis=0))

        return apply("masks", by_image, masks, classes)[0]

    def outputs(
        self, frame: _Frame, found: _Detected, masks, mask_seen: Sequence[bool]
    ) -> dict[str, ov.Output]:
        """The outputs by name; as the end of `DetectionModule`."""
        names = ["detection_masks", "num_detections", "detection_boxes", "detection_mask_seen"]
        if self.config.mask_roi_scale > 1.0:
            names.append("detection_mask_windows")

        def run(masks, image_size, scale, boxes_yxyx, classes):
            masks = tf.cast(tf.round(255 * masks), tf.uint8)
            limits = tf.cast(tf.tile(image_size, [1, 2]), tf.float32)[:, None]  # [B, 1, 4]
            boxes_yxyx = boxes_yxyx / tf.tile(scale, [1, 2])[:, None]
            boxes_yxyx = tf.clip_by_value(boxes_yxyx, 0.0, limits)
            count = tf.reduce_sum(tf.cast(classes > 0, tf.int32), axis=1)
            seen = tf.gather(tf.constant(mask_seen), classes)
            windows = boxes.mask_windows(boxes_yxyx, self.config.mask_roi_scale)
            return [masks, count, boxes_yxyx, seen, windows][: len(names)]

        of_boxes = (frame.image_size, frame.scale, found.boxes_yxyx, found.classes)
        return dict(zip(names, apply("outputs", run, masks, *of_boxes), strict=True)) | {
            "detection_scores": found.scores,
            "detection_classes": found.classes,
            "image_size": frame.image_size,
        }


def detector(network: MaskXRCNN, config: Config, mask_seen: Sequence[bool]) -> Graph:
    """The graphs of a model, which share what they have in common.

    Args:
      network: its T folded into a table (`folding.fold`), its convolutions direct.
      config: its options.
      mask_seen: of each class, background first: whether it is one of set A.
    """
    builder = _Builder(network, config)
    images = ops.parameter([-1, -1, -1, 3], ov.Type.u8, name="images")
    frame, levels = builder.features(images.output(0))
    rois, valid = builder.proposals(levels, frame.size)
    found = builder.detections(levels, rois, valid, frame)
    masks = builder.masks(levels, found.boxes_yxyx, found.classes, frame.scale)
    outputs = builder.outputs(frame, found, masks, mask_seen)
    count, side = config.max_detections, config.mask_size
    shapes = {"detection_boxes": (count, 4), "detection_masks": (count, side, side)}
    for name, sides in (shapes | {"detection_mask_windows": (count, 4)}).items():
        if name in outputs:
            outputs[name] = operations.with_sides(outputs[name], *sides)
    last_layers = list(builder.last_layers)

    boxes_yxyx = ops.parameter([-1, -1, 4], ov.Type.f32, name="boxes")
    classes = ops.parameter([-1, -1], ov.Type.i32, name="classes")

    def place(boxes_yxyx, image_size, scale):
        limits = tf.cast(tf.tile(image_size, [1, 2]), tf.float32)[:, None]  # [B, 1, 4]
        return tf.clip_by_value(boxes_yxyx, 0.0, limits) * tf.tile(scale, [1, 2])[:, None]

    (given,) = apply("prompts", place, boxes_yxyx.output(0), frame.image_size, frame.scale)
    likeliest = builder.likeliest_classes(levels, given)

    def choose(classes, likeliest):
        return tf.where(classes > 0, classes, likeliest)

    (chosen,) = apply("prompts/chosen", choose, classes.output(0), likeliest)
    masks = builder.masks(levels, given, chosen, frame.scale)
    score = lambda masks: tf.cast(expected_iou(masks), tf.float32)  # noqa: E731
    found = _Detected(given, apply("prompts/scores", score, masks)[0], chosen)
    prompted = builder.outputs(frame, found, masks, mask_seen)
    return Graph(
        model(outputs, [images], "maskx"),
        model(prompted, [images, boxes_yxyx, classes], "maskx_box_prompts"),
        last_layers,
    )


def _flatten(rois: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """RoIs [B, N, 4] as [B * N, 4], and the image of each."""
    batch, count = tf.unstack(tf.shape(rois)[:2])
    return tf.reshape(rois, [-1, 4]), tf.repeat(tf.range(batch), count)


def _channels_last(roi_features: tf.Tensor) -> tf.Tensor:
    return tf.transpose(roi_features, [0, 2, 3, 1])
