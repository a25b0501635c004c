"""Masks learned from boxes: BoxInst's losses by hand, in NumPy, and in whole runs."""

import cv2
import numpy as np
import pytest
import tensorflow as tf

from maskx_tf import checkpoints, losses, objective
from maskx_tf.assembly import build_model
from maskx_tf.config import Config
from maskx_tf.errors import UserError
from maskx_tf.objective import MaskExamples
from maskx_tf.ops import boxes, colors
from tests import batches, runs

WEAK = {"loss_projection": 1.0, "loss_pairwise": 1.0}
LOGITS = np.float32([[[-2, 0, 1], [-1, 2, 3], [0, 1, -3]]])
BOX, IMAGE, VALID = np.float32([[1, 1, 3, 3]]), np.float32([[0, 0, 3, 3]]), np.array([True])


def lab_of(lightness):
    """LAB [1, m, m, 3] of greys."""
    return np.float32(lightness)[None, ..., None] * np.float32([1, 0, 0])


def pairwise(logits, lab, box=BOX, image=IMAGE, valid=VALID, threshold=0.3, dilation=1):
    value, count = losses.pairwise_loss(logits, lab, box, image, valid, threshold, dilation)
    return float(value), float(count)


class TestProjection:
    def test_by_hand(self):
        """Columns 0.5, 0.880797, 0.952574, rows 0.731059, 0.952574, 0.731059 against 0, 1, 1."""
        value, count = losses.projection_loss(LOGITS, BOX, VALID)
        assert float(value) == pytest.approx(0.067748 + 0.153166, abs=2e-6) and count == 1

    @pytest.mark.parametrize(("first", "wanted"), [(0.0, 4.5e-5), (3.0, 0.2386)])
    def test_a_full_mask_costs_nothing_where_the_window_is_the_box(self, first, wanted):
        full = tf.fill([1, 28, 28], 5.0)
        box = [[first, first, 28 - first, 28 - first]]
        value, _ = losses.projection_loss(full, tf.constant(box), VALID)
        assert float(value) == pytest.approx(wanted, rel=0.02)

    def test_is_the_mean_over_valid_masks(self):
        logits = np.concatenate([LOGITS, 9 * LOGITS, -LOGITS])
        box = np.repeat(BOX, 3, axis=0)
        each = [float(losses.projection_loss(z[None], BOX, VALID)[0]) for z in logits]
        value, count = losses.projection_loss(logits, box, np.array([True, False, True]))
        assert float(value) == pytest.approx((each[0] + each[2]) / 2) and count == 2


class TestPairwise:
    @pytest.mark.parametrize(("other", "wanted"), [(0.6, 0.616186), (0.4, 0.776529)])
    def test_one_pair(self, other, wanted):
        """-log of the probability that 0.7 and `other` are both set or neither."""
        p = np.array([[0.7, other], [0.5, 0.5]])
        lab = lab_of([[50, 50], [90, 10]])
        z = np.float32(np.log(p / (1 - p)))[None]
        everything = np.float32([[0, 0, 2, 2]])
        value, count = pairwise(z, lab, everything, everything)
        assert value == pytest.approx(wanted, abs=2e-6) and count == 2

    def test_by_hand(self):
        lab = lab_of([[50, 50, 51], [50, 70, 70], [50, 70.5, 71]])
        value, count = pairwise(LOGITS, lab)
        assert value == pytest.approx(1.067551, abs=2e-6) and count == 12

    @pytest.mark.parametrize(("dilation", "threshold"), [(1, 0.3), (2, 0.3), (3, 0.0), (2, 0.6)])
    def test_equals_numpy(self, dilation, threshold):
        rng = np.random.default_rng(dilation)
        n, m = 4, 7
        logits = rng.normal(0, 3, (n, m, m)).astype(np.float32)
        lab = rng.normal(0, 0.6, (n, m, m, 3)).astype(np.float32)
        box = np.float32([[0, 1.2, 5, 6], [2, 2, 6.5, 7], [0, 0, 7, 7], [1, 1, 6, 6]])
        image = np.float32([[0, 0, 7, 7], [0, 0, 5.3, 7], [2, 2, 7, 4], [0, 0, 7, 7]])
        valid = np.array([True, True, True, False])
        wanted = plain_pairwise(logits, lab, box, image, valid, threshold, dilation)
        value, count = pairwise(logits, lab, box, image, valid, threshold, dilation)
        assert value == pytest.approx(wanted[0], rel=1e-5) and count == wanted[1] > 5

    def test_sure_logits_stay_finite(self):
        with tf.GradientTape() as tape:
            z = tf.constant([[[1e4, -1e4], [1e4, 1e4]]])
            tape.watch(z)
            everything = tf.constant([[0.0, 0, 2, 2]])
            value, _ = losses.pairwise_loss(
                z, tf.zeros([1, 2, 2, 3]), everything, everything, VALID, 0.3, 1
            )
        assert float(value) == pytest.approx(1e4 / 2, rel=1e-4)  # 3 of the 6 pairs disagree
        assert np.isfinite(tape.gradient(value, z)).all()


def plain_pairwise(logits, lab, box, image, valid, threshold, dilation):
    """Cell by cell: all 8 neighbours of each cell of the box."""
    m = logits.shape[1]
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    total = count = 0

    def within(i, y, x, corners):
        y1, x1, y2, x2 = corners[i]
        return y1 <= y + 0.5 < y2 and x1 <= x + 0.5 < x2

    for i, y, x in np.argwhere(np.broadcast_to(valid[:, None, None], logits.shape)):
        for dy, dx in np.ndindex(3, 3):
            v, u = y + (dy - 1) * dilation, x + (dx - 1) * dilation
            if (v, u) == (y, x) or not (0 <= v < m and 0 <= u < m):
                continue
            similarity = np.exp(-np.linalg.norm(lab[i, y, x] - lab[i, v, u]) / 2)
            if within(i, y, x, box) and within(i, v, u, image) and similarity >= threshold:
                a, b = p[i, y, x], p[i, v, u]
                total, count = total - np.log(a * b + (1 - a) * (1 - b)), count + 1
    return total / max(count, 1), count


class TestColors:
    @pytest.mark.parametrize(
        ("rgb", "lab"),
        [
            ((255, 0, 0), (53.2406, 80.0923, 67.2028)),
            ((0, 255, 0), (87.7351, -86.1813, 83.1775)),
            ((0, 0, 255), (32.2957, 79.1880, -107.8602)),
            ((255, 255, 255), (100, 0, 0)),
            ((0, 0, 0), (0, 0, 0)),
        ],
    )
    def test_published(self, rgb, lab):
        np.testing.assert_allclose(colors.rgb_to_lab(np.uint8(rgb)), lab, atol=5e-3)

    def test_equal_opencv(self):
        """Within what the spline of OpenCV is off by."""
        rgb = np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.float32)
        rgb[0] = rgb[0, :, :1] // 8  # dark greys
        wanted = cv2.cvtColor(rgb / 255, cv2.COLOR_RGB2LAB)
        np.testing.assert_allclose(colors.rgb_to_lab(rgb), wanted, atol=0.5)


def test_which_objects_learn_from_their_boxes():
    """Of a mask that counts, one that does not, and the RoI that stands in for none."""
    corners = tf.constant([[0.0, 0, 3, 3], [1, 1, 3, 3], [0, 0, 0, 0]])
    examples = MaskExamples(None, None, None, tf.constant([True, False, False]), boxes_yxyx=corners)
    for weak_on, wanted in (("b", [False, True, False]), ("all", [True, True, False])):
        found = losses._learned_from_boxes(examples, Config(weak_on=weak_on))
        np.testing.assert_array_equal(found, wanted)


def test_terms_are_built_where_their_weight_is_not_zero():
    def names(**options):
        return [term.name for term in objective.loss_terms(Config(**options))][4:]

    assert names() == ["mask"] and not objective.learns_from_boxes(Config())
    assert names(loss_projection=0.5) == ["mask", "projection"]
    assert names(**WEAK) == ["mask", "projection", "pairwise"]
    assert objective.learns_from_boxes(Config(**WEAK))
    assert not objective.learns_from_boxes(Config(mode="stage1_boxes", **WEAK))


def test_the_warm_up_follows_the_step():
    terms = objective.loss_terms(
        Config(loss_projection=3.0, loss_pairwise=2.0, weak_warmup_steps=4)
    )
    terms = [term for term in terms if not term.needs_masks]
    values = {"projection": (tf.constant(1.0), tf.constant(5.0))}
    values["pairwise"] = (tf.constant(1.0), tf.constant(80.0))
    for step, wanted in ((0, 0.5), (2, 1.5), (3, 2.0), (9, 2.0), (None, 2.0)):
        step = None if step is None else tf.constant(step)
        found = objective.shares(values, terms, step)
        assert (float(found["projection"]), float(found["pairwise"])) == (3.0, wanted)


def test_a_dilation_as_wide_as_the_mask_is_refused():
    with pytest.raises(UserError, match="pairwise_dilation=28 must be less .* 28 cells"):
        Config(loss_pairwise=1.0, pairwise_dilation=28)


def test_cells_in_a_box():
    found = boxes.cells_in(tf.constant([[0.5, 1.0, 2.4, 3.0], [0, 0, 0, 0]]), 3)
    assert found.numpy().astype(int).tolist() == [[[0, 1, 1], [0, 1, 1], [0, 0, 0]], [[0] * 3] * 3]


@pytest.mark.thorough
class TestExamples:
    """Windows around the ground-truth boxes; two of six objects have no mask."""

    @pytest.fixture(scope="class")
    def model(self):
        options = {"mode": "stage2_masks", "mask_rois": "ground_truth", "mask_roi_scale": 1.25}
        return build_model(batches.tiny_config(**options, **WEAK), batches.NUM_CLASSES)

    @pytest.fixture(scope="class")
    def batch(self):
        """Images of two colours, the second of which is narrower than its canvas."""
        features, labels = batches.random_features(), batches.random_labels()
        image = np.zeros(features["image"].shape, np.uint8)
        image[0, :, :32], image[0, :, 32:], image[1, :, :48] = 10, 200, (0, 0, 255)
        sizes = tf.constant([[64.0, 64], [64, 48]])
        labels["boxes_yxyx"][0, 0] = [8, 16, 40, 48]
        labels["boxes_yxyx"][1, 0] = [8, 16, 40, 48]
        for place in ((0, 1), (1, 0)):
            labels["has_mask"][place] = False
        features |= {"image": tf.constant(image), "image_size": sizes}
        return features, batches.to_tensors(labels)

    def test_what_the_losses_see(self, model, batch):
        examples = objective.frozen_mask_examples(model, *batch, tf.constant([0, 0]))
        assert examples.valid.numpy().tolist() == [True, False, True, False, True, True]
        m = model.config.mask_size
        inner = [0.1 * m] * 2 + [0.9 * m] * 2
        np.testing.assert_allclose(examples.boxes_yxyx, [inner] * 6, atol=1e-3)
        # The window of [8, 16, 40, 48] is [4, 12, 44, 52], which leaves the second image.
        np.testing.assert_allclose(examples.images_yxyx[0], [0, 0, m, m])
        np.testing.assert_allclose(examples.images_yxyx[3], [0, 0, m, 0.9 * m], rtol=1e-5)
        lightness = examples.colors[0, ..., 0].numpy()
        assert (lightness[:, :6] < 5).all() and (lightness[:, 8:] > 75).all()
        blue = colors.rgb_to_lab(np.uint8([0, 0, 255]))
        found = examples.colors[3].numpy()[:, : int(0.9 * m) - 1]
        np.testing.assert_allclose(found, np.broadcast_to(blue, found.shape), atol=1e-3)
        windows = boxes.mask_windows(batch[1]["boxes_yxyx"][:, :3], 1.25)
        pyramid = model.pyramid(batch[0]["image"], batch[0]["image_size"])
        images = tf.repeat(tf.range(2), 3)
        side = model.config.mask_roi_size
        wanted = model.flat_roi_features(pyramid, tf.reshape(windows, [-1, 4]), images, side)
        np.testing.assert_array_equal(examples.features, wanted)

    @pytest.mark.parametrize(("weak_on", "count"), [("b", 2), ("all", 6)])
    def test_counts(self, model, batch, weak_on, count, monkeypatch):
        monkeypatch.setattr(model, "config", model.config.replace(weak_on=weak_on))
        found = objective.training_losses(model, *batch, tf.constant([0, 0]))
        assert list(found) == ["mask", "projection", "pairwise"]
        assert found["mask"][1] == 4 and found["projection"][1] == count
        assert float(found["pairwise"][1]) > 100


@pytest.mark.slow
class TestRuns:
    @pytest.fixture(scope="class")
    def options(self, shapes_data, stage_1):
        """Four steps of stage 2 without any mask; the warm-up is over after the first."""
        return runs.config(
            shapes_data,
            "",
            mode="stage2_masks",
            init_checkpoint=str(stage_1),
            mask_classes="none",
            mask_roi_scale=1.25,
            train_steps=4,
            weak_warmup_steps=2,
            **WEAK,
        )

    @pytest.fixture(scope="class")
    def wanted(self, options, tmp_path_factory):
        return self.weights(options, tmp_path_factory.mktemp("run"))

    def weights(self, options, directory, **changes):
        runs.train(options.replace(model_dir=str(directory), **changes))
        return checkpoints.load_model(str(directory)).model.get_weights()

    def assert_equal(self, found, wanted):
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(one, other)

    def test_a_resumed_run_equals_one_that_was_not_cut_off(self, options, wanted, tmp_path):
        self.weights(options, tmp_path, train_steps=2)
        self.assert_equal(self.weights(options, tmp_path), wanted)

    def test_a_cached_run_equals_an_uncached_one(self, options, wanted, tmp_path):
        cache = str(tmp_path / "cache")
        found = self.weights(options, tmp_path / "run", feature_cache=cache)
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)

    def test_the_warm_up_ends_with_its_steps(self, options, wanted, tmp_path):
        """After two steps no option is left to change it, and before them it is there."""
        self.weights(options, tmp_path, train_steps=2)
        self.assert_equal(self.weights(options, tmp_path, weak_warmup_steps=0), wanted)
        without = self.weights(options, tmp_path / "without", weak_warmup_steps=0)
        assert any((one != other).any() for one, other in zip(without, wanted, strict=True))
