"""Semantic heads: targets and loss by hand, published upsampling, maps of classes cut by boxes."""

import numpy as np
import pytest
import tensorflow as tf

from maskx_tf import losses, objective
from maskx_tf.assembly import build_model
from maskx_tf.errors import UserError
from maskx_tf.frozen import training as feature_cache
from maskx_tf.layers import choices, semantic_head
from maskx_tf.layers.mask_bodies.gcn import GCN
from maskx_tf.model import variable_key
from maskx_tf.ops.semantic_targets import semantic_targets
from tests import batches, tiny, whole_way

SEED = tf.constant([0, 0])


class TestTargets:
    """Two images of 8 x 12 pixels as 4 x 6 cells; boxes with whole cells in them."""

    BOXES = np.array(
        [
            [[0, 0, 4, 4], [4, 4, 8, 8], [2, 2, 6, 8], [0, 8, 4, 12]],
            [[0, 0, 8, 4], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]],
        ],
        np.float32,
    )
    CLASSES = np.array([[3, 5, 2, 3], [7, 0, 0, 0]], np.int32)
    USABLE = np.array([[True, True, False, True], [True, False, False, False]])

    def targets(self, weights=None, usable=USABLE):
        masks = np.ones([2, 4, 2, 2], np.uint8)
        masks[0, 1] = [[1, 0], [0, 1]]
        sizes = tf.constant([[8.0, 12], [8, 10]])
        return semantic_targets(
            tf.constant(masks),
            *map(tf.constant, (self.BOXES, self.CLASSES, usable)),
            *(sizes, tf.constant([4, 6]), 2),
            weights,
        )

    def test_by_hand(self):
        found = self.targets()
        np.testing.assert_array_equal(found.classes, [[3, 5], [7, 0]])
        maps = np.zeros([2, 2, 4, 6])
        maps[0, 0, :2, :2] = maps[0, 0, :2, 4:] = 1  # both objects of class 3
        maps[0, 1, 2, 2] = maps[0, 1, 3, 3] = 1
        maps[1, 0, :, :2] = 1
        np.testing.assert_array_equal(found.maps, maps)
        known = np.ones([2, 4, 6])
        known[0, 1:3, 1:4] = 0  # the box of the object without a mask,
        known[0, 1, 1] = known[0, 2, 2] = 1  # but for what masks say
        known[1, :, 5:] = 0  # beyond the image
        np.testing.assert_array_equal(found.weights, known)

    def test_pixels_have_the_weights_of_their_masks(self):
        weights = np.array([[0.5, 1, 1, 0.25], [1, 1, 1, 1]], np.float32)
        found, plain = self.targets(tf.constant(weights)), self.targets()
        np.testing.assert_array_equal(found.maps, plain.maps)
        wanted = plain.weights.numpy()
        wanted[0, :2, :2], wanted[0, :2, 4:] = 0.5, 0.25
        np.testing.assert_array_equal(found.weights, wanted)

    def test_without_a_mask_boxes_are_unknown_and_there_is_no_map(self):
        found = self.targets(usable=np.zeros([2, 4], bool))
        np.testing.assert_array_equal(found.classes, [[0], [0]])
        assert not found.maps.numpy().any()
        assert found.weights.numpy()[0, :2, :2].sum() == 0 < found.weights.numpy()[0].sum()
        value, count = losses.semantic_loss(
            tf.ones_like(found.maps), found.maps, found.weights, found.classes > 0
        )
        assert float(value) == float(count) == 0


def test_loss_by_hand():
    logits = np.array([[[[0.0, 2], [-1, 1]], [[3, -3], [9, 9]]]] * 2, np.float32)
    targets = np.array([[[[1.0, 1], [0, 1]], [[0, 0], [1, 1]]]] * 2, np.float32)
    weights = np.array([[[1, 0], [1, 0.5]], [[0, 0], [0, 0]]], np.float32)
    valid = np.array([[True, False], [True, True]])
    value, count = losses.semantic_loss(*map(tf.constant, (logits, targets, weights, valid)))
    first = (np.log(2) + np.log1p(np.exp(-1)) + 0.5 * np.log1p(np.exp(-1))) / 3
    assert (float(value), float(count)) == (pytest.approx(first / 3), 3)


def bilinear_kernel(size):
    """As FCN's code has it, for a deconvolution of stride size / 2."""
    factor = (size + 1) // 2
    profile = 1 - abs(np.arange(size) - (factor - 0.5)) / factor
    return np.outer(profile, profile).astype(np.float32)


class TestUpsampling:
    def deconvolved(self, x, times=1):
        for _ in range(times):
            shape = [x.shape[0], 2 * x.shape[1], 2 * x.shape[2], x.shape[3]]
            kernel = bilinear_kernel(4)[:, :, None, None] * np.eye(x.shape[3], dtype=np.float32)
            x = tf.nn.conv2d_transpose(x, kernel, shape, 2)
        return x

    def test_published_deconvolution(self):
        """The oracle itself: TensorFlow's with the bilinear kernel."""
        np.testing.assert_array_equal(bilinear_kernel(4)[0], [0.0625, 0.1875, 0.1875, 0.0625])
        x = tf.constant([[0.0, 1], [2, 3]])[None, :, :, None]
        wanted = [
            [0, 0.1875, 0.5625, 0.5625],
            [0.375, 0.75, 1.25, 1.125],
            [1.125, 1.75, 2.25, 1.875],
            [1.125, 1.6875, 2.0625, 1.6875],
        ]
        np.testing.assert_allclose(self.deconvolved(x)[0, :, :, 0], wanted)

    def test_it_is_that_but_at_the_border(self):
        x = tf.random.stateless_normal([2, 5, 7, 3], SEED)
        found, wanted = semantic_head.upsample(x), self.deconvolved(x)
        inner = (slice(None), slice(1, -1), slice(1, -1))
        np.testing.assert_allclose(found[inner], wanted[inner], atol=1e-6)
        np.testing.assert_allclose(found[:, 0, 0], x[:, 0, 0], atol=1e-6)

    def test_fcn8s_begins_as_fcn32s(self):
        """Skips are zero at first: the coarsest scores, upsampled twice."""
        pyramid = {
            level: tf.random.stateless_normal([1, 64 >> level, 96 >> level, 6], [level, 0])
            for level in (2, 3, 4)
        }
        coarse = semantic_head.fcn32s(levels=(2, 3, 4), filters=5)
        fine = semantic_head.fcn8s(levels=(2, 3, 4), filters=5)
        assert (coarse.level, fine.level) == (4, 2)
        wanted = coarse(pyramid)
        fine(pyramid)
        for layer, other in zip(fine.coarsest, coarse.coarsest, strict=True):
            layer.set_weights(other.get_weights())
        found = fine(pyramid)
        np.testing.assert_array_equal(found, semantic_head.upsample(semantic_head.upsample(wanted)))
        kernel = tf.random.stateless_normal([5], SEED)  # a class's score, by hand
        skips = {level: np.array(fine.skips[str(level)].conv.kernel) for level in (2, 3)}
        assert not any(value.any() for value in skips.values())
        rng = np.random.default_rng(0)
        for level in skips:
            skips[level] = rng.normal(size=skips[level].shape).astype(np.float32)
            fine.skips[str(level)].conv.kernel.assign(skips[level])
        maps = {level: tf.linalg.matvec(pyramid[level] @ skips[level][0, 0], kernel)[..., None]
                for level in skips}  # fmt: skip
        score = semantic_head.upsample(tf.linalg.matvec(wanted, kernel)[..., None]) + maps[3]
        score = semantic_head.upsample(score) + maps[2]
        found = tf.linalg.matvec(fine(pyramid), kernel)
        np.testing.assert_allclose(found, score[..., 0], atol=1e-4)


def test_large_kernel_of_an_impulse():
    layer = GCN(1, 3, 1)
    x = np.zeros([1, 5, 5, 1], np.float32)
    x[0, 2, 2] = 1
    layer(tf.constant(x))
    kernels = {"left": ([1, 2, 3], [1, 0, -1]), "right": ([1, 1, 1], [2, 1, 0])}
    for name, values in kernels.items():
        for conv, value in zip(getattr(layer, name), values, strict=True):
            shape = conv.conv.kernel.shape
            conv.conv.kernel.assign(np.reshape(np.array(value, np.float32), shape))
    found = layer(tf.constant(x))[0, :, :, 0, 0, 0].numpy()  # the refinement adds nothing at first
    wanted = np.pad([[-3, 0, 3], [-1, 1, 3], [1, 2, 3]], 1)
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    ("name", "level", "side", "rates"),
    [
        ("deeplab_v2", 3, 1333, [6, 12, 18, 24]),
        ("deeplab_v2", 4, 513, [3, 6, 9, 12]),
        ("deeplab_v3", 4, 1333, [6, 12, 18]),
        ("deeplab_v3", 3, 1333, [12, 24, 36]),
        ("deeplab_v3", 3, 96, [2, 4, 7]),
    ],
)
def test_rates_are_the_published_ones_at_their_stride(name, level, side, rates):
    create = choices.load(choices.SEMANTIC_HEADS[name].constructor)
    head = create(levels=(2, level), image_max_side=side, filters=4)
    with tf.Graph().as_default():
        assert head({level: tf.zeros([1, 16, 16, 4])}).shape == (1, 16, 16, 4)
    convolutions = [layer.conv for layer in head.aspp.submodules if hasattr(layer, "conv")]
    dilated = [conv.dilation_rate[0] for conv in convolutions if conv.kernel_size == (3, 3)]
    assert sorted(dilated) == rates


class TestOptions:
    def test_heads_need_their_levels(self):
        with pytest.raises(UserError, match="fcn8s adds up 3 levels.*leave 2"):
            tiny.config(semantic_head="fcn8s", min_level=3)
        with pytest.raises(UserError, match="backbone_output_stride=8 leave 2"):
            tiny.config(semantic_head="fcn8s", backbone_output_stride=8)

    @pytest.mark.parametrize(
        "options", [{"mask_body": "gcn"}, {"point_head": "agnostic"}, {"loss_pairwise": 1.0}]
    )
    def test_maps_have_no_mask_head(self, options):
        assert tiny.config(semantic_head="gcn", semantic_masks="head", **options)
        with pytest.raises(UserError, match=f"{next(iter(options))}=.*semantic_masks=head"):
            tiny.config(semantic_head="gcn", **options)

    def test_features_of_rois_are_not_enough(self):
        config = tiny.config(mode="stage2_masks", semantic_head="gcn")
        with pytest.raises(UserError, match="semantic_head=gcn"):
            feature_cache.check(config)

    def test_losses(self):
        def weights(**changes):
            terms = objective.loss_terms(tiny.config(mode="stage2_masks", **changes))
            return {term.name: float(term.weight) for term in terms}

        assert weights() == {"mask": 1}
        assert weights(semantic_head="gcn") == {"semantic": 1}
        assert weights(semantic_head="gcn", semantic_masks="head") == {"mask": 1, "semantic": 0.2}


def randomized(**options):
    model = build_model(batches.tiny_config(score_threshold=0.0, **options), batches.NUM_CLASSES)
    rng = np.random.default_rng(0)
    for variable in model.trainable_variables:
        if variable_key(variable).split("/")[0] in ("box_head", "semantic_head", "weight_transfer"):
            variable.assign(variable + rng.normal(0, 0.1, variable.shape))
    return model


@pytest.mark.thorough
class TestModel:
    @pytest.fixture(scope="class")
    def model(self):
        return randomized(semantic_head="fcn8s", mode="end_to_end")

    @pytest.fixture(scope="class")
    def pyramid(self, model):
        features = batches.random_features()
        return model.pyramid(features["image"], features["image_size"])

    def test_a_mask_is_the_map_of_its_class_in_its_window(self, model, pyramid):
        """A box of whole cells, as large as the mask: its cells are those of the map."""
        size = model.config.mask_size  # 14 cells of 4 pixels
        boxes = tf.constant([[[0.0, 8, 56, 64]], [[4.0, 0, 60, 56]]])
        classes = tf.constant([[3], [5]])
        maps = tf.sigmoid(model.semantic_logits(model.semantic_head(pyramid), classes))
        masks = model.masks(pyramid, boxes, classes)
        assert np.ptp(maps) > 0.2
        np.testing.assert_allclose(masks[0, 0], maps[0, 0, :size, 2:], atol=1e-5)
        np.testing.assert_allclose(masks[1, 0], maps[1, 0, 1 : size + 1, :size], atol=1e-5)

    def test_nothing_is_made_for_all_classes(self, model, pyramid):
        boxes, ids = tf.zeros([1, 4, 4]), tf.ones([1, 4], tf.int32)
        model.mask_weights.fold(tf.zeros([3002, 8]))  # 8 channels
        try:
            function = tf.function(model.masks, autograph=False)
            graph = function.get_concrete_function(pyramid, boxes, ids).graph
        finally:
            model.mask_weights._table = None
        outputs = [output for operation in graph.get_operations() for output in operation.outputs]
        shapes = {tuple(output.shape) for output in outputs if output.shape.rank}
        assert len(shapes) > 20
        assert not [shape for shape in shapes if 3002 in shape]

    def test_only_masks_of_a_teach_it(self, model):
        """Those of B do nothing, wherever they are; its boxes hide the pixels in them."""
        features, labels = batches.random_features(), batches.random_labels()
        labels["has_mask"][:, 1] = False

        def gradients():
            with tf.GradientTape() as tape:
                tensors = batches.to_tensors(labels)
                found = objective.training_losses(model, features, tensors, SEED)
            variables = model.semantic_head.trainable_variables
            return [float(found["semantic"][0]), *tape.gradient(found["semantic"][0], variables)]

        before = gradients()
        labels["masks"][:, 1] ^= 1
        for value, same in zip(before, gradients(), strict=True):
            np.testing.assert_array_equal(value, same)
        labels["boxes_yxyx"][:, 1] = [0, 0, 64, 64]
        assert gradients()[0] != before[0]

    def test_where_the_gradient_goes(self, model):
        """Also to the pyramid, and to T; not to the class weights that T reads."""
        with tf.GradientTape() as tape:
            labels = batches.to_tensors(batches.random_labels())
            found = objective.training_losses(model, batches.random_features(), labels, SEED)
        assert "mask" not in found
        variables = model.trainable_variables
        gradients = tape.gradient(found["semantic"][0], variables)
        parts = {
            variable_key(variable).split("/")[0]
            for variable, gradient in zip(variables, gradients, strict=True)
            if gradient is not None and np.any(tf.convert_to_tensor(gradient).numpy())
        }
        assert parts == {"backbone", "fpn", "semantic_head", "weight_transfer"}

    def test_the_mask_head_sees_the_features_beside_its_own(self):
        model = randomized(semantic_head="fcn8s", semantic_masks="head", mode="end_to_end")
        features = batches.random_features()
        pyramid = model.pyramid(features["image"], features["image_size"])
        rois, images = tf.constant([[0.0, 0, 56, 56]]), tf.constant([1])
        found = model.mask_roi_features(pyramid, rois, images, tf.constant([2]))
        embedding = model.semantic_embedding(model.semantic_head(pyramid))
        own = model.flat_roi_features(pyramid, rois, images, 7)
        added = embedding[1:, :14, :14].numpy().reshape(1, 7, 2, 7, 2, -1).mean(axis=(2, 4))
        np.testing.assert_allclose(found, own + added, atol=1e-4)
        assert np.max(np.abs(added)) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"semantic_head": "fcn8s"},
        {"semantic_head": "deeplab_v3", "semantic_masks": "head", "mask_norm": "group_norm"},
    ],
)
def test_it_trains_resumes_evaluates_grows_and_is_exported(shapes_data, stage_1, tmp_path, options):
    config = whole_way.stage_2(shapes_data, tmp_path, stage_1, **options)
    whole_way.check(config, shapes_data, tmp_path, "", atol=1e-6)
