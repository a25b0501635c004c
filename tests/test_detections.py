"""Detections against a plain implementation: decode everything, NMS class by class, best of all."""

import numpy as np
import pytest
import tensorflow as tf

from maskx_tf.layers import detections
from tests import batches, oracles

IMAGE_SIZE = (480.0, 640.0)


def plain_detections(logits, boxes, valid, threshold, nms_iou, most):
    """[(score, class, box)] by falling score. boxes: [P, K + 1, 4], decoded, not clipped."""
    scores = oracles.softmax(logits.astype(np.float64))
    boxes = np.clip(boxes, 0, [*IMAGE_SIZE, *IMAGE_SIZE])
    found = []
    for class_id in range(1, logits.shape[1]):
        areas = np.prod(boxes[:, class_id, 2:] - boxes[:, class_id, :2], axis=1)
        rows = np.flatnonzero((scores[:, class_id] > threshold) & valid & (areas > 0))
        chosen, chosen_scores = boxes[rows, class_id], scores[rows, class_id]
        for i in oracles.greedy_nms(chosen, chosen_scores, nms_iou):
            found.append((chosen_scores[i], class_id, chosen[i]))
    return sorted(found, key=lambda item: -item[0])[:most]


def make_case(num_classes, seed=0):
    """Logits [P, K + 1] and boxes [P, K + 1, 4]: clusters of overlapping boxes."""
    rng = np.random.default_rng(seed)
    count = 60
    centres = rng.uniform(100, 400, (8, 2))[rng.integers(0, 8, count)]
    size = rng.uniform(12, 40, (count, 2))
    proposals = np.concatenate([centres - size / 2, centres + size / 2], axis=1)
    boxes = proposals[:, None] + rng.normal(0, 3, (count, num_classes + 1, 4))
    logits = rng.normal(0, 1, (count, num_classes + 1))
    for row in range(count):  # a few classes stand out in each row
        logits[row, 1 + rng.integers(0, num_classes, 6)] += np.log(num_classes) + 2
    # The last classes lie furthest from the origin of the class grid.
    logits[:, num_classes - 2 :] += np.log(num_classes) + 1
    return logits.astype(np.float32), proposals.astype(np.float32), boxes.astype(np.float32)


def select(logits, proposals, boxes, valid=None, **changes):
    options = {"score_threshold": 0.03, "nms_iou": 0.5, "candidates": 1000, "max_detections": 100}
    table = tf.constant(boxes)
    valid = np.ones(len(logits), bool) if valid is None else valid

    def decode(indices, classes):
        return tf.gather_nd(table, tf.stack([indices, classes], axis=1))

    return detections.select_detections(
        tf.constant(logits),
        tf.constant(proposals),
        tf.constant(valid),
        tf.constant(IMAGE_SIZE),
        decode,
        **options | changes,
    )


def assert_same(found, wanted):
    count = len(wanted)
    assert found["num_detections"] == count
    scores, classes, boxes = zip(*wanted, strict=True) if wanted else ([], [], np.zeros([0, 4]))
    np.testing.assert_array_equal(found["detection_classes"][:count], classes)
    np.testing.assert_allclose(found["detection_scores"][:count], scores, atol=1e-6)
    np.testing.assert_allclose(found["detection_boxes"][:count], boxes, atol=1e-3)
    for name in ("detection_classes", "detection_scores", "detection_boxes"):
        np.testing.assert_array_equal(found[name][count:], 0)


@pytest.mark.parametrize(("num_classes", "seed"), [(5, 0), (5, 1), (3000, 0), (3000, 1), (3000, 2)])
def test_equal_a_plain_nms_per_class(num_classes, seed):
    logits, proposals, boxes = make_case(num_classes, seed)
    wanted = plain_detections(logits, boxes, np.ones(60, bool), 0.03, 0.5, most=100)
    everything = np.sum(oracles.softmax(logits)[:, 1:] > 0.03)
    assert 40 < len(wanted) < everything < 1000  # NMS removes some
    assert_same(select(logits, proposals, boxes), wanted)


def test_boxes_of_other_classes_do_not_touch_even_in_a_grid_of_3000():
    """Equal boxes of all classes survive; at the far corner an offset would round them away."""
    logits = np.zeros([2, 3001], np.float32)
    box = [100.3, 200.7, 104.1, 204.9]
    boxes = np.tile(np.float32(box), [2, 3001, 1])
    found = select(
        logits, boxes[:, 0], boxes, score_threshold=0.0, candidates=6000, max_detections=6000
    )
    assert found["num_detections"] == 3000  # the two RoIs of each class are one box
    assert sorted(found["detection_classes"].numpy()[:3000]) == list(range(1, 3001))


@pytest.mark.parametrize("class_id", [1, 64, 2999, 3000])
def test_overlap_is_judged_alike_for_every_class(class_id):
    """Pairs of 6-pixel boxes that overlap by IoU 0.52 and 0.48: one stays, both stay."""
    rng = np.random.default_rng(0)
    logits = np.full([2, 3001], -20, np.float32)
    logits[:, class_id] = [1.0, 0.5]
    for overlap, stay in ((0.52, 1), (0.48, 2)) * 20:
        y, x = rng.uniform([400, 500], [460, 620])
        box = np.array([y, x, y + 6, x + 6])
        boxes = np.stack([box, box + [0, 1, 0, 1] * np.array(6 * (1 - overlap) / (1 + overlap))])
        boxes = np.tile(boxes[:, None].astype(np.float32), [1, 3001, 1])
        assert select(logits, boxes[:, 0], boxes)["num_detections"] == stay


def test_only_the_best_candidates_reach_the_nms():
    logits, proposals, boxes = make_case(5)
    pairs = np.sort(oracles.softmax(logits)[:, 1:].ravel())[::-1]
    threshold = float((pairs[19] + pairs[20]) / 2)
    few = select(logits, proposals, boxes, candidates=20)
    assert_same(few, plain_detections(logits, boxes, np.ones(60, bool), threshold, 0.5, 100))


def test_the_best_of_all_classes_are_kept():
    logits, proposals, boxes = make_case(5)
    wanted = plain_detections(logits, boxes, np.ones(60, bool), 0.03, 0.5, most=7)
    assert_same(select(logits, proposals, boxes, max_detections=7), wanted)


def test_padding_is_never_detected():
    logits, proposals, boxes = make_case(5)
    valid = np.arange(60) % 3 > 0
    wanted = plain_detections(logits, boxes, valid, 0.03, 0.5, most=100)
    assert_same(select(logits, proposals, boxes, valid=valid), wanted)
    nothing = select(logits, proposals, boxes, valid=np.zeros(60, bool), score_threshold=0.0)
    assert_same(nothing, [])


def test_nothing_over_the_threshold_is_all_zeros():
    logits, proposals, boxes = make_case(5)
    assert_same(select(logits, proposals, boxes, score_threshold=0.999), [])


def test_boxes_clipped_to_nothing_are_left_out():
    logits = np.tile(np.float32([[0, 5]]), [3, 1])
    boxes = np.float32([[10, 10, 20, 20], [500, 10, 520, 20], [470, 650, 475, 660]])
    boxes = np.tile(boxes[:, None], [1, 2, 1])
    found = select(logits, boxes[:, 0], boxes, score_threshold=0.0)
    assert found["num_detections"] == 1
    np.testing.assert_array_equal(found["detection_boxes"][0], [10, 10, 20, 20])


def test_more_candidates_than_pairs():
    rng = np.random.default_rng(0)
    boxes = np.tile(batches.random_boxes(rng, 3, 400)[:, None], [1, 3, 1])
    logits = rng.normal(0, 1, (3, 3)).astype(np.float32)
    wanted = plain_detections(logits, boxes, np.ones(3, bool), 0.03, 0.5, most=100)
    assert_same(select(logits, boxes[:, 0], boxes), wanted)
