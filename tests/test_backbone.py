"""Backbones: shapes, what is frozen, and normalisation."""

import numpy as np
import pytest
import tensorflow as tf

from maskx_tf.layers import choices
from maskx_tf.layers.backbone import ConvNorm, ResNet, normalization_layer
from tests.harness import thorough


def kernels(backbone):
    """{stem layer or block: its convolution kernels}."""
    found = {}
    for variable in backbone.variables:
        parts = variable.name.removeprefix("backbone/").split("/")
        if parts[-2:] == ["conv", "kernel:0"]:
            found.setdefault(parts[0], []).append(variable)
    return found


@pytest.mark.parametrize(
    ("variant", "levels", "channels", "convolutions"),
    [
        ("resnet50", (2, 3, 4, 5), 16, 1 + 3 * 16 + 4),  # stem, blocks, projections
        thorough("resnet101", (2, 3, 4, 5), 16, 1 + 3 * 33 + 4),
        ("small", (2, 3, 4), 4, 2 + 2 * 3 + 2),
    ],
)
def test_levels_channels_and_depth(variant, levels, channels, convolutions):
    choice = choices.BACKBONES[variant]
    with tf.Graph().as_default():
        backbone = choices.load(choice.constructor)(width=4, name="backbone")
        features = backbone(tf.zeros([2, 64, 96, 3]))
    assert backbone.levels == levels and tuple(features) == levels
    assert levels[-1] == choice.last_stage
    for index, level in enumerate(levels):
        assert features[level].shape == (2, 64 >> level, 96 >> level, channels * 2**index)
    assert sum(len(group) for group in kernels(backbone).values()) == convolutions


@pytest.mark.parametrize(("size", "side"), [(1, 8), (3, 8), (3, 9), (7, 16)])
def test_stride_2_pads_both_sides_alike(size, side):
    """The output of an impulse equals the kernel read at offsets centred on 2 i."""
    layer = ConvNorm(1, size, 2, "batch_norm", relu=False)
    image = np.random.default_rng(0).normal(size=(1, side, side, 1)).astype(np.float32)
    out = layer(tf.constant(image))[0, ..., 0].numpy()
    kernel, pad = layer.conv.get_weights()[0][..., 0, 0], (size - 1) // 2
    padded = np.pad(image[0, ..., 0], pad)
    wanted = [
        [np.sum(padded[y : y + size, x : x + size] * kernel) for x in range(0, side, 2)]
        for y in range(0, side, 2)
    ]
    np.testing.assert_allclose(out, np.array(wanted) / np.sqrt(1 + 1e-5), atol=1e-5)


@pytest.mark.parametrize(("size", "side"), [(1, 8), (3, 8), (3, 9), (7, 16), (7, 17)])
def test_same_padding_is_tensorflows(size, side):
    """Even sides: the odd row and column of zeros is at the bottom and the right."""
    layer = ConvNorm(1, size, 2, "batch_norm", relu=False, padding="same")
    image = np.random.default_rng(0).normal(size=(1, side, side, 1)).astype(np.float32)
    out = layer(tf.constant(image))[0, ..., 0].numpy()
    total = max(0, (-(-side // 2) - 1) * 2 + size - side)
    padded = np.pad(image[0, ..., 0], [[total // 2, total - total // 2]] * 2)
    kernel = layer.conv.get_weights()[0][..., 0, 0]
    wanted = [
        [np.sum(padded[y : y + size, x : x + size] * kernel) for x in range(0, side, 2)]
        for y in range(0, side, 2)
    ]
    np.testing.assert_allclose(out, np.array(wanted) / np.sqrt(1 + 1e-5), atol=1e-5)


@pytest.mark.parametrize("norm", ["frozen_batch_norm", "group_norm"])
@pytest.mark.parametrize(("stride", "padding"), [(1, "symmetric"), (2, "symmetric"), (2, "same")])
def test_folding_changes_nothing_but_the_weights(norm, stride, padding):
    """Batch norm goes into the kernel and leaves the graph; group norm depends on the input."""
    layer = ConvNorm(16, 3, stride, norm, padding=padding)
    rng = np.random.default_rng(0)
    image = tf.constant(rng.normal(size=[2, 8, 10, 5]), tf.float32)
    layer(image)
    for variable in layer.norm.weights:
        variable.assign(rng.uniform(0.5, 2.0, variable.shape))
    expected = layer(image)
    layer.fold()
    np.testing.assert_allclose(layer(image), expected, atol=1e-5)
    for variable in layer.norm.weights:
        variable.assign(tf.zeros_like(variable))
    is_folded = np.allclose(layer(image), expected, atol=1e-5)
    assert is_folded == (norm == "frozen_batch_norm")


@pytest.mark.parametrize("variant", ["resnet50", "small"])
def test_same_padding_shifts_features_of_even_sides_only(variant):
    """With sides 2^n + 1 every stride-2 input is odd, and both paddings are the same."""
    found = {}
    for padding in ("symmetric", "same"):
        backbone = ResNet(variant, 4, stride_on="3x3", padding=padding)
        for side in (64, 65):
            backbone(tf.zeros([1, side, side, 3]))
            for index, variable in enumerate(backbone.weights):
                if "kernel" in variable.name:
                    value = tf.random.stateless_normal(variable.shape, (0, index))
                    variable.assign(value / tf.sqrt(float(np.prod(variable.shape[:-1]))))
            image = tf.random.stateless_normal([1, side, side, 3], (1, 1))
            found[padding, side] = backbone(image)
    for level, odd in found["same", 65].items():
        np.testing.assert_allclose(odd, found["symmetric", 65][level], rtol=1e-4, atol=1e-6)
        even, other = found["same", 64][level], found["symmetric", 64][level]
        assert even.shape == other.shape
        assert np.max(np.abs(even - other)) > 0.1 * np.max(np.abs(other))


@pytest.mark.parametrize(
    ("frozen_stages", "trained"),
    [
        (0, {"stem1", "stem2", "res2_0", "res3_0", "res4_0"}),
        (1, {"res2_0", "res3_0", "res4_0"}),
        (2, {"res3_0", "res4_0"}),
        (4, set()),
    ],
)
def test_frozen_stages(frozen_stages, trained):
    backbone = ResNet("small", 4, "batch_norm", frozen_stages=frozen_stages, name="backbone")
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        images = tf.random.stateless_normal([2, 32, 32, 3], (0, 1))
        tape.watch(images)
        backbone(images)
        tape.watch(backbone.variables)
        features = backbone(images, training=True)
        loss = tf.add_n([tf.reduce_sum(f**2) for f in features.values()])
    trainable = {id(v) for v in backbone.trainable_variables}
    groups = kernels(backbone)
    gradients = tape.gradient(loss, [groups, images])
    assert {name for name, group in groups.items() if id(group[0]) in trainable} == trained
    reached = {name for name, values in gradients[0].items() if values[0] is not None}
    assert reached == trained
    assert (gradients[1] is None) == (frozen_stages > 0)


def test_frozen_batch_norm_is_a_fixed_affine_map():
    backbone = ResNet("small", width=4, normalization="frozen_batch_norm", frozen_stages=0)
    images = tf.random.stateless_normal([2, 32, 32, 3], (0, 1))
    before = backbone(images, training=True)
    assert not [v for v in backbone.trainable_variables if "norm" in v.name]
    after = backbone(images, training=False)  # would differ, had statistics been used or moved
    for level in backbone.levels:
        np.testing.assert_array_equal(before[level], after[level])


def test_batch_norm_of_a_frozen_stage_keeps_its_statistics():
    backbone = ResNet("small", width=4, normalization="batch_norm", frozen_stages=2)
    backbone(tf.random.stateless_normal([2, 32, 32, 3], (0, 1)), training=True)
    moving = [v for v in backbone.variables if "moving_mean" in v.name]
    moved = {part for v in moving if np.any(v) for part in v.name.split("/") if "_0" in part}
    assert moved == {"res3_0", "res4_0"}


@pytest.mark.parametrize(("channels", "groups"), [(8, 1), (32, 2), (256, 16)])
def test_group_norm_has_16_channels_a_group(channels, groups):
    x = np.random.default_rng(0).normal(3, 2, (2, 4, 4, channels)).astype(np.float32)
    out = normalization_layer("group_norm", "norm")(tf.constant(x))
    grouped = x.reshape(2, 16, groups, channels // groups)
    mean = grouped.mean(axis=(1, 3), keepdims=True)
    wanted = (grouped - mean) / np.sqrt(grouped.var(axis=(1, 3), keepdims=True) + 1e-3)
    np.testing.assert_allclose(out, wanted.reshape(x.shape), atol=1e-3)
