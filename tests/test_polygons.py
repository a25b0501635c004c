"""Outlines of masks: filled by COCO's own code they are the mask again, holes included."""

import hypothesis
import hypothesis.extra.numpy as arrays
import hypothesis.strategies as st
import numpy as np
import pytest
from PIL import Image, ImageDraw
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


def test_of_a_run_length_code_they_have_the_places_in_the_image():
    region = np.random.default_rng(0).integers(0, 2, (9, 14))
    image = np.pad(region, ((3, 5), (7, 2)))
    found = polygons.from_rle(masks.encode_rle(image))
    np.testing.assert_array_equal(filled(found, *image.shape), image)
    assert sorted(found) == sorted(polygons.outline(region, 3, 7))
    assert polygons.from_rle(masks.encode_rle(np.zeros((5, 6))), 0.99) == []


def ellipse(hole):
    canvas = Image.new("L", (300, 200))
    pen = ImageDraw.Draw(canvas)
    pen.ellipse((20, 30, 260, 180), fill=1)
    pen.ellipse(hole, fill=0)
    return np.asarray(canvas)


@pytest.mark.parametrize("hole", [(90, 70, 200, 150), (0, 0, 0, 0)])
def test_simplified_they_have_fewer_points_and_keep_the_mask(hole):
    mask = ellipse(hole)
    rle = masks.encode_rle(mask)
    exact, simple = polygons.from_rle(rle), polygons.from_rle(rle, 0.99)
    assert len(exact) == len(simple) == 1
    assert len(simple[0]) < 0.2 * len(exact[0])
    again = filled(simple, 200, 300)
    assert (again & mask).sum() >= 0.99 * (again | mask).sum()
    assert filled(polygons.from_rle(rle, 0.999), 200, 300)[110, 140] == mask[110, 140]


def test_where_no_simplified_outline_is_close_enough_it_is_exact():
    pixel = np.zeros((5, 5), np.uint8)
    pixel[1, 2] = pixel[3, 3] = 1
    rle = masks.encode_rle(pixel)
    assert (
        polygons.from_rle(rle, 0.999)
        == polygons.from_rle(rle)
        == [
            [2, 1, 3, 1, 3, 2, 2, 2],
            [3, 3, 4, 3, 4, 4, 3, 4],
        ]
    )
