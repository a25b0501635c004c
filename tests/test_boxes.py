"""Box arithmetic against plain NumPy and against Model Garden."""

import numpy as np
import pytest
import tensorflow as tf
from official.vision.ops import box_ops, iou_similarity

from maskx_tf.ops import boxes
from tests import batches, oracles

WEIGHTS = (10.0, 10.0, 5.0, 5.0)


@pytest.fixture(scope="module")
def pairs():
    """Two sets of 40 boxes, with empty, equal and touching ones among them."""
    rng = np.random.default_rng(0)
    a, b = (batches.random_boxes(rng, 40, 800, least=1) for _ in range(2))
    a[0], b[0] = 0, 0  # padding
    a[1] = b[1]
    b[2] = [*a[2, :2], a[2, 0], a[2, 1] + 5]  # no height
    b[3] = a[3] + [0, a[3, 3] - a[3, 1], 0, a[3, 3] - a[3, 1]]  # right beside it
    return a, b


def test_in_cells_of_a_region():
    regions = tf.constant([[10.0, 20, 50, 60], [10, 20, 50, 60], [0, 0, 0, 0]])
    inner = tf.constant([[20.0, 30, 40, 70], [0, 0, 12, 21], [1, 1, 2, 2]])
    # A cell is 10 pixels; what reaches beyond the region is cut off.
    wanted = [[1, 1, 3, 4], [0, 0, 0.2, 0.1], [0, 0, 0, 0]]
    np.testing.assert_allclose(boxes.in_cells(inner, regions, 4), wanted, atol=1e-6)


def test_area_of_a_negative_side_is_zero():
    values = boxes.area(tf.constant([[1.0, 2, 4, 7], [4, 2, 1, 7], [4, 7, 1, 2], [0, 0, 0, 0]]))
    np.testing.assert_array_equal(values, [15, 0, 0, 0])


def test_iou_is_the_definition(pairs):
    a, b = pairs
    np.testing.assert_allclose(boxes.iou(a, b), oracles.iou_matrix(a, b), atol=1e-6)


def test_iou_equals_model_garden(pairs):
    a, b = (x[4:] for x in pairs)  # without empty boxes, for which Model Garden gives nan or -1
    np.testing.assert_allclose(boxes.iou(a, b), iou_similarity.iou(a, b), atol=1e-6)


def test_iou_with_leading_dimensions(pairs):
    a, b = pairs
    batched = boxes.iou(tf.stack([a, b]), tf.stack([b[:7], a[:7]]))
    np.testing.assert_array_equal(batched[0], boxes.iou(a, b[:7]))
    np.testing.assert_array_equal(batched[1], boxes.iou(b, a[:7]))


def test_overlap_fraction_is_the_share_of_the_first():
    a = tf.constant([[0.0, 0, 10, 10], [0, 0, 2, 2], [0, 0, 0, 0]])
    b = tf.constant([[0.0, 0, 5, 5], [0, 0, 0, 0]])
    np.testing.assert_allclose(boxes.overlap_fraction(a, b), [[0.25, 0], [1, 0], [0, 0]])


def test_encode_and_decode_are_the_definition():
    rng = np.random.default_rng(1)
    a, b = (batches.random_boxes(rng, 50, 1000, least=2) for _ in range(2))
    deltas = rng.normal(0, 2, (50, 4)).astype(np.float32)
    encoded = [oracles.encode(x, y, WEIGHTS) for x, y in zip(a, b, strict=True)]
    decoded = [oracles.decode(x, y, WEIGHTS) for x, y in zip(deltas, b, strict=True)]
    np.testing.assert_allclose(boxes.encode(a, b, WEIGHTS), encoded, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(boxes.decode(deltas, b, WEIGHTS), decoded, rtol=1e-5, atol=1e-3)


def test_encode_and_decode_equal_model_garden():
    rng = np.random.default_rng(2)
    a, b = (batches.random_boxes(rng, 50, 1000, least=2) for _ in range(2))
    theirs = box_ops.encode_boxes(a, b, WEIGHTS)
    np.testing.assert_allclose(boxes.encode(a, b, WEIGHTS), theirs, rtol=1e-4, atol=1e-3)
    deltas = tf.constant(rng.normal(0, 2, (50, 4)), tf.float32)
    theirs = box_ops.decode_boxes(deltas, b, WEIGHTS)
    np.testing.assert_allclose(boxes.decode(deltas, b, WEIGHTS), theirs, rtol=1e-4, atol=1e-3)


def test_round_trip():
    rng = np.random.default_rng(3)
    a, b = (batches.random_boxes(rng, 200, 256, least=8) for _ in range(2))
    back = boxes.decode(boxes.encode(a, b, WEIGHTS), b, WEIGHTS)
    np.testing.assert_allclose(back, a, atol=1e-4)


def test_order_is_dy_dx_dh_dw():
    anchor = tf.constant([[10.0, 20, 30, 60]])  # height 20, width 40
    moved = boxes.decode(tf.constant([[0.5, 0.25, np.log(2), 0.0]], tf.float32), anchor, (1.0,) * 4)
    np.testing.assert_allclose(moved, [[10, 30, 50, 70]], atol=1e-4)


def test_padding_encodes_to_zero_with_finite_gradient():
    a = tf.constant([[0.0, 0, 0, 0], [1, 1, 5, 5], [3, 3, 3, 9]])
    b = tf.constant([[1.0, 1, 5, 5], [0, 0, 0, 0], [1, 1, 5, 5]])
    with tf.GradientTape() as tape:
        tape.watch([a, b])
        deltas = boxes.encode(a, b, WEIGHTS)
    np.testing.assert_array_equal(deltas, np.zeros([3, 4]))
    for gradient in tape.gradient(deltas, [a, b]):
        assert np.isfinite(gradient).all()


def test_a_wild_delta_gives_a_bounded_box():
    deltas, anchor = tf.constant([[0.0, 0, 1e4, 1e4]]), tf.constant([[0.0, 0, 16, 16]])
    decoded = boxes.decode(deltas, anchor, WEIGHTS)
    np.testing.assert_allclose(decoded, [[8 - 500, 8 - 500, 8 + 500, 8 + 500]], rtol=1e-4)


def test_clip_to_each_image():
    given = tf.constant([[[-5.0, -1, 50, 70], [3, 4, 5, 6]], [[90, 90, 99, 99], [1, 2, 300, 400]]])
    clipped = boxes.clip(given, tf.constant([[40.0, 60.0], [80.0, 95.0]]))
    wanted = [[[0, 0, 40, 60], [3, 4, 5, 6]], [[80, 90, 80, 95], [1, 2, 80, 95]]]
    np.testing.assert_array_equal(clipped, wanted)
