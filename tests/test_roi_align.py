"""RoIAlign against its definition in NumPy (forward and gradient)."""

import numpy as np
import pytest
import tensorflow as tf

from maskx_tf.layers import roi_align
from tests import oracles

HEIGHT, WIDTH = 64, 96  # pixels of the images
STRIDE = 4
BOXES = np.array(
    [
        [0, 0, HEIGHT, WIDTH],  # touches all borders
        [0, 0, 9, 13],
        [HEIGHT - 7.5, WIDTH - 3.2, HEIGHT, WIDTH],
        [0, 20.3, HEIGHT, 21.1],  # thin
        [11.7, 0, 12.9, WIDTH],
        [30.2, 40.9, 30.3, 41.0],  # a tenth of a pixel
        [0, 0, 0.5, 0.5],  # in the corner, inside half a cell
        [HEIGHT - 0.5, WIDTH - 0.5, HEIGHT, WIDTH],
        [17.3, 5.8, 49.1, 77.7],
        [8, 8, 40, 40],
    ],
    np.float32,
)
IMAGES = np.arange(len(BOXES)) % 2


@pytest.fixture(scope="module")
def features():
    return np.random.default_rng(0).normal(size=(2, HEIGHT // 4, WIDTH // 4, 3)).astype(np.float32)


@pytest.mark.parametrize("size", [7, 14])
def test_forward_is_the_definition(features, size):
    ours = roi_align.roi_align(tf.constant(features), BOXES, IMAGES, size, STRIDE)
    wanted = oracles.roi_align(features, BOXES, IMAGES, size, STRIDE)
    np.testing.assert_allclose(ours, wanted, atol=1e-4)


@pytest.mark.parametrize("size", [7, 14])
def test_gradient_is_the_definition(features, size):
    upstream = np.random.default_rng(1).normal(size=(len(BOXES), size, size, 3)).astype(np.float32)
    with tf.GradientTape() as tape:
        watched = tf.constant(features)
        tape.watch(watched)
        value = tf.reduce_sum(roi_align.roi_align(watched, BOXES, IMAGES, size, STRIDE) * upstream)
    wanted = oracles.roi_align_gradient(features.shape, upstream, BOXES, IMAGES, size, STRIDE)
    gradient = tape.gradient(value, watched)
    np.testing.assert_allclose(gradient, wanted, atol=1e-4 * np.abs(wanted).max())


def test_a_linear_ramp_is_sampled_at_the_bin_centres():
    """The value at pixel coordinate y is y, so that bins hold the coordinates of their centres."""
    rows = (np.arange(HEIGHT // STRIDE) + 0.5) * STRIDE
    ramp = np.tile(rows[None, :, None, None], [1, 1, 8, 1]).astype(np.float32)
    out = roi_align.roi_align(ramp, tf.constant([[10.0, 8, 38, 24]]), [0], 7, STRIDE)
    np.testing.assert_allclose(out[0, :, 3, 0], 12 + 4 * np.arange(7), atol=1e-4)


def test_levels():
    sides = np.array([1, 55.9, 111, 112.1, 223, 224.1, 447, 448.1, 3000])
    square = np.stack([sides * 0, sides * 0, sides, sides], axis=1).astype(np.float32)
    levels = roi_align.assign_levels(square, 2, 5, 224.0)
    np.testing.assert_array_equal(levels, [2, 2, 2, 3, 3, 4, 4, 5, 5])
    assert levels.dtype == tf.int32
    np.testing.assert_array_equal(roi_align.assign_levels(tf.zeros([2, 4]), 3, 5, 224.0), [3, 3])


def test_each_box_is_cropped_on_its_level_in_the_given_order():
    rng = np.random.default_rng(2)
    pyramid = {
        level: rng.normal(size=(2, 256 >> level, 320 >> level, 5)).astype(np.float32)
        for level in (2, 3, 4, 5)
    }
    sides = rng.permutation(np.geomspace(4, 250, 24))  # levels 2 to 5, shuffled
    low = rng.uniform(0, 1, (24, 2)) * (256 - sides[:, None])
    given = np.concatenate([low, low + sides[:, None]], axis=1).astype(np.float32)
    images = rng.integers(0, 2, 24).astype(np.int32)
    levels = roi_align.assign_levels(given, 2, 5, 112.0).numpy()
    assert set(levels) == {2, 3, 4, 5}
    ours = roi_align.multilevel_roi_align(
        {level: tf.constant(value) for level, value in pyramid.items()}, given, images, 7, 112.0
    )
    for i in range(24):
        level = levels[i]
        wanted = oracles.roi_align(pyramid[level], given[i : i + 1], images[i : i + 1], 7, 2**level)
        np.testing.assert_allclose(ours[i : i + 1], wanted, atol=1e-4)


def test_without_boxes_the_result_is_empty():
    pyramid = {2: tf.zeros([1, 8, 8, 3]), 3: tf.zeros([1, 4, 4, 3])}
    crops = roi_align.multilevel_roi_align(
        pyramid, tf.zeros([0, 4]), tf.zeros([0], tf.int32), 7, 224.0
    )
    assert crops.shape == (0, 7, 7, 3)
