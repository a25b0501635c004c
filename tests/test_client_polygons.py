"""Outlines of masks: filled by COCO's own code they are the mask again, holes included."""

import hypothesis
import hypothesis.extra.numpy as arrays
import hypothesis.strategies as st
import numpy as np
import pytest
from scipy import ndimage

from maskx_tf.ops import masks, polygons

SHAPES = arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12)


def filled(outline, height, width):
    if not outline:
        return np.zeros((height, width), np.uint8)
    return masks.decode_rle(masks.segmentation_to_rle(outline, height, width))


@hypothesis.given(
    arrays.arrays(np.uint8, SHAPES, elements=st.integers(0, 1)),
    st.tuples(*[st.integers(0, 3)] * 4),
)
@hypothesis.settings(max_examples=400, deadline=None)
def test_the_outline_is_exact(region, margins):
    """At any place in an image, also at its borders."""
    top, left, below, right = margins
    image = np.pad(region, ((top, below), (left, right)))
    found = polygons.outline(region, top, left)
    np.testing.assert_array_equal(filled(found, *image.shape), image)
    assert len(found) == ndimage.label(region)[1]  # parts share sides, not corners


@pytest.mark.parametrize("density", [0.5, 0.7, 0.9])
def test_large_ragged_masks_with_many_holes(density):
    region = (np.random.default_rng(0).random((97, 131)) < density).astype(np.uint8)
    np.testing.assert_array_equal(filled(polygons.outline(region), 97, 131), region)


def test_corners_are_those_of_pixels_without_any_on_a_line():
    region = np.zeros((5, 6), np.uint8)
    region[1:4, 2:5] = 1
    assert polygons.outline(region) == [[2, 1, 5, 1, 5, 4, 2, 4]]
    assert polygons.outline(region, 10, 20) == [[22, 11, 25, 11, 25, 14, 22, 14]]


def test_a_hole_is_cut_open():
    region = np.ones((3, 3), np.uint8)
    region[1, 1] = 0
    ring = [0, 0, 1, 0, 1, 1, 1, 2, 2, 2, 2, 1, 1, 1, 1, 0, 3, 0, 3, 3, 0, 3]
    assert polygons.outline(region) == [ring]
    x, y = np.array(ring).reshape(-1, 2).T
    area = (x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2
    assert area == 8  # the hole is taken off


def test_an_empty_mask_has_none():
    assert polygons.outline(np.zeros((3, 4))) == []
    assert polygons.outline(np.zeros((0, 0))) == []
