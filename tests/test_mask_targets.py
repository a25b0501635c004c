"""Mask targets against NumPy and detectron2's rasterised polygons."""

import json

import cv2
import numpy as np
import pytest
import tensorflow as tf
from pycocotools import mask as mask_lib

from maskx_tf.data.coco import masks as coco_masks
from maskx_tf.ops.mask_targets import mask_targets
from tests import batches, detectron2_fixture
from tests.harness import shared_data


def targets(masks, boxes, rois, indices, size):
    result = mask_targets(
        tf.constant(masks, tf.uint8),
        tf.constant(boxes, tf.float32),
        tf.constant(rois, tf.float32),
        tf.constant(indices, tf.int32),
        size,
    )
    assert result.dtype == tf.float32 and result.shape == (len(rois), size, size)
    return result.numpy()


def plain_values(mask, box, roi, size):
    """[size, size] values of the mask, bilinear between cell centres, 0 beyond the ring of them."""
    cells = len(mask)
    ringed = np.pad(mask.astype(np.float64), 1)
    values = np.zeros([size, size])
    for i in range(size):
        for j in range(size):
            y = roi[0] + (i + 0.5) * (roi[2] - roi[0]) / size
            x = roi[1] + (j + 0.5) * (roi[3] - roi[1]) / size
            v = (y - box[0]) / (box[2] - box[0]) * cells + 0.5  # centre of ringed cell k is at k
            u = (x - box[1]) / (box[3] - box[1]) * cells + 0.5
            if not (0 <= v <= cells + 1 and 0 <= u <= cells + 1):
                continue
            top, left = min(int(v), cells), min(int(u), cells)
            fy, fx = v - top, u - left
            corners = ringed[top : top + 2, left : left + 2]
            values[i, j] = np.array([1 - fy, fy]) @ corners @ np.array([1 - fx, fx])
    return values


@pytest.mark.parametrize(("cells", "size"), [(28, 28), (16, 28), (40, 14)])
def test_equal_numpy(cells, size):
    rng = np.random.default_rng(0)
    boxes = batches.random_boxes(rng, 4, 200, least=10)
    masks = rng.integers(0, 2, (4, cells, cells))
    indices = np.array([0, 1, 2, 3, 0, 1, 2, 3, 2])
    rois = boxes[indices] + rng.normal(0, 6, (9, 4))
    found = targets(masks, boxes, rois, indices, size)
    for target, roi, index in zip(found, rois, indices, strict=True):
        values = plain_values(masks[index], boxes[index], roi, size)
        sure = np.abs(values - 0.5) > 1e-3
        assert sure.mean() > 0.95
        np.testing.assert_array_equal(target[sure], (values >= 0.5)[sure])


def test_the_objects_own_box_reproduces_the_mask():
    masks = np.random.default_rng(0).integers(0, 2, (3, 28, 28))
    boxes = [[3.2, 5.7, 40.1, 81.3], [0, 0, 28, 28], [100, 1, 107, 300]]
    np.testing.assert_array_equal(targets(masks, boxes, boxes, [0, 1, 2], 28), masks)


def test_a_shifted_roi_sees_the_shifted_mask():
    """With a box of 28 x 28 pixels a mask cell is a pixel: the target is a slice."""
    mask = np.random.default_rng(0).integers(0, 2, (28, 28))
    found = targets(mask[None], [[10, 20, 38, 48]], [[13, 15, 41, 43]], [0], 28)
    wanted = np.zeros([28, 28])
    wanted[:25, 5:] = mask[3:, :23]
    np.testing.assert_array_equal(found[0], wanted)


@pytest.mark.parametrize("axis", [0, 1])
def test_flipping_box_roi_and_mask_flips_the_target(axis):
    rng = np.random.default_rng(1)
    boxes, rois = batches.random_boxes(rng, 5, 100), batches.random_boxes(rng, 5, 100)
    rois = (boxes + rois) / 2
    masks = rng.integers(0, 2, (5, 20, 20))

    def mirrored(values):
        values = values.copy()
        values[:, [axis, axis + 2]] = 128 - values[:, [axis + 2, axis]]
        return values

    found = targets(masks, boxes, rois, range(5), 28)
    turned = targets(np.flip(masks, axis + 1), mirrored(boxes), mirrored(rois), range(5), 28)
    assert np.mean(np.flip(turned, axis + 1) == found) > 0.999  # but for values of exactly 0.5


def test_outside_the_objects_box_is_zero():
    rois = [[30, 30, 50, 50], [0, 0, 9, 9]]
    found = targets(np.ones([1, 8, 8]), [[10, 10, 20, 20]], rois, [0, 0], 14)
    np.testing.assert_array_equal(found, 0)


def test_a_roi_around_the_object_holds_it_whole():
    found = targets(np.ones([1, 8, 8]), [[10, 10, 20, 20]], [[5, 5, 25, 25]], [0], 28)
    wanted = np.zeros([28, 28])
    wanted[7:21, 7:21] = 1
    np.testing.assert_array_equal(found[0], wanted)


def test_each_roi_sees_only_its_object():
    masks = np.stack([np.ones([8, 8]), np.zeros([8, 8])])
    boxes = np.array([[0, 0, 20, 20], [0, 0, 20, 20]])
    found = targets(masks, boxes, boxes[[0, 1, 0]], [1, 0, 1], 14)
    np.testing.assert_array_equal(found.mean(axis=(1, 2)), [0, 1, 0])


def test_padding_is_finite():
    found = targets(np.zeros([1, 8, 8]), np.zeros([1, 4]), np.zeros([1, 4]), [0], 14)
    np.testing.assert_array_equal(found, 0)


@pytest.mark.thorough
def test_the_masks_of_records_give_nearly_the_targets_of_cocos_polygons():
    """Detectron draws a polygon in the RoI; records hold it as 112 x 112 cells of its box."""
    path = shared_data() / "coco_mini" / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_bytes())
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    rng = np.random.default_rng(0)
    ious = {False: [], True: []}
    for item in content["annotations"][:300]:
        x, y, width, height = item["bbox"]
        if item["iscrowd"] or min(width, height) < 1:
            continue
        box = np.array([y, x, y + height, x + width])
        polygons = item["segmentation"]
        mask, _ = coco_masks.read_segmentation(polygons, [sizes[item["image_id"]]]).crop(box, 112)
        for is_shifted, values in ious.items():
            roi = box + is_shifted * rng.uniform(-0.15, 0.15, 4) * [height, width, height, width]
            found = targets(mask[None], box[None], roi[None], [0], 28)[0] > 0
            scale = 28 / (roi[[3, 2]] - roi[[1, 0]])
            drawn = [
                ((np.reshape(part, (-1, 2)) - roi[[1, 0]]) * scale).ravel() for part in polygons
            ]
            theirs = mask_lib.decode(mask_lib.merge(mask_lib.frPyObjects(drawn, 28, 28))) > 0
            values.append((found & theirs).sum() / (found | theirs).sum())
    assert len(ious[False]) > 200
    assert np.mean(ious[False]) > 0.98 and np.mean(ious[True]) > 0.985


@pytest.mark.parametrize("name", detectron2_fixture.NAMES)
def test_agree_with_detectron2(name):
    """Masks drawn over their box at 112 x 112, seen from the RoI, against polygons drawn there."""
    fixture = detectron2_fixture.load(name)
    boxes = fixture["gt_boxes"][:, detectron2_fixture.YXYX]
    masks = np.zeros([len(boxes), 112, 112], np.uint8)
    for mask, box, polygon in zip(masks, boxes, fixture["gt_polygons"], strict=True):
        points = (polygon.reshape(-1, 2) - box[[1, 0]]) / (box[[3, 2]] - box[[1, 0]]) * 112 - 0.5
        cv2.fillPoly(mask, [np.round(points * 256).astype(np.int32)], 1, shift=8)
    rois = fixture["train_mask_rois"][:, detectron2_fixture.YXYX]
    matched = fixture["train_roi_matched"][
        fixture["train_roi_classes"] != fixture["meta"]["num_classes"]
    ]
    found = targets(masks, boxes, rois, matched, 28) > 0.5
    theirs = fixture["train_mask_targets"]
    assert np.mean(found == theirs) > 0.98
