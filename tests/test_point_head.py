"""PointRend's points, by hand and in NumPy, and the point head from training to export."""

import functools
import types

import numpy as np
import pytest
import tensorflow as tf

import maskx_tf as mx
from maskx_tf import checkpoints, objective
from maskx_tf.adding import grow
from maskx_tf.assembly import build_model
from maskx_tf.checkpoints import LoadedModel
from maskx_tf.errors import UserError
from maskx_tf.frozen import training as feature_cache
from maskx_tf.inference import folding
from maskx_tf.inference.segmenter import Segmenter
from maskx_tf.layers.point_head import FineFeatures
from maskx_tf.layers.roi_align import multilevel_roi_align, roi_align
from maskx_tf.model import MaskXRCNN, trained_variables, variable_key
from maskx_tf.ops import points
from maskx_tf.ops.conventions import CONVENTIONS
from maskx_tf.ops.mask_targets import mask_targets, point_targets
from tests import batches, tiny, whole_way

SEED = tf.constant([0, 0])


@pytest.fixture(scope="module", autouse=True)
def exact_gradients():
    """As training does, see `devices.make_strategy`."""
    if not tf.config.list_physical_devices("GPU"):
        tf.config.experimental.enable_op_determinism()


def normal(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def uniform(*shape):
    return np.random.default_rng(sum(shape)).uniform(size=shape).astype(np.float32)


def bilinear(image, y, x):
    """Value of [H, W, C] at a point in cells, whose centres are at half-integers."""
    y, x = (np.clip(v - 0.5, 0, side - 1) for v, side in zip((y, x), image.shape, strict=False))
    (top, left), (height, width) = (int(y), int(x)), image.shape[:2]
    below, right = min(top + 1, height - 1), min(left + 1, width - 1)
    rows = (1 - (y - top)) * image[top] + (y - top) * image[below]
    return (1 - (x - left)) * rows[left] + (x - left) * rows[right]


class TestSample:
    def test_equals_numpy(self):
        """Within, on centres, and beyond the border on all sides; a map of one row too."""
        for maps in (normal(2, 5, 7, 3), normal(2, 1, 4, 3)):
            at = np.random.default_rng(0).uniform(-2, 9, (4, 30, 2)).astype(np.float32)
            at[0, 0], at[1, 0] = (0.5, 2.5), (100, -100)
            indices = np.array([1, 0, 1, 1], np.int32)
            found = points.sample(tf.constant(maps), tf.constant(at), tf.constant(indices))
            wanted = [
                [bilinear(maps[i], *yx) for yx in of] for i, of in zip(indices, at, strict=True)
            ]
            np.testing.assert_allclose(found, wanted, atol=1e-5)

    def test_features_get_a_gradient_and_points_none(self):
        maps, at = tf.constant(normal(1, 3, 3, 2)), tf.constant([[[1.0, 1.25]]])
        with tf.GradientTape() as tape:
            tape.watch([maps, at])
            value = tf.reduce_sum(points.sample(maps, at, tf.constant([0])))
        to_maps, to_points = tape.gradient(value, [maps, at])
        assert to_points is None
        weights = np.outer([0.5, 0.5, 0], [0.25, 0.75, 0])
        np.testing.assert_allclose(to_maps[0], np.repeat(weights[..., None], 2, -1), atol=1e-6)


class TestForTraining:
    def test_three_of_four_are_the_least_certain_candidates(self):
        count, logits = 8, normal(3, 6, 6)
        random = uniform(3, points.draws(count), 2)
        assert random.shape[1] == 3 * count + 2
        found = points.for_training(tf.constant(logits), tf.constant(random), count).numpy()
        assert found.shape == (3, count, 2)
        for mask, drawn, chosen in zip(logits, random, found, strict=True):
            doubt = [abs(bilinear(mask[..., None], *(6 * yx))[0]) for yx in drawn[: 3 * count]]
            least = drawn[np.argsort(doubt)[:6]]
            np.testing.assert_array_equal(chosen[:6], least)
            np.testing.assert_array_equal(chosen[6:], drawn[3 * count :])

    def test_as_published_for_masks_of_28_cells(self):
        assert objective.point_count(mx.Config()) == 14**2
        assert points.draws(14**2) == 3 * 14**2 + 49


class TestSubdivide:
    COARSE = tf.constant([[[2.0, -1.0], [0.5, -3.0]]])
    FINE = (
        [2, 1.25, -0.25, -1],
        [1.625, 0.84375, -0.71875, -1.5],
        [0.875, 0.03125, -1.65625, -2.5],
        [0.5, -0.375, -2.125, -3],
    )

    def test_by_hand(self):
        """Row 2, column 1 is the least certain, then (0, 2), (3, 1) and (3, 0)."""
        asked = []

        def predict(at):
            asked.append(at.numpy())
            return tf.constant([[10.0, 11, 12, 13]])

        found = points.subdivide(self.COARSE, predict, 1, 4).numpy()[0]
        np.testing.assert_allclose(asked[0][0] * 4 - 0.5, [[2, 1], [0, 2], [3, 1], [3, 0]])
        wanted = np.array(self.FINE)
        wanted[[2, 0, 3, 3], [1, 2, 1, 0]] = 10, 11, 12, 13
        np.testing.assert_allclose(found, wanted)

    def test_all_pixels_of_a_small_mask_are_asked(self):
        found = points.subdivide(self.COARSE, lambda at: 9 + at[..., 0], 1, 784).numpy()[0]
        rows = 9 + (np.arange(4) + 0.5) / 4
        np.testing.assert_allclose(found, np.repeat(rows[:, None], 4, 1))

    def test_a_predictor_that_knows_the_truth_sharpens_every_step(self):
        def signed(at):  # of a disc and its distance
            return 8 * (0.3 - tf.norm(at - [0.45, 0.55], axis=-1))

        def grid(side):
            centres = (np.arange(side) + 0.5) / side
            return tf.constant(np.stack(np.meshgrid(centres, centres, indexing="ij"), -1)[None])

        coarse = tf.cast(signed(grid(7)), tf.float32)
        truth = signed(grid(56)).numpy() > 0
        plain = tf.image.resize(coarse[..., None], [56, 56]).numpy()[..., 0] > 0
        found = points.subdivide(coarse, signed, 3, 49).numpy() > 0
        wrong = [(mask != truth).sum() for mask in (plain, found)]
        assert wrong[1] <= 3 < wrong[0] / 5


@pytest.mark.parametrize("conventions", CONVENTIONS)
def test_points_are_where_roi_align_samples(conventions):
    """On a RoI's grid, one sample a bin of the finest level, whichever the geometry."""
    conventions = CONVENTIONS[conventions]
    pyramid = {3: tf.constant(normal(2, 8, 8, 4)), 2: tf.constant(normal(2, 16, 16, 4))}
    windows, images = tf.constant([[3.0, 8, 40, 61], [0, 2, 30, 64]]), tf.constant([1, 0])
    fpn = types.SimpleNamespace(backbone_levels=(2, 3))
    model = types.SimpleNamespace(point_head=True, fpn=fpn, conventions=conventions)
    fine = MaskXRCNN.fine_features(model, pyramid, windows, images)
    centres = (np.arange(5, dtype=np.float32) + 0.5) / 5
    grid = np.stack(np.meshgrid(centres, centres, indexing="ij"), -1).reshape(1, 25, 2)
    found = fine.sample(tf.constant(np.repeat(grid, 2, 0)))
    wanted = multilevel_roi_align(
        {2: pyramid[2]},
        windows,
        images,
        5,
        half_pixel=conventions.half_pixel,
        to_corner=conventions.to_corner,
        operator=functools.partial(roi_align, samples=1),
    )
    np.testing.assert_allclose(found, tf.reshape(wanted, [2, 25, 4]), atol=1e-4)


def test_targets_on_a_grid_are_those_of_masks():
    """Soft, and 0 beyond the object's box; at 0.5 they are the targets of the mask head."""
    rng = np.random.default_rng(0)
    masks = tf.constant(rng.integers(0, 2, (3, 9, 9)), tf.uint8)
    boxes = tf.constant(batches.random_boxes(rng, 3, 60, least=20))
    rois = tf.gather(boxes, [2, 0, 1, 0]) + tf.constant(rng.normal(0, 3, (4, 4)), tf.float32)
    indices = tf.constant([2, 0, 1, 0])
    centres = (np.arange(12, dtype=np.float32) + 0.5) / 12
    grid = np.stack(np.meshgrid(centres, centres, indexing="ij"), -1).reshape(1, 144, 2)
    soft = point_targets(masks, boxes, rois, indices, tf.constant(np.repeat(grid, 4, 0))).numpy()
    hard = mask_targets(masks, boxes, rois, indices, 12).numpy().reshape(4, 144)
    sure = np.abs(soft - 0.5) > 1e-4
    np.testing.assert_array_equal(soft[sure] > 0.5, hard[sure] > 0)
    assert sure.mean() > 0.9 and ((soft > 0.01) & (soft < 0.99)).mean() > 0.3
    outside = point_targets(masks, boxes, rois, indices, tf.fill([4, 1, 2], -0.7))
    np.testing.assert_array_equal(outside, np.zeros([4, 1]))


class TestOptions:
    def test_side_of_the_results(self):
        assert mx.Config(point_steps=3).refined_mask_size == 28
        for steps, side in ((1, 56), (2, 112), (3, 224)):
            assert mx.Config(point_head="transfer", point_steps=steps).refined_mask_size == side

    def test_a_cache_has_no_features_of_points(self):
        config = mx.Config(mode="stage2_masks", point_head="agnostic")
        with pytest.raises(UserError, match="--feature_cache .*--point_head=agnostic.*leave out"):
            feature_cache.check(config)

    def test_embeddings_know_no_new_class(self):
        changes = {"transfer_input": "embedding", "transfer_embeddings": "randn"}
        for head, refused in (("agnostic", False), ("transfer", True)):
            config = mx.Config(mask_output="class_agnostic", point_head=head, **changes)
            loaded = LoadedModel(None, config, None, ())
            if not refused:
                grow.check(loaded)
                continue
            with pytest.raises(UserError, match="embedding"):
                grow.check(loaded)


@pytest.mark.thorough
class TestModel:
    """Image 0 has an object without a mask."""

    @pytest.fixture(scope="class", params=["agnostic", "transfer"])
    def model(self, request):
        options = {"point_head": request.param, "point_units": 6, "mode": "end_to_end"}
        model = build_model(batches.tiny_config(**options), batches.NUM_CLASSES)
        rng = np.random.default_rng(0)
        for variable in (model.box_head.cls_kernel, model.box_head.box_kernel):
            variable.assign(rng.normal(0, 0.05, variable.shape))
        for variable in model.point_weights.trainable_variables:
            variable.assign(rng.normal(0, 0.3, variable.shape))
        return model

    def losses(self, model, labels, seed=SEED):
        variables = model.trainable_variables
        with tf.GradientTape() as tape:
            features = batches.random_features()
            value = objective.training_losses(model, features, batches.to_tensors(labels), seed)
            loss = value["points"][0]
        gradients = zip(variables, tape.gradient(loss, variables), strict=True)
        named = {
            variable_key(variable): tf.convert_to_tensor(gradient).numpy()
            for variable, gradient in gradients
            if gradient is not None and np.any(tf.convert_to_tensor(gradient))
        }
        return value, named

    def test_other_variables_are_as_without_it(self, model):
        plain = build_model(batches.tiny_config(), batches.NUM_CLASSES)
        config = model.config
        again = {variable_key(v): v.numpy() for v in build_model(config, 7).weights}
        for variable in plain.weights:
            np.testing.assert_array_equal(again[variable_key(variable)], variable)
        of_points = {key.split("/")[0] for key in again} - {
            variable_key(v).split("/")[0] for v in plain.weights
        }
        weights = {"agnostic": "point_weights", "transfer": "point_transfer"}[config.point_head]
        assert of_points == {"point_head", weights}
        stage_2 = types.SimpleNamespace(
            config=config.replace(mode="stage2_masks"),
            trainable_variables=model.trainable_variables,
            transfers=model.transfers,
        )
        parts = {variable_key(v).split("/")[0] for v in trained_variables(stage_2)}
        assert parts == of_points | {"mask_head", "weight_transfer"}
        stage_2.config = stage_2.config.replace(transfer_trained=False)
        parts = {variable_key(v).split("/")[0] for v in trained_variables(stage_2)}
        assert parts == {"mask_head"} | of_points - {"point_transfer"}

    def test_objects_without_a_mask_teach_it_nothing(self, model):
        labels = batches.random_labels()
        labels["has_mask"][0, 1] = False
        (before, gradients) = self.losses(model, labels)
        labels["masks"][0, 1] ^= 1
        after, same = self.losses(model, labels)
        assert float(before["points"][0]) == float(after["points"][0])
        assert float(before["points"][1]) == float(before["mask"][1])
        for name, gradient in gradients.items():
            np.testing.assert_array_equal(gradient, same[name])
        labels["has_mask"][:] = False
        none, gradients = self.losses(model, labels)
        assert float(none["points"][0]) == 0 and not gradients

    def test_where_the_gradient_goes(self, model):
        """To the finest features, the coarse mask and the head; T passes none on to boxes."""
        _, gradients = self.losses(model, batches.random_labels())
        parts = {name.split("/")[0] for name in gradients}
        assert {"backbone", "fpn", "mask_head", "point_head"} < parts
        assert not {"box_head", "rpn"} & parts
        assert ("point_transfer" in parts) == (model.config.point_head == "transfer")

    def test_points_follow_from_the_step_alone(self, model):
        labels = batches.random_labels()
        values = [
            float(self.losses(model, labels, tf.constant([0, step]))[0]["points"][0])
            for step in (3, 3, 4)
        ]
        assert values[0] == values[1] != values[2]

    def test_loss_by_its_definition(self, model):
        """Mean entropy at the points of each RoI, of the label interpolated there."""
        labels, features = batches.to_tensors(batches.random_labels()), batches.random_features()
        frozen = objective.frozen_mask_examples(model, features, labels, SEED)
        logits = model.mask_logits(frozen.features, frozen.classes)
        at = points.for_training(logits, frozen.points.random, 49)
        z = model.point_logits(frozen.points.fine, logits, at, frozen.classes).numpy()
        y = point_targets(*frozen.points[2:], at).numpy()
        wanted = (np.maximum(z, 0) - z * y + np.log1p(np.exp(-np.abs(z)))).mean()
        stage_2 = objective._mask_losses(model, frozen)
        assert float(stage_2["points"][0]) == pytest.approx(wanted, rel=1e-4)

    def test_masks_are_subdivided_ones(self, model):
        features = batches.random_features()
        pyramid = model.pyramid(features["image"], features["image_size"])
        boxes = tf.constant([[[4.0, 6, 40, 50], [0, 0, 0, 0]], [[1, 1, 60, 30], [9, 9, 30, 30]]])
        classes = tf.constant([[1, 0], [2, 5]])
        found = model.masks(pyramid, boxes, classes).numpy()
        assert found.shape == (2, 2, 56, 56) and not found[0, 1].any()
        windows, images = tf.constant([[1.0, 1, 60, 30]]), tf.constant([1])
        coarse = model.mask_logits(
            model.mask_roi_features(pyramid, windows, images, tf.constant([2])), tf.constant([2])
        )
        fine = FineFeatures(pyramid[2], windows / 4, images)
        wanted = points.subdivide(
            coarse, lambda at: model.point_logits(fine, coarse, at, tf.constant([2])), 2, 14 * 14
        )
        np.testing.assert_allclose(found[1, 0], tf.sigmoid(wanted)[0], atol=1e-5)
        plain = tf.sigmoid(tf.image.resize(coarse[..., None], [56, 56]))[0, ..., 0]
        assert np.abs(found[1, 0] - plain).max() > 0.01

    def test_a_folded_model_gives_the_same_masks(self, model):
        image, size = batches.random_features().values()
        before = model(image, size)["detection_masks"].numpy()
        copy = build_model(model.config, batches.NUM_CLASSES)
        copy.set_weights(model.get_weights())
        folding.fold_transfer(copy)
        np.testing.assert_allclose(copy(image, size)["detection_masks"], before, atol=1e-5)


@pytest.mark.thorough
def test_given_boxes_have_refined_masks():
    config = tiny.config(point_head="transfer", point_units=6, point_steps=1)
    model = tiny.model(config)
    segmenter = Segmenter(LoadedModel(model, config, tiny.VOCABULARY, tiny.SET_A))
    (image,) = tiny.images(1)
    found = segmenter.segment(image, np.array([[4.0, 5, 30, 40]]), np.array([2]))
    assert found.box_masks.shape == (1, 28, 28)
    assert segmenter.segment(image, np.zeros([0, 4]), np.zeros(0, int)).box_masks.shape[1:] == (
        28,
        28,
    )


@pytest.mark.slow
def test_it_trains_resumes_evaluates_grows_and_is_exported(shapes_data, stage_1, tmp_path):
    """The export compares itself with the model, whose masks are larger than the mask head's."""
    config = whole_way.stage_2(
        shapes_data,
        tmp_path,
        stage_1,
        point_head="transfer",
        point_units=8,
        mask_rois="ground_truth",
    )
    whole_way.check(config, shapes_data, tmp_path, "", atol=1e-6)
    loaded = tf.saved_model.load(str(tmp_path / "export" / "1"))
    outputs = loaded.signatures["image_tensor"](images=tf.zeros([1, 64, 64, 3], tf.uint8))
    assert outputs["detection_masks"].shape[2:] == (56, 56)
    trained = checkpoints.load_model(str(tmp_path / "plain")).model
    first = {variable_key(v): v.numpy() for v in build_model(config, 72).weights}
    moved = {
        variable_key(v) for v in trained.weights if (v.numpy() != first[variable_key(v)]).any()
    }
    assert {"point_head", "point_transfer"} <= {key.split("/")[0] for key in moved}
