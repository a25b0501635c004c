"""Pasting against a per-pixel oracle; run-length codes against COCO's."""

import json

import numpy as np
import pytest
from pycocotools import mask as mask_api

from maskx_tf.ops import masks


def oracle_paste(mask, box_yxyx, height, width, threshold=0.5):
    """Bilinear lookup of every pixel centre of the image, one by one; zeros around the mask."""
    y1, x1, y2, x2 = box_yxyx
    padded = np.pad(mask, 1)
    out = np.zeros((height, width), np.uint8)
    for y in range(height):
        for x in range(width):
            v = (y + 0.5 - y1) / (y2 - y1) * mask.shape[0] + 0.5  # in the padded mask
            u = (x + 0.5 - x1) / (x2 - x1) * mask.shape[1] + 0.5
            i, j = int(np.floor(v)), int(np.floor(u))
            if not (0 <= i < padded.shape[0] - 1 and 0 <= j < padded.shape[1] - 1):
                continue
            a, b = v - i, u - j
            top = (1 - b) * padded[i, j] + b * padded[i, j + 1]
            bottom = (1 - b) * padded[i + 1, j] + b * padded[i + 1, j + 1]
            out[y, x] = (1 - a) * top + a * bottom >= threshold
    return out


def random_case(seed):
    rng = np.random.default_rng(seed)
    height, width = (int(side) for side in rng.integers(1, 40, 2))
    corners = np.sort(rng.uniform(-12, 52, (2, 2)), axis=0)
    corners[1] += 0.5
    mask = rng.random(rng.integers(1, 9, 2))
    return mask, corners.ravel(), height, width


@pytest.mark.parametrize("seed", range(40))
def test_paste_equals_per_pixel_oracle(seed):
    case = random_case(seed)
    np.testing.assert_array_equal(masks.paste_mask(*case), oracle_paste(*case))


def test_full_mask_sets_the_pixels_whose_centres_are_inside():
    pasted = masks.paste_mask(np.ones((28, 28)), (1.4, 2.6, 4.6, 5.5), 8, 8)
    wanted = np.zeros((8, 8), np.uint8)
    wanted[1:5, 3:6] = 1  # centres 1.5..4.5 and 3.5..5.5: a centre on the edge counts
    np.testing.assert_array_equal(pasted, wanted)


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("threshold", [0.5, 1e-6])
def test_paste_to_rle_equals_encoding_the_whole_image(seed, threshold):
    mask, box, height, width = random_case(seed)
    pasted = masks.paste_mask(mask, box, height, width, threshold)
    (rle,) = masks.paste_to_rle(mask[None], box[None], height, width, threshold)
    assert rle == masks.encode_rle(pasted)
    np.testing.assert_array_equal(masks.decode_rle(rle), pasted)


@pytest.mark.parametrize(
    "box",
    [(0, 0, 6, 9), (0, 2, 6, 5), (2, 0, 4, 9), (5, 8, 6, 9)],
    ids=["whole image", "full height", "full width", "last pixel"],
)
def test_paste_to_rle_at_the_image_borders(box):
    (rle,) = masks.paste_to_rle(np.ones((1, 3, 3)), np.array([box], float), 6, 9)
    assert rle == masks.encode_rle(masks.paste_mask(np.ones((3, 3)), box, 6, 9))
    assert masks.rle_area(rle) == (box[2] - box[0]) * (box[3] - box[1])


@pytest.mark.parametrize("box", [(3, 3, 3, 8), (20, 20, 30, 30), (-9, -9, -1, -1), (5, 5, 2, 2)])
def test_boxes_without_area_in_the_image_give_empty_masks(box):
    (rle,) = masks.paste_to_rle(np.ones((1, 4, 4)), np.array([box], float), 10, 12)
    assert rle == masks.encode_rle(np.zeros((10, 12)))


def test_paste_to_rle_of_nothing():
    assert masks.paste_to_rle(np.zeros((0, 28, 28)), np.zeros((0, 4)), 10, 10) == []


def test_rle_is_cocos_compressed_text():
    mask = np.random.default_rng(0).random((7, 5)) > 0.5
    rle = masks.encode_rle(mask)
    assert rle["size"] == [7, 5] and isinstance(rle["counts"], str)
    assert json.loads(json.dumps(rle)) == rle
    np.testing.assert_array_equal(mask_api.decode(rle), mask)


def test_segmentation_forms_agree():
    polygon = [1.0, 1.0, 5.0, 1.0, 5.0, 4.0, 1.0, 4.0]
    from_polygons = masks.segmentation_to_rle([polygon], 6, 8)
    compressed = mask_api.encode(np.asfortranarray(masks.decode_rle(from_polygons)))
    assert masks.segmentation_to_rle(compressed, 6, 8) == from_polygons
    runs, value, counts = masks.decode_rle(from_polygons).T.ravel(), 0, [0]
    for pixel in runs:
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    numbers = {"size": [6, 8], "counts": counts}
    assert masks.segmentation_to_rle(numbers, 6, 8) == from_polygons
    assert masks.rle_area(from_polygons) == 12


@pytest.mark.parametrize("density", [0.0, 0.01, 0.1, 1.0])
def test_box_agreement_is_the_iou_of_a_masks_box(density):
    rng = np.random.default_rng(0)
    for _ in range(20):
        mask = np.zeros([20, 30], np.uint8)
        region = mask[rng.integers(10) :, rng.integers(10) :]
        region[:] = rng.uniform(size=region.shape) < density
        y, x = rng.integers(0, [15, 20])
        height, width = rng.integers(1, 6, 2)
        given = np.zeros([20, 30], bool)
        given[y : y + height, x : x + width] = True
        own = np.zeros([20, 30], bool)
        if mask.any():
            rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
            own[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
        wanted = (given & own).sum() / (given | own).sum()
        rle = masks.encode_rle(mask)
        assert masks.box_agreement(rle, (y, x, y + height, x + width)) == pytest.approx(wanted)
