"""Each mask body against an independent oracle; every one of them through the whole house."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
from official.projects.deepmac_maskrcnn.modeling.heads import hourglass_network as official

import maskx_tf as mx
from maskx_tf import checkpoints, training
from maskx_tf.assembly import build_model
from maskx_tf.errors import UserError
from maskx_tf.layers import choices
from maskx_tf.layers.backbone import ConvNorm, ResidualBlock
from maskx_tf.layers.mask_bodies import aspp, hourglass
from maskx_tf.layers.mask_bodies.body import Deconvolution, in_rows
from maskx_tf.layers.mask_bodies.fcis import FCIS
from maskx_tf.layers.mask_bodies.fcn import FCN
from maskx_tf.layers.mask_bodies.gcn import GCN
from maskx_tf.layers.mask_bodies.mlp import MLP
from maskx_tf.layers.mask_head import MaskHead
from maskx_tf.objective import training_losses
from tests import batches, flagfiles, runs, whole_way
from tests.harness import thorough
from tests.layer_check import randomize


def normal(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def conv(x, kernel, bias=0.0):
    """A convolution with a kernel [h, w, C, K] of odd sides, zeros around."""
    return tf.nn.conv2d(x, kernel, 1, "SAME").numpy() + bias


def relu(x):
    return np.maximum(x, 0)


class TestHourglass:
    def test_is_model_gardens(self):
        self.check(10, side=6)

    @pytest.mark.thorough
    @pytest.mark.parametrize(("depth", "side"), [(20, 8), (32, 8), (52, 32), (100, 32)])
    def test_is_model_gardens_at_any_depth(self, depth, side):
        self.check(depth, side)

    def check(self, depth, side):
        x = normal(2, side, side, 5)
        theirs = _official(depth, 4)
        theirs(x)
        randomize(theirs)
        ours = hourglass.Hourglass(depth, filters=4, upsampling=1, norm="batch_norm")
        ours(x)
        pairs = list(zip(_layers(theirs), _layers(ours), strict=True))
        for of_theirs, of_ours in pairs:
            of_ours.set_weights(of_theirs.get_weights())
        copied = sum(len(layer.weights) for _, layer in pairs)
        assert copied == len(ours.weights) == len(theirs.weights)
        [wanted] = theirs(x)
        atol = 1e-5 * np.abs(wanted).max()
        np.testing.assert_allclose(in_rows(ours(x)), wanted, rtol=1e-5, atol=atol)

    @pytest.mark.parametrize(
        ("depth", "count"),
        [
            (10, 108_384),
            thorough(20, 354_752),
            thorough(32, 662_816),
            thorough(52, 1_478_816),
            thorough(100, 2_969_120),
        ],
    )
    def test_published_sizes(self, depth, count):
        """Trainable weights at a quarter of the published width, counted in Model Garden's."""
        body = hourglass.Hourglass(depth, filters=16, upsampling=1, norm="batch_norm")
        body(tf.zeros([1, 32, 32, 64]))
        assert sum(int(tf.size(v)) for v in body.trainable_variables) == count

    def test_without_norm_what_is_added_starts_at_zero(self):
        body = hourglass.hourglass20(filters=4)
        x = normal(1, 8, 8, 3)
        values = [np.abs(in_rows(body(scale * x))).max() for scale in (1.0, 10.0)]
        assert values[1] == pytest.approx(10 * values[0], rel=1e-4)  # no bias, linear but for ReLU
        assert 0.01 < values[0] < 100


def _official(depth, filters):
    blocks, channels = hourglass.DEPTHS[depth]
    return official.HourglassNetwork(
        len(blocks) - 1,
        filters,
        [filters * factor for factor in channels],
        blocks,
        num_hourglasses=1,
        initial_downsample=False,
    )


def _layers(net):
    """Convolutions and norms in the order of the description, of either implementation."""
    if isinstance(net, official.HourglassNetwork):
        stages = [net.conv_input.conv_block, net.conv_input.residual_block]
        stages += [net.hourglass_network[0], net.output_conv[0]]
    elif isinstance(net, hourglass.Hourglass):
        stages = [net.first, net.widen, net.encoder_decoder, net.last]
    elif isinstance(net, official.EncoderDecoderBlock):
        stages = [*net.encoder_block1, *net.encoder_block2, *net.inner_block, *net.decoder_block]
    elif isinstance(net, hourglass.EncoderDecoder):
        stages = [*net.across, *net.down, *net.inner, *net.up]
    elif isinstance(net, official.ResidualBlock):
        is_projected = isinstance(net.skip, official.SkipConvolution)
        stages = [net.conv_block, net, *([net.skip] if is_projected else [])]
    elif isinstance(net, ResidualBlock):
        stages = [*net.convs, *([net.shortcut] if net.shortcut else [])]
    for stage in stages:
        if hasattr(stage, "conv") and (stage is net or not _is_block(stage)):
            yield from (stage.conv, stage.norm)
        else:
            yield from _layers(stage)


def _is_block(layer):
    return isinstance(layer, official.ResidualBlock)


class TestASPP:
    def test_dilation_is_the_definition(self):
        """Worked by hand: rate 2, zeros around, on 0 to 24 in rows of 5."""
        layer = ConvNorm(1, 3, 1, "none", relu=False, dilation=2)
        x = np.arange(25, dtype=np.float32).reshape(1, 5, 5, 1)
        layer(x)
        kernel = [[1, 0, -1], [2, 0, -2], [1, 0, -1]]
        layer.set_weights([np.reshape(kernel, [3, 3, 1, 1]), np.zeros(1)])
        wanted = [
            [-16, -19, -12, 13, 16],
            [-31, -34, -12, 28, 31],
            [-48, -52, -16, 44, 48],
            [-41, -44, -12, 38, 41],
            [-56, -59, -12, 53, 56],
        ]
        np.testing.assert_array_equal(layer(x)[0, :, :, 0], wanted)

    @pytest.mark.parametrize(
        ("side", "wanted"), [(7, [1, 1, 2, 3]), (14, [1, 2, 4, 6]), (28, [2, 4, 8, 12])]
    )
    def test_rates_scale_with_the_side(self, side, wanted):
        assert aspp.rates(side) == wanted

    def test_v2_sums_four_rates(self):
        x = normal(2, 14, 14, 3)
        body = awake(aspp.ASPPv2(4, upsampling=1), x)
        wanted = 0
        for rate, atrous, mixed in zip((1, 2, 4, 6), body.atrous, body.mixed, strict=True):
            kernel, bias = atrous.conv.get_weights()
            y = relu(conv(x, dilated(kernel, rate), bias))
            wanted += relu(y @ mixed.conv.kernel.numpy()[0, 0] + mixed.conv.bias.numpy())
        np.testing.assert_allclose(in_rows(body(x)), wanted, atol=1e-4)

    def test_v3_concatenates_rates_and_the_mean(self):
        x = normal(2, 14, 14, 3)
        body = awake(aspp.ASPPv3(4, upsampling=1), x)
        maps = []
        for rate, layer in zip((1, 2, 4, 6), body.parallel, strict=True):
            kernel, bias = layer.conv.get_weights()
            maps.append(relu(conv(x, dilated(kernel, rate), bias)))
        mean = x.mean((1, 2)) @ body.pooled.conv.kernel.numpy()[0, 0]
        mean = relu(mean + body.pooled.conv.bias.numpy())
        maps.append(np.broadcast_to(mean[:, None, None], maps[0].shape))
        kernel, bias = body.mixed.conv.get_weights()
        wanted = relu(np.concatenate(maps, -1) @ kernel[0, 0] + bias)
        np.testing.assert_allclose(in_rows(body(x)), wanted, atol=1e-4)


def dilated(kernel, rate):
    """The kernel with zeros between its taps."""
    size = kernel.shape[0]
    wide = np.zeros([rate * (size - 1) + 1] * 2 + list(kernel.shape[2:]), np.float32)
    wide[::rate, ::rate] = kernel
    return wide


def awake(body, x):
    body(x)
    randomize(body)
    return body


class TestGCN:
    def test_an_impulse_through_the_large_kernel(self):
        """Worked by hand: left 3x1 then 1x3, right 1x3 then 3x1."""
        body = GCN(1, kernel=3, upsampling=1)
        x = np.zeros([1, 5, 5, 1], np.float32)
        x[0, 2, 2] = 1
        body(x)
        for layer, taps in zip(
            (*body.left, *body.right), ([1, 2, 3], [1, 0, -1], [1, 1, 1], [2, 1, 0]), strict=True
        ):
            layer.conv.set_weights([np.reshape(taps, layer.conv.kernel.shape), np.zeros(1)])
        found = body.large_kernel(tf.constant(x))[0, 1:4, 1:4, 0]
        np.testing.assert_allclose(found, [[-3, 0, 3], [-1, 1, 3], [1, 2, 3]], atol=1e-6)

    def test_refinement_starts_as_the_identity_and_adds_a_residual(self):
        body = GCN(2, kernel=3, upsampling=1)
        x = normal(1, 5, 5, 2)
        np.testing.assert_allclose(in_rows(body(x)), body.large_kernel(tf.constant(x)), atol=1e-6)
        randomize(body)
        y = body.large_kernel(tf.constant(x)).numpy()
        hidden = relu(conv(y, *body.coarse.hidden.conv.get_weights()))
        wanted = y + conv(hidden, *body.coarse.change.conv.get_weights())
        np.testing.assert_allclose(in_rows(body(x)), wanted, atol=1e-4)


class TestMLP:
    def body(self, **options):
        body = MLP(2, **options)
        body(tf.zeros([1, 1, 1, 4]))
        kernel = np.transpose([[1, 0], [0, 1], [1, 1], [1, -1]])
        body.pixels.set_weights([kernel, np.array([0, 0.5, -0.5, 0])])
        return body

    def test_a_class_gates_the_code(self):
        """Worked by hand: gates (1, 0.5), (1, 1), and (1, 0.5) without the 1."""
        code = tf.constant([[1.0, 2.0]])
        body = self.body()
        for kernel, wanted in [((0, -0.5), [1, 1.5, 1.5, 0]), ((0, 0), [1, 2.5, 2.5, -1])]:
            found = body.logits(code, tf.constant([kernel], tf.float32))
            np.testing.assert_allclose(found, np.reshape(wanted, [1, 2, 2]), atol=1e-6)
        found = self.body(mlp=False).logits(code, tf.constant([[1.0, 0.5]]))
        np.testing.assert_allclose(found, [[[1, 1.5], [1.5, 0]]], atol=1e-6)

    def test_the_code_is_linear_in_a_reduced_map(self):
        x = normal(3, 4, 4, 5)
        body = awake(MLP(8), x)
        kernel, bias = body.reduce.conv.get_weights()
        reduced = relu(x @ kernel[0, 0] + bias).reshape(3, -1)
        weights, bias = body.code.get_weights()
        assert reduced.shape[1] == 4 * 4 * 2
        np.testing.assert_allclose(body(x), reduced @ weights + bias, atol=1e-4)


class TestFCIS:
    def test_worked_by_hand(self):
        """Outside [1 2; 0 -1] and inside [3 1; 0 1] in each part: logits, and one joint score."""
        body = FCIS(2, upsampling=1)
        x = np.tile([[[[1, 3]], [[2, 1]]], [[[0, 0]], [[-1, 1]]]], [7, 7, 1, 1]).astype(np.float32)
        x = x.reshape(7, 2, 7, 2, 2).transpose(0, 2, 1, 3, 4)[None]
        inside_outside = tf.constant([[0.0, 1, 1, 0]])
        masks = tf.sigmoid(body.logits(tf.constant(x), inside_outside))[0]
        wanted = [[0.880797, 0.268941], [0.5, 0.880797]]
        np.testing.assert_allclose(masks[4:6, 8:10], wanted, atol=1e-6)
        np.testing.assert_allclose(body.scores(tf.constant(x), inside_outside[None]), [[1.5]])

    @pytest.mark.parametrize("upsampling", [1, thorough(2)])
    @pytest.mark.parametrize("output", ["transfer", "class_specific"])
    def test_is_the_definition(self, output, upsampling):
        """A pixel has its part's kernels; the class's come after them, or are them."""
        x, side = normal(2, 14, 14, 5), 14 * upsampling
        body = awake(FCIS(3, upsampling, output=output), x)
        reduced = relu(x @ body.reduce.conv.kernel.numpy()[0, 0] + body.reduce.conv.bias.numpy())
        reduced = tf.image.resize(reduced, [side, side]).numpy()
        of_classes = normal(4, body.filters)
        parts = np.arange(side) * 7 // side
        maps = np.zeros([2, 4, 2, side, side])
        for (i, y), (j, x_) in itertools.product(enumerate(parts), enumerate(parts)):
            pixel, part = reduced[:, i, j], 7 * y + x_
            if output == "transfer":
                pixel = pixel @ body.part_kernels.numpy()[part] + body.part_biases.numpy()[part]
                kernels = of_classes.reshape(4, 2, 3)
            else:
                kernels = of_classes.reshape(4, 2, 49, 3)[:, :, part]
            maps[..., i, j] = np.einsum("nc,ktc->nkt", pixel, kernels)
        features = body(x)
        chosen = tf.constant(of_classes[[3, 1]])
        wanted = (maps[:, :, 0] - maps[:, :, 1])[[0, 1], [3, 1]]
        np.testing.assert_allclose(body.logits(features, chosen), wanted, atol=1e-4)
        kernels = tf.constant(of_classes)
        kernels = tf.stack([kernels, kernels]) if output == "transfer" else kernels
        wanted = maps.max(2).mean((2, 3))
        np.testing.assert_allclose(body.scores(features, kernels), wanted, atol=1e-4)
        wanted = tf.sigmoid(maps[:, :, 0] - maps[:, :, 1])
        np.testing.assert_allclose(body.masks(features, kernels), wanted, atol=1e-4)


class TestUpsampling:
    @pytest.mark.parametrize("upsampling", [1, 2, 4])
    def test_deconvolutions_are_tensorflows(self, upsampling):
        x = normal(2, 3, 3, 5)
        body = awake(FCN(4, convs=1, upsampling=upsampling), x)
        wanted = body.convs[0](x)
        for layer in body.deconvolutions:
            shape = [2, 2 * wanted.shape[1], 2 * wanted.shape[1], 4]
            wanted = tf.nn.conv2d_transpose(wanted, layer.kernel, shape, 2) + layer.bias
            wanted = tf.nn.relu(wanted)
        assert wanted.shape[1] == 3 * upsampling
        np.testing.assert_allclose(in_rows(body(x)), wanted, atol=1e-4)

    def test_norm_comes_before_the_relu(self):
        x = normal(2, 3, 3, 1, 1, 5)
        layer = Deconvolution(4, "group_norm", name="deconv")
        y = in_rows(layer(x))
        kernel = layer.kernel.numpy()
        plain = np.einsum("nyxc,ijkc->nyixjk", x[:, :, :, 0, 0], kernel).reshape(2, 6, 6, 4)
        scale = np.sqrt(plain.var((1, 2, 3), keepdims=True) + layer.norm.epsilon)
        wanted = relu((plain - plain.mean((1, 2, 3), keepdims=True)) / scale)
        np.testing.assert_allclose(y, wanted, atol=1e-4)


class TestNorm:
    def test_batch_norm_learns_statistics_in_training_only(self):
        config = batches.tiny_config(mask_norm="batch_norm", mask_mlp=False)
        model = build_model(config, batches.NUM_CLASSES)
        features, classes = normal(4, 7, 7, 16), tf.constant([1, 2, 3, 4])
        moving = [v for v in model.mask_head.non_trainable_weights if "moving_mean" in v.name]
        assert len(moving) == 2
        model.mask_logits(features, classes)
        assert not np.any(moving[0])
        labels = batches.to_tensors(batches.random_labels())
        training_losses(model, batches.random_features(), labels, tf.constant([0, 0]))
        assert np.any(moving[0]) and np.any(moving[1])
        trained = model.mask_logits(features, classes, training=True)
        first = model.mask_logits(features[:1], classes[:1], training=True)
        assert np.abs(first - trained[:1]).max() > 1e-6  # another batch, other statistics

    @pytest.mark.parametrize("body", choices.MASK_BODIES)
    def test_every_body_has_group_norm_for_any_number_of_channels(self, body):
        choice = choices.MASK_BODIES[body]
        if choice.divisor > 4:
            pytest.skip("as hourglass20")
        head = MaskHead(choices.load(choice.constructor)(filters=12, norm="group_norm"))
        x = normal(2, 4, 4, 3)
        kernels = normal(2, head.body.filters)
        logits = head(x, kernels)
        assert any("gamma" in v.name for v in head.weights)
        assert np.isfinite(logits).all()
        # A RoI is normalised by itself.
        np.testing.assert_allclose(head(x[:1], kernels[:1]), logits[:1], atol=1e-4)


class TestOptions:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"mask_body": "hourglass20"}, "mask_roi_size=14.*multiple of 4.*hourglass20"),
            ({"mask_body": "hourglass100", "mask_roi_size": 48}, "multiple of 32"),
            ({"mask_upsampling": 3}, "mask_upsampling=3 must be 1, 2, 4 or 8"),
            ({"mask_kernel": 4}, "mask_kernel=4 .*odd"),
        ],
    )
    def test_sides_that_do_not_fit_are_refused(self, changes, message):
        with pytest.raises(UserError, match=message):
            mx.Config(**changes)

    def test_side_of_the_mask(self):
        sides = [(14, 2, 28), (28, 2, 56), (14, 8, 112), (56, 1, 56)]
        for side, upsampling, wanted in sides:
            config = mx.Config(mask_roi_size=side, mask_upsampling=upsampling)
            assert config.mask_size == wanted
        assert mx.Config(mask_body="hourglass52", mask_roi_size=32).mask_size == 64

    def test_kernels_are_as_long_as_the_body_is_wide(self):
        config = batches.tiny_config(
            mask_body="hourglass10", mask_roi_size=4, mask_upsampling=1, mask_mlp=False
        )
        model = build_model(config, batches.NUM_CLASSES)
        assert model.w_seg(tf.constant([1, 2])).shape == (2, 2 * config.mask_filters)
        assert model.mask_logits(normal(2, 4, 4, 16), tf.constant([1, 2])).shape == (2, 4, 4)


# More layers of the kind that hourglass20 has: minutes each to trace and export, and nothing new.
# test_fcis has its own.
OTHERS = ("hourglass32", "hourglass52", "hourglass100", "fcis")


@pytest.mark.slow
@pytest.mark.parametrize("body", [name for name in choices.MASK_BODIES if name not in OTHERS])
def test_every_body_trains_resumes_evaluates_grows_and_is_exported(
    body, shapes_data, stage_1, tmp_path
):
    """On cached features, as without a cache; the export compares itself with the model."""
    side = max(4, choices.MASK_BODIES[body].divisor)
    config = whole_way.stage_2(
        shapes_data,
        tmp_path,
        stage_1,
        mask_body=body,
        mask_roi_size=side,
        mask_filters=4,
        mask_norm="group_norm",
        mask_mlp=side <= 8,
    )
    whole_way.check(config, shapes_data, tmp_path, str(tmp_path / "cache"), atol=1e-6)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("body", [name for name in choices.MASK_BODIES if name != "fcn"])
@pytest.mark.thorough
def test_every_body_trains_in_half_precision(body, precision):
    if (precision, body[:4]) == ("float16", "aspp") and not tf.config.list_physical_devices("GPU"):
        pytest.skip("TensorFlow's CPU has no float16 gradient of dilated kernels")
    side = max(4, choices.MASK_BODIES[body].divisor)
    config = batches.tiny_config(
        mask_body=body,
        mask_roi_size=side,
        mask_mlp=False,
        mask_norm="batch_norm",
        precision=precision,
    )
    model = build_model(config, batches.NUM_CLASSES)
    features, classes = normal(3, side, side, 16), tf.constant([1, 2, 3])
    with tf.GradientTape() as tape:
        logits = model.mask_logits(features, classes, training=True)
        loss = tf.reduce_mean(logits**2 - logits)
    gradients = tape.gradient(loss, model.mask_head.trainable_variables)
    assert logits.dtype == tf.float32 and np.isfinite(logits).all()
    assert all(np.isfinite(tf.convert_to_tensor(gradient)).all() for gradient in gradients)


@pytest.mark.slow
@pytest.mark.parametrize("path", flagfiles.HEADS, ids=lambda path: path.stem)
def test_every_head_of_coco_trains_three_steps(path, shapes_data, tmp_path):
    """On small images of Shapes and a narrow detector: the flagfile is one that can be trained."""
    of_data = runs.config(shapes_data, tmp_path, mode="end_to_end")
    config = flagfiles.parse(path).replace(
        **{name: getattr(of_data, name) for name in ("train_records", "mask_classes")},
        eval_records=(),
        model_dir=str(tmp_path / "run"),
        train_steps=3,
        lr_steps=(),
        learning_rate=1e-9,  # of random weights without norms, gradients are huge
        backbone_width=8,
        fpn_filters=32,
        rpn_filters=32,
        box_fc_units=64,
        image_min_side=64,
        image_max_side=64,
        batch_size=1,
        roi_batch_size=8,
        rpn_post_nms_train=20,
        num_gpus=0,
    )
    training.train(config)
    assert checkpoints.latest_checkpoint(config.model_dir).endswith("ckpt-3")
