"""Resizing and padding against a NumPy oracle."""

import numpy as np
import pytest
import tensorflow as tf

from maskx_tf.data import preprocessing
from tests.harness import random_image


def oracle_size(height, width, min_side, max_side, jitter=1.0):
    scale = min(min_side / min(height, width), max_side / max(height, width)) * jitter
    return [max(1, int(np.floor(side * scale + 0.5))) for side in (height, width)]


def oracle_resize(image, size):
    """Bilinear, pixel centres at half-integers, clamped at the border."""
    out = image.astype(np.float64)
    for axis, new in enumerate(size):
        old = out.shape[axis]
        at = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
        low = np.floor(at).astype(int)
        high = np.minimum(low + 1, old - 1)
        share = (at - low).reshape([-1 if a == axis else 1 for a in range(3)])
        out = np.take(out, low, axis) * (1 - share) + np.take(out, high, axis) * share
    return out


@pytest.mark.parametrize(
    ("height", "width", "canvas"),
    [(48, 64, (64, 96)), (64, 48, (96, 64)), (50, 50, (64, 96)), (10, 64, (64, 96)),
     (300, 20, (96, 64)), (1, 500, (64, 96)), (7, 10, (64, 96))],
)  # fmt: skip
def test_resize_and_pad_equals_the_oracle(height, width, canvas):
    image = random_image(height, width)
    padded, size, scale = preprocessing.resize_and_pad(tf.constant(image), 60, 90)
    wanted = oracle_size(height, width, 60, 90)
    assert padded.shape == (*canvas, 3)
    assert padded.dtype == tf.uint8
    assert size.numpy().tolist() == wanted
    np.testing.assert_allclose(scale, np.array(wanted) / [height, width], rtol=1e-6)
    new_height, new_width = wanted
    valid = padded.numpy()[:new_height, :new_width].astype(float)
    assert np.abs(valid - oracle_resize(image, wanted)).max() <= 0.5 + 1e-3  # rounded
    assert not padded[new_height:].numpy().any()
    assert not padded[:, new_width:].numpy().any()


def test_published_sizes():
    """640 x 480 at 800/1333 becomes 1067 x 800, on a canvas of 1344 x 800."""
    image = tf.zeros([480, 640, 3], tf.uint8)
    padded, size, _ = preprocessing.resize_and_pad(image, 800, 1333)
    assert padded.shape == (800, 1344, 3)
    assert size.numpy().tolist() == [800, 1067]
    assert preprocessing.canvas_sides(800, 1333) == (800, 1344)


@pytest.mark.parametrize("jitter", [0.5, 1.7])
def test_jitter_scales_and_cuts_to_the_canvas(jitter):
    image = random_image(40, 60)
    padded, size, scale = preprocessing.resize_and_pad(tf.constant(image), 64, 96, jitter)
    wanted = oracle_size(40, 60, 64, 96, jitter)
    assert padded.shape == (64, 96, 3)
    assert size.numpy().tolist() == [min(wanted[0], 64), min(wanted[1], 96)]
    np.testing.assert_allclose(scale, np.array(wanted) / [40, 60], rtol=1e-6)


@pytest.mark.parametrize("position", [(0.0, 0.0), (1.0, 1.0), (0.3, 0.8)])
def test_crop_position_moves_the_window(position):
    image = random_image(40, 60)
    padded, size, _, offset = preprocessing.resize_crop_and_pad(
        tf.constant(image), 64, 96, 1.5, tf.constant(position)
    )
    resized = oracle_size(40, 60, 64, 96, 1.5)
    excess = np.array(resized) - size.numpy()
    np.testing.assert_allclose(offset, np.floor(np.array(position) * excess + 0.5))
    y, x = offset.numpy().astype(int)
    wanted = oracle_resize(image, resized)[y : y + 64, x : x + 96]
    assert np.abs(padded.numpy().astype(float) - wanted).max() <= 0.5 + 1e-3


def test_square_canvas_is_static_in_graphs():
    spec = tf.TensorSpec([None, None, 3], tf.uint8)
    square = tf.function(
        lambda image: preprocessing.resize_and_pad(image, 64, 64)[0], [spec], False
    )
    oblong = tf.function(
        lambda image: preprocessing.resize_and_pad(image, 64, 96)[0], [spec], False
    )
    assert square.get_concrete_function().output_shapes.as_list() == [64, 64, 3]
    assert oblong.get_concrete_function().output_shapes.as_list() == [None, None, 3]
    assert square(tf.zeros([10, 20, 3], tf.uint8)).shape == (64, 64, 3)
