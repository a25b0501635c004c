"""Detectron's conventions, piece by piece, against plain NumPy; ours stay as they were."""

import numpy as np
import pytest
import tensorflow as tf

from maskx_tf import objective
from maskx_tf.assembly import build_model
from maskx_tf.layers import detections, roi_align
from maskx_tf.layers.rpn import RPN
from maskx_tf.ops import anchors, boxes, masks
from maskx_tf.ops.conventions import CONVENTIONS
from maskx_tf.ops.mask_targets import mask_targets
from tests import batches, detectron_reference

ALIGNED, DETECTRON = CONVENTIONS["aligned"], CONVENTIONS["detectron"]
YXYX = [1, 0, 3, 2]
LAST_PIXEL = np.array([0, 0, 1, 1])  # from inclusive corners to exclusive ones


def to_inclusive(boxes_yxyx):
    """Exclusive yxyx to Detectron's inclusive xyxy."""
    return np.asarray(boxes_yxyx)[..., YXYX] - LAST_PIXEL


def to_exclusive(boxes_xyxy):
    return (np.asarray(boxes_xyxy) + LAST_PIXEL)[..., YXYX].astype(np.float32)


def random_boxes(rng, count, side):
    corners = np.sort(rng.uniform(-0.2 * side, 1.2 * side, (count, 2, 2)), axis=1)
    return corners.reshape(count, 4).astype(np.float32)


@pytest.mark.parametrize("stride", [4, 8, 16, 32, 64])
def test_anchors_are_the_rounded_ones(stride):
    ours = anchors.level_anchors(1, 1, stride, 8.0, (0.5, 1.0, 2.0), rounding="sides")
    theirs = detectron_reference.cell_anchors(stride)
    np.testing.assert_array_equal(to_inclusive(ours), theirs)
    plain = anchors.level_anchors(1, 1, stride, 8.0, (0.5, 1.0, 2.0))
    np.testing.assert_allclose(boxes.area(plain), (8 * stride) ** 2, rtol=1e-5)


def test_clipping_keeps_a_pixel():
    given = random_boxes(np.random.default_rng(0), 200, 100)
    given[:, 2:] += 1  # none is thinner itself
    ours = boxes.clip(tf.constant(given), tf.constant([80.0, 120.0]), keep_border_pixel=True)
    theirs = detectron_reference.clip(to_inclusive(given), 80, 120)
    np.testing.assert_allclose(to_inclusive(ours), theirs, atol=1e-4)
    assert np.min(boxes.area(ours)) >= 1 - 1e-4
    assert np.min(boxes.area(boxes.clip(tf.constant(given), tf.constant([80.0, 120.0])))) == 0


def test_rescaling_scales_first_and_last_pixel():
    given = random_boxes(np.random.default_rng(1), 20, 100)
    scales = np.array([[1.6, 2.5]], np.float32)
    ours = boxes.to_original(tf.constant(given[None]), tf.constant(scales))[0]
    theirs = to_inclusive(given) / scales[0, [1, 0, 1, 0]]
    np.testing.assert_allclose(to_inclusive(ours), theirs, atol=1e-4)


def test_decoding_is_the_same_in_both():
    rng = np.random.default_rng(2)
    given, deltas = random_boxes(rng, 50, 100), rng.normal(0, 2, (50, 4)).astype(np.float32)
    ours = boxes.decode(deltas, given, (10.0, 10.0, 5.0, 5.0))
    theirs = detectron_reference.decode(to_inclusive(given), deltas[:, YXYX], (10, 10, 5, 5))
    np.testing.assert_allclose(to_inclusive(ours), theirs[:, 0], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("size", "stride"), [(7, 4), (14, 16)])
def test_roi_align_without_half_pixels(size, stride):
    rng = np.random.default_rng(3)
    features = rng.normal(size=(1, 12, 16, 5)).astype(np.float32)
    given = random_boxes(rng, 40, 12 * stride)
    given[0] = (5, 5, 6, 6)  # one pixel: takes a cell all the same
    images = tf.zeros([40], tf.int32)
    ours = roi_align.roi_align(tf.constant(features), given, images, size, stride, half_pixel=False)
    theirs = detectron_reference.roi_align(
        np.moveaxis(features[0], -1, 0), to_inclusive(given), size, stride
    )
    np.testing.assert_allclose(np.moveaxis(ours, -1, 1), theirs, atol=1e-4)


def test_nms_at_exactly_the_threshold():
    def count(conventions):
        found = detections.select_detections(
            tf.constant([[0.0, 5.0], [0.0, 4.0]]),
            tf.constant([[0.0, 0, 10, 10], [0, 0, 10, 5]]),  # IoU 0.5
            tf.constant([True, True]),
            tf.constant([20.0, 20.0]),
            lambda indices, _: tf.gather([[0.0, 0, 10, 10], [0, 0, 10, 5]], indices),
            score_threshold=0.1,
            nms_iou=0.5,
            candidates=4,
            max_detections=4,
            conventions=conventions,
        )
        return int(found["num_detections"])

    assert (count(ALIGNED), count(DETECTRON)) == (2, 1)


def test_proposals_reach_into_the_padding():
    sizes = tf.constant([[70.0, 64.0], [1.0, 96.0]])
    np.testing.assert_array_equal(DETECTRON.proposal_limits(sizes), [[96, 64], [32, 96]])
    np.testing.assert_array_equal(ALIGNED.proposal_limits(sizes), sizes)


def test_a_larger_canvas_proposes_the_same():
    """What lies beyond the image's own padding comes from other images of a batch."""
    layer = RPN(4, 8.0, (0.5, 1.0, 2.0), 0.5, 0.7, "detectron")
    rng = np.random.default_rng(4)
    pyramid = {
        level: rng.normal(size=(1, 2 ** (8 - level), 2 ** (8 - level), 3)) for level in (5, 6)
    }
    layer({level: tf.zeros([1, 1, 1, 3]) for level in (5, 6)})
    for part in (layer.conv, layer.objectness, layer.deltas):
        part.set_weights([rng.normal(0, 0.3, v.shape) for v in part.get_weights()])
    outputs = layer({level: tf.constant(value, tf.float32) for level, value in pyramid.items()})
    limits = tf.constant([[96.0, 160.0]])
    proposals, scores = layer.propose(outputs, limits, 500, 500)
    cut = {}
    for level, output in outputs.items():
        side, (rows, columns) = 2 ** (8 - level), -(-np.array([96, 160]) // 2**level)
        kept = np.arange(side * side * 3).reshape(side, side, 3)[:rows, :columns].ravel()
        cut[level] = {
            "logits": tf.gather(output["logits"], kept, axis=1),
            "deltas": tf.gather(output["deltas"], kept, axis=1),
            "anchors_yxyx": tf.gather(output["anchors_yxyx"], kept),
        }
    wanted, wanted_scores = layer.propose(cut, limits, 500, 500)
    np.testing.assert_array_equal(scores, wanted_scores)
    np.testing.assert_allclose(proposals, wanted, atol=1e-4)


@pytest.mark.parametrize("seed", range(30))
def test_pasting_into_whole_pixels(seed):
    rng = np.random.default_rng(seed)
    mask = rng.uniform(size=(4, 4)).repeat(7, axis=0).repeat(7, axis=1).astype(np.float32)
    box = random_boxes(rng, 1, 60)[0]
    region, top, left = masks.paste_region(mask, box, 50, 70, whole_pixels=True)
    ours = np.zeros([50, 70], bool)
    ours[top : top + region.shape[0], left : left + region.shape[1]] = region
    theirs = detectron_reference.paste(mask, to_inclusive(box), 50, 70)
    assert np.count_nonzero(ours != theirs) <= 1  # a value next to the threshold


def test_the_mask_of_a_roi_reaches_to_its_last_pixel():
    rois = tf.constant([[10.0, 20, 39, 61], [5, 5, 5.5, 5.5]])
    wanted = [[10, 20, 38, 60], [5, 5, 6, 6]]
    np.testing.assert_array_equal(DETECTRON.mask_regions(rois), wanted)
    np.testing.assert_array_equal(ALIGNED.mask_regions(rois), rois)


def test_training_in_their_conventions():
    tf.config.experimental.enable_op_determinism()
    losses = {}
    for name in CONVENTIONS:
        model = build_model(batches.tiny_config(conventions=name), batches.NUM_CLASSES)
        labels = batches.to_tensors(batches.random_labels())
        found = objective.training_losses(
            model, batches.random_features(), labels, tf.constant([1, 2])
        )
        losses[name] = {key: float(value) for key, (value, _) in found.items()}
    assert all(np.isfinite(list(values.values())).all() for values in losses.values())
    assert losses["aligned"] != losses["detectron"]


def test_mask_targets_are_those_of_the_part_that_a_mask_reaches_over(monkeypatch):
    seen = {}

    def targets(masks, mask_boxes, rois, *rest):
        seen["targets"] = rois
        return mask_targets(masks, mask_boxes, rois, *rest)

    def features(pyramid, rois, images, size, operator):
        if size == model.config.mask_roi_size:
            seen["features"] = rois
        return type(model).flat_roi_features(model, pyramid, rois, images, size, operator)

    model = build_model(batches.tiny_config(conventions="detectron"), batches.NUM_CLASSES)
    monkeypatch.setattr(objective, "mask_targets", targets)
    monkeypatch.setattr(model, "flat_roi_features", features)
    labels = batches.to_tensors(batches.random_labels())
    objective.training_losses(model, batches.random_features(), labels, tf.constant([1, 2]))
    assert len(seen["features"]) > 3
    np.testing.assert_array_equal(seen["targets"], DETECTRON.mask_regions(seen["features"]))
