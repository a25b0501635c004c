"""Copy-paste: pixels, masks and boxes of what is pasted, and of what it covers."""

import cv2
import numpy as np
import pytest
import tensorflow as tf

from maskx_tf.data import copy_paste
from maskx_tf.data.pipeline import make_dataset
from tests import harness
from tests.harness import thorough
from tests.test_pipeline import CONFIG, PETS, make_records

CELLS = 28
FULL = np.ones([CELLS, CELLS])
DISC = cv2.circle(np.zeros([CELLS, CELLS]), (14, 14), 13, 1.0, -1)


def labels_of(objects):
    """Unpadded labels; an object is (box, class, mask [28, 28] or None)."""
    return {
        "boxes_yxyx": tf.constant([box for box, _, _ in objects], tf.float32, [len(objects), 4]),
        "classes": tf.constant([c for _, c, _ in objects], tf.int32),
        "is_crowd": tf.zeros([len(objects)], tf.bool),
        "has_mask": tf.constant([mask is not None for _, _, mask in objects], tf.bool),
        "masks": tf.constant(
            np.array([0 * FULL if m is None else m for _, _, m in objects], np.uint8),
            shape=[len(objects), CELLS, CELLS],
        ),
        "mask_weight": tf.ones([len(objects)]),
    }


def pasted(objects, others, *, size=(64, 64), other_size=(64, 64), max_objects=9):
    """All of `others` over `objects`: the image is 10, the other 200."""
    features = {
        "image": tf.fill([64, 64, 3], tf.constant(10, tf.uint8)),
        "image_size": tf.constant(size, tf.float32),
    }
    other = tf.fill([*other_size, 3], tf.constant(200, tf.uint8))
    seed = next(  # with which all are chosen
        seed
        for seed in range(1000)
        if (tf.random.stateless_uniform([len(others)], [seed, 0]).numpy() < 0.5).all()
    )
    found, labels = copy_paste.paste(
        features, labels_of(objects), other, labels_of(others), tf.constant([seed, 0]), max_objects
    )
    return found["image"].numpy(), {key: value.numpy() for key, value in labels.items()}


def test_a_pasted_object_brings_its_pixels_mask_and_class():
    image, labels = pasted([], [([8, 16, 36, 44], 3, DISC)])
    expected = np.zeros([64, 64], bool)
    expected[8:36, 16:44] = DISC > 0
    assert ((image[..., 0] == 200) == expected).mean() > 0.995
    assert set(np.unique(image)) == {10, 200}
    np.testing.assert_array_equal(labels["boxes_yxyx"], [[8, 16, 36, 44]])
    np.testing.assert_array_equal(labels["masks"][0], DISC)
    assert labels["classes"].tolist() == [3] and labels["has_mask"].tolist() == [True]


def test_objects_without_masks_are_not_pasted():
    image, labels = pasted([], [([8, 16, 36, 44], 3, None)])
    assert (image == 10).all() and not len(labels["classes"])


def test_what_is_covered_is_cut_from_masks_and_boxes():
    """The right half of three objects is covered, a fourth wholly, a fifth not at all."""
    half = FULL.copy()
    half[:, 14:] = 0
    objects = [
        ([10, 4, 38, 32], 1, FULL),  # its mask loses its right half
        ([10, 4, 38, 32], 2, None),  # without a mask the box shrinks alike
        ([10, 4, 38, 32], 3, half),  # all of its mask stays in sight
        ([12, 20, 20, 30], 4, FULL),  # vanishes
        ([40, 40, 50, 60], 5, DISC),  # as it was
    ]
    image, labels = pasted(objects, [([0, 18, 40, 64], 6, FULL)])
    assert labels["classes"].tolist() == [1, 2, 3, 5, 6]
    np.testing.assert_allclose(labels["boxes_yxyx"][:2], [[10, 4, 38, 18]] * 2)
    np.testing.assert_array_equal(labels["masks"][0], FULL)
    assert not labels["masks"][1].any()
    np.testing.assert_allclose(labels["boxes_yxyx"][2], [10, 4, 38, 32])
    np.testing.assert_array_equal(labels["masks"][2], half)
    np.testing.assert_allclose(labels["boxes_yxyx"][3], [40, 40, 50, 60])
    np.testing.assert_array_equal(labels["masks"][3], DISC)
    assert (image[:40, 18:] == 200).all() and (image[:40, :18] == 10).all()


@pytest.mark.parametrize("seed", [0, thorough(1), thorough(2)])
def test_masks_fit_the_pixels_that_are_left(seed):
    """Random objects with masks: what is said to be visible is not of the other image."""
    rng = np.random.default_rng(seed)

    def objects(count):
        corners = rng.uniform(0, 40, [count, 2])
        boxes = np.concatenate([corners, corners + rng.uniform(8, 24, [count, 2])], axis=1)
        return [(box, int(rng.integers(1, 4)), DISC) for box in boxes]

    image, labels = pasted(objects(4), objects(3))
    for box, mask in zip(labels["boxes_yxyx"][:-3], labels["masks"][:-3], strict=True):
        rows, columns = (
            np.floor(low + (high - low) * (np.arange(CELLS) + 0.5) / CELLS).astype(int)
            for low, high in zip(box[:2], box[2:], strict=True)
        )
        values = image[..., 0][np.ix_(rows, columns)]
        assert (values[mask > 0] == 10).mean() > 0.93
        assert mask.any(axis=0).sum() > CELLS - 3 and mask.any(axis=1).sum() > CELLS - 3


def test_what_leaves_the_image_is_clipped():
    """The valid part is 40 x 64, the other canvas 96 x 32."""
    others = [([20, 4, 48, 18], 1, FULL), ([41, 4, 60, 18], 2, FULL)]
    image, labels = pasted([], others, size=(40, 64), other_size=(96, 32))
    assert labels["classes"].tolist() == [1]
    np.testing.assert_allclose(labels["boxes_yxyx"], [[20, 4, 40, 18]])
    assert (image[20:40, 4:18] == 200).all() and (image[40:] == 10).all()


def test_the_largest_objects_are_kept():
    objects = [([0, 0, 5, 5], 1, FULL), ([0, 30, 30, 60], 2, FULL)]
    _, labels = pasted(objects, [([40, 0, 60, 20], 3, FULL)], max_objects=2)
    assert labels["classes"].tolist() == [2, 3]


@pytest.mark.thorough
@pytest.mark.parametrize("sizes", [[(40, 60)] * 6, [(40, 60), (60, 40)] * 3])
def test_training_pastes_objects_of_set_a_and_resumes(tmp_path, sizes):
    """Cats have masks in training, dogs do not: a dog is of its own image."""
    annotations = [harness.annotation(i, [3, 4, 20, 10], category_id=1) for i in range(1, 7)]
    annotations += [harness.annotation(i, [30, 20, 9, 9], category_id=2) for i in range(1, 7)]
    records = make_records(tmp_path, annotations, sizes=sizes)
    config = CONFIG.replace(copy_paste=1.0, max_objects=8, scale_jitter_min=0.7)

    def batches(start, count, config=config):
        dataset = make_dataset(records, config, PETS, (1,), training=True, seed=5, start_step=start)
        return list(dataset.take(count).as_numpy_iterator())

    found = batches(0, 12)
    classes = np.concatenate([labels["classes"] for _, labels in found])
    cats, dogs = ((classes == c).sum(axis=1) for c in (1, 2))
    assert (dogs <= 1).all() and cats.max() == 2 and 0 < (cats == 2).mean() < 1
    for one, other in zip(found[7:], batches(7, 5), strict=True):
        tf.nest.map_structure(np.testing.assert_array_equal, one, other)
    rarely = batches(0, 12, config.replace(copy_paste=0.3))
    plain = batches(0, 12, config.replace(copy_paste=0.0))
    equal = [
        np.array_equal(one["image"][i], other["image"][i])
        for (one, _), (other, _) in zip(rarely, plain, strict=True)
        for i in range(2)
    ]
    assert 0.4 < np.mean(equal) < 1
