"""The region proposal network: anchors, clipping, and its proposals against a plain NMS."""

import numpy as np
import pytest
import tensorflow as tf

from maskx_tf.layers.rpn import RPN
from tests import oracles

RATIOS = (0.5, 1.0, 2.0)
WEIGHTS = (1.0, 1.0, 1.0, 1.0)


@pytest.fixture(scope="module")
def rpn():
    return RPN(8, anchor_size=4.0, anchor_ratios=RATIOS, anchor_offset=0.5, nms_iou=0.6)


@pytest.fixture(scope="module")
def outputs():
    """Random logits and deltas over the anchors of two levels, two images of 64 x 96 pixels."""
    rng = np.random.default_rng(0)
    layer = RPN(8, 4.0, RATIOS, 0.5, 0.6)
    pyramid = {level: tf.zeros([2, 64 >> level, 96 >> level, 4]) for level in (3, 4)}
    result = layer(pyramid)
    for output in result.values():
        shape = output["deltas"].shape
        output["logits"] = tf.constant(rng.normal(0, 3, shape[:2]), tf.float32)
        output["deltas"] = tf.constant(rng.normal(0, 0.4, shape), tf.float32)
    return result


def plain_proposals(outputs, image, size, pre_nms, post_nms, threshold):
    """Per level: best, decode, clip, drop the empty, greedy NMS; then the best over the levels."""
    found = []
    for output in outputs.values():
        logits = output["logits"][image].numpy()
        best = np.argsort(-logits, kind="stable")[:pre_nms]
        boxes = [
            oracles.decode(output["deltas"][image, i], output["anchors_yxyx"][i], WEIGHTS)
            for i in best
        ]
        boxes = np.clip(boxes, 0, [*size, *size])
        keep = [i for i, b in enumerate(boxes) if b[2] > b[0] and b[3] > b[1]]
        boxes, scores = boxes[keep], logits[best][keep]
        for i in oracles.greedy_nms(boxes, scores, threshold):
            found.append((scores[i], boxes[i]))
    found.sort(key=lambda item: -item[0])
    found = found[:post_nms]
    return np.array([b for _, b in found]), np.array([s for s, _ in found])


@pytest.mark.parametrize(("pre_nms", "post_nms"), [(300, 500), (60, 500), (60, 20)])
def test_proposals_are_those_of_a_plain_nms(rpn, outputs, pre_nms, post_nms):
    sizes = [[64, 96], [50, 70]]
    proposals, scores = rpn.propose(outputs, tf.constant(sizes, tf.float32), pre_nms, post_nms)
    assert proposals.shape == (2, post_nms, 4) and scores.shape == (2, post_nms)
    for image in range(2):
        boxes, logits = plain_proposals(outputs, image, sizes[image], pre_nms, post_nms, 0.6)
        count = len(logits)
        assert 15 < count <= post_nms
        np.testing.assert_allclose(scores[image, :count], logits, atol=1e-5)
        np.testing.assert_allclose(proposals[image, :count], boxes, atol=1e-3)
        np.testing.assert_array_equal(proposals[image, count:], 0)
        assert np.all(np.isneginf(scores[image, count:]))


def test_anchors_lie_in_row_column_ratio_order_like_the_logits(rpn):
    """A head that copies its input to each ratio's channel shows where a cell's values go."""
    features = np.zeros([1, 4, 6, 3], np.float32)
    features[0, 2, 5] = [1, 2, 3]
    layer = RPN(3, 4.0, RATIOS, 0.5, 0.6)
    layer({3: tf.constant(features)})
    identity = np.zeros([3, 3, 3, 3])
    identity[1, 1] = np.eye(3)
    layer.conv.set_weights([identity, np.zeros(3)])
    layer.objectness.set_weights([np.eye(3)[None, None], np.zeros(3)])
    output = layer({3: tf.constant(features)})[3]
    place = (2 * 6 + 5) * 3
    np.testing.assert_array_equal(output["logits"][0, place : place + 3], [1, 2, 3])
    assert np.count_nonzero(output["logits"]) == 3
    y1, x1, y2, x2 = output["anchors_yxyx"].numpy()[place : place + 3].T
    np.testing.assert_allclose((y1 + y2) / 2, 2.5 * 8)
    np.testing.assert_allclose((x1 + x2) / 2, 5.5 * 8)
    np.testing.assert_allclose((y2 - y1) / (x2 - x1), RATIOS, rtol=1e-5)


def test_proposals_carry_no_gradient(rpn):
    features = {3: tf.random.stateless_normal([1, 8, 8, 4], (0, 1))}
    with tf.GradientTape() as tape:
        tape.watch(features[3])
        boxes, scores = rpn.propose(rpn(features), tf.constant([[64.0, 64.0]]), 50, 20)
        loss = tf.reduce_sum(boxes) + tf.reduce_sum(tf.where(scores > -1e9, scores, 0.0))
    assert tape.gradient(loss, features[3]) is None
