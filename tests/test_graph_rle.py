"""Run-length codes from the graph equal the NumPy side's, which equal pycocotools'."""

import numpy as np
import pytest
import tensorflow as tf

from maskx_tf.ops import graph_rle
from maskx_tf.ops import masks as mask_ops

encode = tf.function(graph_rle.paste_to_rle, autograph=False)


def both(masks, boxes, height, width):
    found = encode(masks, tf.constant(boxes, tf.float32), len(masks), tf.constant([height, width]))
    wanted = mask_ops.paste_to_rle(masks / 255.0, np.float32(boxes), height, width)
    return [text.decode() for text in found.numpy()], [rle["counts"] for rle in wanted]


@pytest.mark.parametrize(("height", "width"), [(30, 47), (1, 400), (300, 1), (200, 133)])
def test_equals_numpy_for_random_masks_and_boxes(height, width):
    rng = np.random.default_rng(height)
    masks = rng.integers(0, 256, (40, 14, 14)).astype(np.uint8)
    masks[::2] = np.kron(masks[::2, ::7, ::7], np.ones((7, 7), np.uint8))  # few, long runs
    corners = rng.uniform(-0.2, 1.2, (40, 2, 2)) * [height, width]
    corners[:10] = np.round(corners[:10])
    boxes = np.concatenate([corners.min(1), corners.max(1)], axis=1)
    found, wanted = both(masks, boxes, height, width)
    assert found == wanted
    assert len(set(found)) > 10


@pytest.mark.parametrize(
    "box",
    [
        (0, 0, 20, 30),  # the whole image
        (0, 3, 20, 9),  # whole columns: runs go on from one to the next
        (4, 4, 4, 9),  # no area
        (9, 9, 4, 4),  # turned round
        (-9, -9, -1, -1),  # outside
        (25, 35, 40, 50),
        (19.5, 29.5, 20, 30),  # the last pixel
    ],
)
@pytest.mark.parametrize("value", [0, 127, 128, 255])
def test_extreme_boxes_and_constant_masks(box, value):
    found, wanted = both(np.full((1, 28, 28), value, np.uint8), [box], 20, 30)
    assert found == wanted


def test_decodes_to_the_pasted_mask():
    mask = np.random.default_rng(5).integers(0, 256, (1, 28, 28)).astype(np.uint8)
    box = (3.3, 5.9, 77.1, 60.2)
    (text,), _ = both(mask, [box], 90, 70)
    pasted = mask_ops.paste_mask(mask[0] / 255.0, box, 90, 70)
    decoded = mask_ops.decode_rle({"size": [90, 70], "counts": text})
    np.testing.assert_array_equal(decoded, pasted)
    assert 0 < pasted.mean() < 1


def test_long_runs_are_written_as_pycocotools_does():
    """Numbers of one to seven groups, rising and falling."""
    from pycocotools import mask as mask_api

    for runs in ([5], [0, 1], [1, 2, 3], [1, 2, 3, 4], [0, 15, 16, 31, 32, 1023, 3], [2**31, 7]):
        runs = [*runs, 2**20, 1, 2**30, 2, 3]
        wanted = mask_api.frPyObjects({"size": [2**16, 2**16], "counts": runs}, 2**16, 2**16)
        assert graph_rle.compress(tf.constant(runs, tf.int64)).numpy() == wanted["counts"]
    for runs in ([7], [3, 4], [3, 4, 5], [3, 4, 5, 6]):
        wanted = mask_api.frPyObjects({"size": [9, 9], "counts": runs}, 9, 9)
        assert graph_rle.compress(tf.constant(runs, tf.int64)).numpy() == wanted["counts"]


def test_padding_is_empty():
    masks = tf.fill([3, 14, 14], tf.constant(255, tf.uint8))
    boxes = tf.constant([[0.0, 0, 5, 5]] * 3)
    found = encode(masks, boxes, 1, tf.constant([9, 9]))
    assert [bool(text) for text in found.numpy()] == [True, False, False]
