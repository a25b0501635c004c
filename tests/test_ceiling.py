"""Mean IoU in given boxes and the class-agnostic ceiling, against search over all masks."""

import itertools

import numpy as np
import pytest

from maskx_tf.evaluation import ceiling
from maskx_tf.ops import masks as mask_ops


def best_by_search(masks):
    """Over all masks of all pixels."""
    masks = np.stack(masks).reshape(len(masks), -1)
    candidates = np.array(list(itertools.product([False, True], repeat=masks.shape[1])))
    inside = (candidates[:, None] & masks).sum(axis=2)
    union = (candidates[:, None] | masks).sum(axis=2)
    return (inside / np.maximum(union, 1)).mean(axis=1).max()


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_best_shared_mask_is_the_best_of_all(count):
    rng = np.random.default_rng(count)
    for _ in range(20):
        masks = list(rng.random((count, 3, 4)) < rng.uniform(0.2, 0.8))
        assert ceiling.best_shared_mask(masks) == pytest.approx(best_by_search(masks))


def test_of_many_masks_it_is_not_below_the_best():
    rng = np.random.default_rng(0)
    for _ in range(10):
        masks = list(rng.random((6, 3, 4)) < 0.5)
        best = best_by_search(masks)
        assert best <= ceiling.best_shared_mask(masks) < 1


def test_disjoint_halves_have_a_ceiling_of_one_half():
    left = np.zeros((4, 4), bool)
    left[:, :2] = True
    assert ceiling.best_shared_mask([left, ~left]) == 0.5


def test_groups_are_of_several_classes_in_nearly_the_same_box():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 10], [5, 0, 10, 10]], float)
    assert ceiling.same_box_groups(boxes, [1, 2, 1, 3]) == [[0, 1]]
    assert ceiling.same_box_groups(boxes, [1, 2, 3, 4]) == [[0, 1, 2]]
    assert ceiling.same_box_groups(boxes[[0, 3]], [1, 2]) == []


def annotation(image_id, class_id, mask, box=(0, 0, 4, 4), **more):
    return {
        "image_id": image_id,
        "category_id": class_id,
        "bbox": list(box),
        "iscrowd": 0,
        "segmentation": mask_ops.encode_rle(mask.astype(np.uint8)),
        **more,
    }


def test_ious_of_a_torn_pair_and_a_lone_object():
    left, lone = np.zeros((4, 8), bool), np.zeros((4, 8), bool)
    left[:, :2], lone[:, 5:] = True, True
    right = np.zeros((4, 8), bool)
    right[:, 2:4] = True
    truth = [
        annotation(1, 1, left),
        annotation(1, 2, right),
        annotation(1, 2, lone, (5, 0, 3, 4)),
        annotation(1, 3, lone, (5, 0, 3, 4), segmentation=None),
        annotation(1, 3, lone, (5, 0, 3, 4), iscrowd=1),
        annotation(2, 1, left),  # without a prediction
    ]
    predicted = [
        annotation(1, 2, lone, (5, 0, 3, 4)),
        annotation(1, 1, left),
        annotation(1, 2, left | right),
    ]
    objects = ceiling.given_box_ious({"annotations": truth}, {1: predicted})
    assert [row[:2] for row in objects] == [(1, 1.0), (2, 0.5), (2, 1.0), (1, 0.0)]
    assert [row[2] for row in objects[:2]] == [0.5, 0.5]
    summary = ceiling.summarize(objects, {"A": [1], "B": [2], "none": [3]})
    assert summary["B"] == {
        "IoU": 0.75, "shared": 0.5, "IoU_shared": 0.5, "ceiling": 0.75, "ceiling_shared": 0.5,
    }  # fmt: skip
    assert ceiling.mean_ious(objects, 3) == [summary["A"]["IoU"], summary["B"]["IoU"], None]
    assert summary["A"]["IoU"] == 0.5 and summary["A"]["ceiling"] == 0.75
    assert set(summary["none"].values()) == {None}
