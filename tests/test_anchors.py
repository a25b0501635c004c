"""Anchors against NumPy loops, Model Garden and detectron2."""

import numpy as np
from official.vision.ops import anchor as model_garden

from maskx_tf.ops import anchors

RATIOS = (0.5, 1.0, 2.0)


def test_order_is_row_column_ratio_and_ratio_is_height_over_width():
    wanted = []
    for y in (2, 6, 10):
        for x in (2, 6):
            for ratio in RATIOS:
                height, width = 32 * ratio**0.5, 32 / ratio**0.5
                wanted.append([y - height / 2, x - width / 2, y + height / 2, x + width / 2])
    np.testing.assert_allclose(anchors.level_anchors(3, 2, 4, 8.0, RATIOS), wanted, rtol=1e-6)


def test_areas_are_the_square_of_the_size():
    y1, x1, y2, x2 = anchors.cell_anchors(4, 10.0, (0.2, 1.0, 3.0)).T
    np.testing.assert_allclose((y2 - y1) * (x2 - x1), 1600, rtol=1e-5)
    np.testing.assert_allclose((y2 - y1) / (x2 - x1), [0.2, 1, 3], rtol=1e-5)


def test_equal_model_garden():
    theirs = model_garden.Anchor(
        min_level=2,
        max_level=6,
        num_scales=1,
        aspect_ratios=[1 / ratio for ratio in RATIOS],  # width / height
        anchor_size=8.0,
        image_size=[128, 192],
    ).multilevel_boxes
    for level in range(2, 7):
        stride = 2**level
        shape = 128 // stride, 192 // stride
        ours = anchors.level_anchors(*shape, stride, 8.0, RATIOS, offset=0.5)
        np.testing.assert_allclose(ours, theirs[str(level)].numpy().reshape(-1, 4), atol=1e-3)
