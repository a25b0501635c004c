"""What the mask head is told beside the RoI features: coordinates, and the class activation map."""

import numpy as np
import pytest
import tensorflow as tf

import maskx_tf as mx
from maskx_tf import training
from maskx_tf.assembly import build_model
from maskx_tf.errors import UserError
from maskx_tf.frozen import training as feature_cache
from maskx_tf.layers.conv_box_head import ConvBoxHead
from maskx_tf.layers.mask_bodies.fcn import FCN
from maskx_tf.layers.mask_branches import class_prior, with_coordinates
from maskx_tf.layers.mask_head import MaskHead
from tests import batches, runs, whole_way
from tests.layer_check import randomize

CAM = {"box_head": "conv", "box_convs": 2, "mask_branches": ("cam",)}


def normal(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


@pytest.fixture(scope="module")
def head():
    built = ConvBoxHead(5, 6, convs=3, norm="group_norm", name="box_head")
    built(tf.zeros([1, 4, 4, 2]))
    randomize(built)
    return built


class TestConvBoxHead:
    def test_the_mean_of_a_classes_map_and_its_bias_are_its_logit(self, head):
        features, classes = normal(7, 4, 4, 2), tf.constant([0, 1, 2, 3, 4, 5, 5])
        maps = head.class_activations(features, classes)
        assert maps.shape == (7, 4, 4)
        logits = tf.gather(head.class_logits(head(features)), classes, batch_dims=1)
        means = tf.reduce_mean(maps, axis=[1, 2]) + tf.gather(head.cls_bias, classes)
        np.testing.assert_allclose(means, logits, rtol=1e-5, atol=1e-5)

    def test_filters_double_up_to_those_of_the_class_weights(self):
        for channels, units, wanted in ((256, 1024, [512, 1024, 1024, 1024]), (64, 64, [64] * 4)):
            built = ConvBoxHead(3, units)
            built.add_hidden_layers(channels)
            assert [conv.filters for conv in built.convs] == wanted

    def test_weights_of_classes_are_as_of_the_other_head(self, head):
        assert head.class_weights(tf.constant([2, 4]), "cls+box").shape == (2, 5 * 6)
        assert head.class_deltas(head(normal(3, 4, 4, 2)), tf.constant([1, 2, 3])).shape == (3, 4)

    def test_maps_have_a_gradient_to_features_but_none_to_class_weights(self, head):
        features = tf.constant(normal(2, 4, 4, 2))
        with tf.GradientTape() as tape:
            tape.watch(features)
            loss = tf.reduce_sum(head.class_activations(features, tf.constant([1, 3])) ** 2)
        to_rows, to_features = tape.gradient(loss, [head.cls_kernel, features])
        assert to_rows is None and np.abs(to_features).max() > 0


class TestPrior:
    def test_worked_by_hand(self):
        maps = np.array([[(1, 0), (2, 1)], [(0, 1), (1, 3)]], np.float32) @ np.float32([0.5, -1])
        np.testing.assert_allclose(maps, [[0.5, 0], [-1, -2.5]])
        np.testing.assert_allclose(class_prior(maps[None], 4)[0], [
            [1, 0.958333, 0.875, 0.833333],
            [0.875, 0.8125, 0.6875, 0.625],
            [0.625, 0.520833, 0.3125, 0.208333],
            [0.5, 0.375, 0.125, 0],
        ], atol=1e-6)  # fmt: skip

    def test_a_constant_map_says_nothing(self):
        maps = tf.fill([2, 3, 3], 7.0)
        with tf.GradientTape() as tape:
            tape.watch(maps)
            prior = class_prior(maps, 5)
            loss = tf.reduce_sum(prior)
        np.testing.assert_array_equal(prior, np.zeros([2, 5, 5]))
        assert np.isfinite(tape.gradient(loss, maps)).all()

    def test_scale_and_offset_do_not_matter(self):
        maps = normal(2, 3, 3)
        np.testing.assert_allclose(class_prior(30 * maps - 7, 6), class_prior(maps, 6), atol=1e-5)


class TestCoordinates:
    def test_channels_are_y_and_x(self):
        told = with_coordinates(tf.constant(normal(2, 3, 3, 4)))
        assert told.shape == (2, 3, 3, 6)
        np.testing.assert_array_equal(told[..., :4], normal(2, 3, 3, 4))
        for image in told[..., 4:].numpy():
            np.testing.assert_array_equal(image[..., 0], [[-1] * 3, [0] * 3, [1] * 3])
            np.testing.assert_array_equal(image[..., 1], [[-1, 0, 1]] * 3)

    def test_the_body_sees_them(self):
        """Without padding, a head that does not know where it is answers the same everywhere."""
        features, kernels = tf.ones([1, 9, 9, 3]), tf.ones([1, 4])
        inner = []
        for coordinates in (False, True):
            built = MaskHead(FCN(4, convs=1, upsampling=1), coordinates=coordinates)
            built(features, kernels)
            randomize(built)
            inner.append(np.ptp(built(features, kernels).numpy()[:, 2:-2, 2:-2]))
        assert inner[0] < 1e-5 < inner[1]


class TestOptions:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"mask_branches": "cam"}, "mask_branches=cam needs box_head=conv.*stage1_boxes"),
            ({"mask_branches": ("mlp",)}, "mask_branches=mlp must have coords, cam"),
            ({"mask_branches": ("coords", "coords")}, "must have coords, cam"),
        ],
    )
    def test_what_cannot_be_is_refused(self, changes, message):
        with pytest.raises(UserError, match=message):
            mx.Config(**changes)


@pytest.fixture(scope="module")
def model():
    return build_model(batches.tiny_config(**CAM), batches.NUM_CLASSES)


@pytest.mark.thorough
class TestModel:
    def test_the_prior_is_added_to_all_channels(self, model):
        pyramid = {level: tf.constant(normal(1, 64 >> level, 64 >> level, 16))
                   for level in model.fpn.backbone_levels}  # fmt: skip
        boxes, images = tf.constant([[4.0, 6, 40, 50], [1, 1, 60, 30]]), tf.constant([0, 0])
        classes = tf.constant([1, 2])
        size = model.config.mask_roi_size
        told = model.mask_roi_features(pyramid, boxes, images, classes)
        added = (told - model.flat_roi_features(pyramid, boxes, images, size)).numpy()
        seen = model.flat_roi_features(pyramid, boxes, images, model.config.box_roi_size)
        prior = class_prior(model.box_head.class_activations(seen, classes), size)
        np.testing.assert_allclose(added, np.repeat(prior[..., None], 16, axis=-1), atol=1e-5)
        other = model.mask_roi_features(pyramid, boxes, images, tf.constant([3, 2]))
        assert np.abs((told - other)[0]).max() > 0 and np.abs((told - other)[1]).max() == 0

    def test_caches_know_the_prior_and_not_the_coordinates(self, model, tmp_path):
        def key(*branches):
            config = model.config.replace(mask_branches=branches)
            return feature_cache.key(model, config, [])

        with pytest.MonkeyPatch.context() as patch:
            files = type("Files", (), {"shards": {}, "paths": []})
            patch.setattr(feature_cache, "find_records", lambda _: files)
            assert key() == key("coords") != key("cam") == key("cam", "coords")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["stage2_masks", "end_to_end"])
def test_branches_train_resume_evaluate_grow_and_are_exported(mode, shapes_data, tmp_path):
    """On cached features, as without a cache; the export compares itself with the model."""
    common = CAM | {"mask_branches": ("coords", "cam"), "score_threshold": 0.0}
    common |= {"box_norm": "group_norm"}
    start = ""
    if mode == "stage2_masks":
        start = str(tmp_path / "stage1")
        first = runs.config(shapes_data, tmp_path / "stage1", mode="stage1_boxes", train_steps=1,
                            **common)  # fmt: skip
        training.train(first)
    config = runs.config(
        shapes_data,
        tmp_path / "plain",
        mode=mode,
        init_checkpoint=start,
        train_steps=2,
        checkpoint_interval=1,
        **common,
    )
    cache = str(tmp_path / "cache") if start else ""
    whole_way.check(config, shapes_data, tmp_path, cache, atol=1e-5)
