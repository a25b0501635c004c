"""The losses against NumPy, with their published normalisers, and finite without any element."""

import numpy as np
import pytest
import tensorflow as tf

from maskx_tf import losses
from tests import oracles

RNG = np.random.default_rng(0)
B, S = 2, 6
POSITIVE = np.array([[1, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]], bool)
VALID = np.array([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0]], bool)


def normal(*shape):
    return RNG.normal(0, 1, shape).astype(np.float32)


def plain_smooth_l1(errors, beta):
    size = np.abs(errors)
    return np.where(size < beta, 0.5 * size**2 / beta, size - 0.5 * beta)


def assert_loss(loss, value, count):
    assert float(loss[0]) == pytest.approx(value, rel=1e-5)
    assert float(loss[1]) == count


@pytest.mark.parametrize("beta", [1 / 9, 1.0])
def test_smooth_l1(beta):
    errors = np.array([-3, -1, -0.5, -beta, -0.01, 0, 0.05, beta, 1.5, 40], np.float32)
    np.testing.assert_allclose(losses.smooth_l1(errors, beta), plain_smooth_l1(errors, beta), 1e-6)
    with tf.GradientTape() as tape:
        x = tf.constant(errors)
        tape.watch(x)
        total = tf.reduce_sum(losses.smooth_l1(x, beta))
    np.testing.assert_allclose(tape.gradient(total, x), np.clip(errors / beta, -1, 1), 1e-6)


def test_published_betas():
    assert pytest.approx(1 / 9) == losses.RPN_BETA and losses.BOX_BETA == 1


def test_rpn_score_loss_is_divided_by_the_full_sample_of_all_images():
    logits = normal(B, S)
    entropy = oracles.sigmoid_cross_entropy(logits, POSITIVE)[VALID].sum()
    loss = losses.rpn_score_loss(logits, POSITIVE, VALID, anchors_per_image=S)
    assert_loss(loss, entropy / (B * S), 9)


def test_rpn_box_loss():
    deltas, targets = normal(B, S, 4), normal(B, S, 4)
    total = plain_smooth_l1(deltas - targets, 1 / 9)[POSITIVE].sum()
    assert_loss(losses.rpn_box_loss(deltas, targets, POSITIVE, S), total / (B * S), 3)


def test_class_loss_is_the_mean_over_valid_rois():
    logits, classes = normal(7, 4), RNG.integers(0, 4, 7).astype(np.int32)
    valid = np.array([1, 1, 0, 1, 1, 0, 1], bool)
    entropy = -np.log(oracles.softmax(logits)[np.arange(7), classes])
    assert_loss(losses.class_loss(logits, classes, valid), entropy[valid].mean(), 5)


def test_box_loss_is_divided_by_all_sampled_rois():
    deltas, targets = 2 * normal(3, 4), normal(3, 4)
    total = plain_smooth_l1(deltas - targets, 1.0).sum()
    assert_loss(losses.box_loss(deltas, targets, tf.constant(20.0)), total / 20, 3)


def test_mask_loss_is_the_mean_over_pixels_and_valid_rois():
    logits, targets = normal(4, 5, 5), RNG.integers(0, 2, (4, 5, 5)).astype(np.float32)
    valid = np.array([1, 0, 1, 1], bool)
    entropy = oracles.sigmoid_cross_entropy(logits, targets)[valid]
    assert_loss(losses.mask_loss(logits, targets, valid), entropy.mean(), 3)


class TestMaskWeights:
    def test_worked_example(self):
        logits = np.array([[0, 2], [-1, 1], [3, -3]], np.float32)[:, None]
        targets = np.array([[1, 1], [0, 1], [0, 0]], np.float32)[:, None]
        weights = np.array([1, 0.25, 0], np.float32)
        assert_loss(losses.mask_loss(logits, targets, weights > 0, weights), 0.244177, 2)

    def test_all_1_is_without_weights_to_the_bit(self):
        logits, targets = normal(9, 5, 5), RNG.integers(0, 2, (9, 5, 5)).astype(np.float32)
        valid = np.array([1, 0, 1, 1, 1, 0, 1, 1, 1], bool)
        plain = losses.mask_loss(logits, targets, valid)
        weighted = losses.mask_loss(logits, targets, valid, tf.ones(9))
        assert [v.numpy() for v in plain] == [v.numpy() for v in weighted]

    def test_parts_of_a_batch_make_the_loss_of_the_whole(self):
        """As replicas add them up: each weighed by its count."""
        logits, targets = normal(6, 5, 5), RNG.integers(0, 2, (6, 5, 5)).astype(np.float32)
        weights = np.array([0.5, 0, 1, 0.1, 0, 0.9], np.float32)

        def loss(rois):
            of_rois = weights[rois]
            value, count = losses.mask_loss(logits[rois], targets[rois], of_rois > 0, of_rois)
            return float(value) * float(count), float(count)

        (one, a), (other, b), (total, count) = map(loss, (slice(4), slice(4, 6), slice(6)))
        assert a + b == count == 4
        assert one + other == pytest.approx(total, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "predictions", "rest"),
    [
        ("rpn_score_loss", normal(B, S), (POSITIVE, np.zeros([B, S], bool), S)),
        ("rpn_box_loss", normal(B, S, 4), (normal(B, S, 4), np.zeros([B, S], bool), S)),
        ("class_loss", normal(7, 4), (np.zeros(7, np.int32), np.zeros(7, bool))),
        ("box_loss", normal(0, 4), (normal(0, 4), tf.constant(0.0))),
        ("mask_loss", normal(4, 5, 5), (normal(4, 5, 5), np.zeros(4, bool))),
    ],
)
def test_without_an_element_the_loss_and_its_gradient_are_zero(name, predictions, rest):
    with tf.GradientTape() as tape:
        x = tf.constant(predictions)
        tape.watch(x)
        value, count = getattr(losses, name)(x, *rest)
    assert float(value) == 0 and float(count) == 0
    np.testing.assert_array_equal(tape.gradient(value, x), np.zeros_like(predictions))


def test_large_logits_stay_finite():
    logits = tf.constant([[[1e4, -1e4]]])
    value, _ = losses.mask_loss(logits, tf.constant([[[0.0, 1.0]]]), tf.constant([True]))
    assert float(value) == pytest.approx(1e4)
