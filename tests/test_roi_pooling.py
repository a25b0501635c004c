"""RoI operators against values worked by hand, their definitions, finite differences."""

import fractions
import math

import numpy as np
import pytest
import tensorflow as tf

from maskx_tf.assembly import build_model
from maskx_tf.layers import choices
from maskx_tf.layers.roi_align import roi_align
from maskx_tf.layers.roi_pooling import (
    position_sensitive_roi_pool,
    roi_average,
    roi_pool,
    roi_warp,
)
from maskx_tf.objective import training_losses
from tests import batches
from tests.harness import thorough

MAP = np.array(
    [
        [0.88, 0.44, 0.14, 0.16, 0.37, 0.77, 0.96, 0.27],
        [0.19, 0.45, 0.57, 0.16, 0.63, 0.29, 0.71, 0.70],
        [0.66, 0.26, 0.82, 0.64, 0.54, 0.73, 0.59, 0.26],
        [0.85, 0.34, 0.76, 0.84, 0.29, 0.75, 0.62, 0.25],
        [0.32, 0.74, 0.21, 0.39, 0.34, 0.03, 0.33, 0.48],
        [0.20, 0.14, 0.16, 0.13, 0.73, 0.65, 0.96, 0.32],
        [0.19, 0.69, 0.09, 0.86, 0.88, 0.07, 0.01, 0.48],
        [0.83, 0.24, 0.97, 0.04, 0.24, 0.35, 0.50, 0.91],
    ],
    np.float32,
)
BOX = (3.2, 0.3, 7.9, 6.7)


def of_map(operator, box, size, *options):
    boxes = tf.constant([box], tf.float32)
    return operator(tf.constant(MAP[None, :, :, None]), boxes, [0], size, 1, *options)[0, :, :, 0]


class TestPool:
    @pytest.mark.parametrize(
        ("box", "wanted"),
        [
            ((3, 0, 8, 7), [[0.85, 0.96], [0.97, 0.96]]),
            ((3.2, 0.3, 8.9, 7.7), [[0.85, 0.96], [0.97, 0.91]]),  # one cell more, rounded
        ],
    )
    def test_worked_by_hand(self, box, wanted):
        np.testing.assert_array_equal(of_map(roi_pool, box, 2), np.float32(wanted))

    @pytest.mark.parametrize("size", [3, 7])
    def test_is_the_definition(self, size):
        rng = np.random.default_rng(0)
        features = rng.normal(size=(2, 9, 12, 3)).astype(np.float32)
        low = rng.uniform(-8, 40, (30, 2))
        boxes = np.concatenate([low, low + rng.uniform(0.1, 40, (30, 2))], 1).astype(np.float32)
        images = np.arange(30) % 2
        wanted = np.zeros([30, size, size, 3], np.float32)
        for n, (box, image) in enumerate(zip(boxes, images, strict=True)):
            spans = [bins(box[axis], box[axis + 2], size) for axis in (0, 1)]
            for i, (y0, y1) in enumerate(spans[0]):
                for j, (x0, x1) in enumerate(spans[1]):
                    cells = features[image, max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)]
                    if cells.size:
                        wanted[n, i, j] = cells.max((0, 1))
        found = roi_pool(tf.constant(features), boxes, images, size, 4)
        np.testing.assert_array_equal(found, wanted)
        assert (wanted == 0).any()  # some lie outside

    def test_gradient_goes_to_one_largest_cell(self):
        constant = tf.ones([1, 8, 8, 1])
        with tf.GradientTape() as tape:
            tape.watch(constant)
            pooled = roi_pool(constant, tf.constant([[0.0, 0, 8, 8]]), [0], 2, 1)
        gradient = tape.gradient(pooled, constant)[0, :, :, 0]
        np.testing.assert_array_equal(pooled, np.ones([1, 2, 2, 1]))
        assert sorted(np.ravel(gradient))[-5:] == [0, 1, 1, 1, 1]
        features = tf.constant(MAP[None, :, :, None])
        with tf.GradientTape() as tape:
            tape.watch(features)
            pooled = roi_pool(features, tf.constant([[3.0, 0, 8, 7]]), [0], 2, 1)
        gradient = tape.gradient(pooled, features)[0, :, :, 0].numpy()
        assert {tuple(place) for place in np.argwhere(gradient)} == {(3, 0), (5, 6), (7, 2)}
        assert gradient[5, 6] == 2  # the largest of two bins, which overlap

    def test_no_roi_and_a_graph_of_any_number(self):
        features = tf.constant(MAP[None, :, :, None])
        spec = tf.TensorSpec([None, 4]), tf.TensorSpec([None], tf.int32)
        pool = tf.function(
            lambda boxes, images: roi_pool(features, boxes, images, 2, 1), input_signature=spec
        )
        assert pool(tf.zeros([0, 4]), tf.zeros([0], tf.int32)).shape == (0, 2, 2, 1)
        assert pool(tf.constant([[3.0, 0, 8, 7]]), tf.constant([0]))[0, 0, 1, 0] == MAP[5, 6]


def bins(low, high, size, stride=4):
    first, last = rounded(low / stride), rounded((high - 1) / stride)
    cells = max(last - first + 1, 1)
    return [
        (first + math.floor(i * cells / size), first + math.ceil((i + 1) * cells / size))
        for i in range(size)
    ]


class TestWarp:
    def test_worked_by_hand(self):
        samples = [
            [0.55205, 0.623625, 0.385625, 0.54045],
            [0.3833, 0.20345, 0.47025, 0.4386],
            [0.371825, 0.211375, 0.779575, 0.3099],
            [0.478625, 0.68275, 0.32675, 0.34175],
        ]
        np.testing.assert_allclose(of_map(roi_align, BOX, 4, 1), samples, atol=1e-5)
        wanted = [[0.623625, 0.54045], [0.68275, 0.779575]]
        np.testing.assert_allclose(of_map(roi_warp, BOX, 2), wanted, atol=1e-5)

    def test_gradient_reaches_the_box(self):
        """That of the samples, and finite differences of what is pooled of them."""

        def value(operator, box, size, *options):
            maps = operator(tf.constant(MAP[None, :, :, None]), box, [0], size, 1, *options)
            return tf.reduce_sum(tf.reshape(maps, [-1]) * tf.range(float(size**2)))

        box = tf.constant([BOX])
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(box)
            samples, warped = value(roi_align, box, 4, 1), value(roi_warp, box, 2)
        assert float(samples) == pytest.approx(51.86, abs=0.01)
        wanted = [0.0400, -0.6476, 2.4400, 5.9942]
        np.testing.assert_allclose(tape.gradient(samples, box)[0], wanted, atol=1e-3)
        steps = 1e-3 * np.eye(4, dtype=np.float32)
        differences = [
            (value(roi_warp, box + step, 2) - value(roi_warp, box - step, 2)) / 2e-3
            for step in steps
        ]
        np.testing.assert_allclose(tape.gradient(warped, box)[0], differences, atol=5e-3)


class TestPositionSensitive:
    def test_worked_by_hand(self):
        """Channel c, row y, column x is 10 c + y + x / 10; outside and inside of 2 x 2 parts."""
        y, x = np.mgrid[:4, :4]
        features = tf.constant(10 * np.arange(8) + (y + x / 10)[..., None], tf.float32)[None]
        outside = [
            [0, 0.1, 10.2, 10.3],
            [1, 1.1, 11.2, 11.3],
            [22, 22.1, 32.2, 32.3],
            [23, 23.1, 33.2, 33.3],
        ]
        box = tf.constant([[0.0, 0, 4, 4]])  # pixels 0 to 3
        found = position_sensitive_roi_pool(features, box, [0], 4, 1, parts=2)[0]
        np.testing.assert_allclose(found[..., 0], outside, atol=1e-5)
        np.testing.assert_allclose(found[..., 1], np.array(outside) + 40, atol=1e-5)

    @pytest.mark.parametrize(("size", "parts"), [(6, 3), (7, 1)])
    def test_is_the_definition(self, size, parts):
        """Boxes beyond the map, of less than a pixel, and of no area among them."""
        rng = np.random.default_rng(0)
        features = rng.normal(size=(2, 9, 12, 2 * parts**2)).astype(np.float32)
        low = rng.uniform(-8, 40, (30, 2))
        boxes = np.concatenate([low, low + rng.uniform(0.1, 40, (30, 2))], 1).astype(np.float32)
        boxes[:3] = [0, 0, 0, 0], [8, 8, 8, 8], [30, 30, 20, 20]
        images = np.arange(30) % 2
        found = position_sensitive_roi_pool(
            tf.constant(features), boxes, images, size, 4, True, parts
        )
        np.testing.assert_allclose(
            found, averages(features, boxes, images, size, 4, parts), atol=1e-5
        )

    def test_gradient_is_that_of_finite_differences(self):
        """It is linear: one difference is exact, in float64 but for rounding."""
        rng = np.random.default_rng(0)
        features = tf.constant(rng.normal(size=(1, 5, 6, 8)))
        boxes, weights = tf.constant([[1.0, 2, 17, 22]]), rng.normal(size=(1, 4, 4, 2))

        def value(of_features):
            pooled = position_sensitive_roi_pool(of_features, boxes, [0], 4, 4, parts=2)
            return tf.reduce_sum(pooled * weights)

        with tf.GradientTape() as tape:
            tape.watch(features)
            loss = value(features)
        gradient = tape.gradient(loss, features).numpy()
        for place in rng.integers(0, gradient.shape, (8, 4)):
            step = np.zeros(gradient.shape)
            step[tuple(place)] = 1
            difference = float(value(features + step) - loss)
            assert difference == pytest.approx(gradient[tuple(place)], abs=1e-9)
        assert np.count_nonzero(gradient) > 20

    def test_parts_are_a_choice_among_averages_of_all_maps(self):
        """What a position-sensitive map of 1x1 kernels gives is the kernel of the part, applied to
        the averages of what it reads: `mask_bodies.fcis` computes it so."""
        rng = np.random.default_rng(1)
        features = tf.constant(rng.normal(size=(1, 12, 12, 5)), tf.float32)
        kernels = tf.constant(rng.normal(size=(5, 3 * 4)), tf.float32)
        boxes = tf.constant([[2.0, 5, 40, 44], [0, 0, 10, 30]])
        maps = tf.tensordot(features, kernels, 1)
        found = position_sensitive_roi_pool(maps, boxes, [0, 0], 4, 4, parts=2)
        averaged = roi_average(features, boxes, [0, 0], 4, 4).numpy()
        by_part = kernels.numpy().reshape(5, 3, 2, 2)
        for i in range(4):
            for j in range(4):
                wanted = averaged[:, i, j] @ by_part[:, :, i // 2, j // 2]
                np.testing.assert_allclose(found[:, i, j], wanted, atol=1e-5)


def averages(features, boxes, images, size, stride, parts):
    """`position_sensitive_roi_pool` in NumPy, as the release has it, in exact fractions."""
    height, width = features.shape[1:3]
    wanted = np.zeros([len(boxes), size, size, features.shape[-1] // parts**2], np.float32)
    for n, (box, image) in enumerate(zip(boxes, images, strict=True)):
        spans = []
        for low, high, limit in ((box[0], box[2], height), (box[1], box[3], width)):
            first = fractions.Fraction(rounded(low), stride)
            last = fractions.Fraction(rounded(high - 1) + 1, stride)
            step = max(last - first, fractions.Fraction(1, 10)) / size
            ends = [
                (math.floor(first + i * step), math.ceil(first + (i + 1) * step))
                for i in range(size)
            ]
            spans.append([tuple(min(max(end, 0), limit) for end in pair) for pair in ends])
        for i, (y0, y1) in enumerate(spans[0]):
            for j, (x0, x1) in enumerate(spans[1]):
                part = (i * parts // size) * parts + j * parts // size
                cells = features[image, y0:y1, x0:x1, part :: parts**2]
                if cells[..., 0].size:
                    wanted[n, i, j] = cells.mean((0, 1))
    return wanted


def rounded(value):
    return int(math.copysign(math.floor(abs(value) + 0.5), value))


@pytest.mark.parametrize("operator", ["pool", thorough("warp"), thorough("average")])
def test_both_heads_take_the_operator(operator):
    config = batches.tiny_config(box_roi_op=operator, mask_roi_op=operator)
    model = build_model(config, batches.NUM_CLASSES)
    seen = []
    load = choices.load
    choices_load = lambda constructor: seen.append(constructor) or load(constructor)  # noqa: E731
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choices, "load", choices_load)
        labels = batches.to_tensors(batches.random_labels())
        with tf.GradientTape() as tape:
            losses = training_losses(model, batches.random_features(), labels, tf.constant([0, 0]))
            total = tf.add_n([value for value, _ in losses.values()])
    assert seen == 2 * [choices.ROI_OPERATORS[operator]]
    gradients = tape.gradient(total, model.trainable_variables)
    assert all(np.isfinite(tf.convert_to_tensor(gradient)).all() for gradient in gradients)


@pytest.mark.parametrize("operator", [roi_pool, roi_warp, roi_average, roi_align])
def test_no_roi_has_no_gradient(operator):
    """A level of the pyramid without RoIs; the process ended where max_pool2d was used."""

    @tf.function(autograph=False)  # eagerly another kernel runs
    def gradient(features, boxes):
        with tf.GradientTape() as tape:
            tape.watch(features)
            pooled = operator(features, boxes, tf.zeros(tf.shape(boxes)[:1], tf.int32), 4, 1)
            loss = tf.reduce_sum(pooled**2)
        return pooled, tape.gradient(loss, features)

    features = tf.random.stateless_uniform([1, 8, 8, 16], [1, 2])
    pooled, of_features = gradient(features, tf.zeros([0, 4]))
    assert pooled.shape == (0, 4, 4, 16) and not np.any(of_features)
