"""Dilated backbones: the strided ones' features with others between, rates, levels."""

import numpy as np
import pytest
import tensorflow as tf

from maskx_tf.errors import UserError
from maskx_tf.layers.backbone import ConvNorm, ResidualBlock, ResNet
from maskx_tf.layers.convolution import algorithm
from tests import batches, tiny
from tests.harness import thorough


def randomize(backbone):
    """Weights of which every layer's features are of the same size."""
    for index, variable in enumerate(backbone.weights):
        if "kernel" in variable.name:
            value = tf.random.stateless_normal(variable.shape, (0, index))
            variable.assign(value * (2 / np.prod(variable.shape[:-1])) ** 0.5)


@pytest.mark.parametrize(
    ("variant", "stride_on", "padding", "last_level"),
    [
        ("small", "1x1", "symmetric", 3),
        thorough("small", "1x1", "same", 3),
        thorough("resnet50", "1x1", "symmetric", 4),
        thorough("resnet50", "1x1", "symmetric", 3),
        thorough("resnet50", "3x3", "symmetric", 3),
        thorough("resnet50", "3x3", "same", 3),
        thorough("resnet50", "1x1", "caffe", 3),
    ],
)
def test_every_nth_position_is_the_strided_networks(variant, stride_on, padding, last_level):
    arguments = {"stride_on": stride_on, "padding": padding, "width": 4, "name": "backbone"}
    strided = ResNet(variant, **arguments)
    dilated = ResNet(variant, output_stride=2**last_level, **arguments)
    images = tf.random.stateless_normal([1, 64, 96, 3], (1, 1))
    strided(images), dilated(images)
    randomize(strided)
    assert [v.name for v in strided.weights] == [v.name for v in dilated.weights]
    dilated.set_weights(strided.get_weights())
    wanted, found = strided(images), dilated(images)
    last = max(strided.levels)
    assert tuple(found) == dilated.levels == tuple(range(2, last_level + 1))
    every = 2 ** (last - last_level)
    assert found[last_level].shape[1] == 64 / 2**last_level
    # In other sides the library may add up in another order.
    atol = 1e-6 * np.max(wanted[last])
    np.testing.assert_allclose(found[last_level][:, ::every, ::every], wanted[last], 0, atol)
    for level in dilated.levels[:-1]:
        np.testing.assert_array_equal(found[level], wanted[level])


@pytest.mark.parametrize(("stride_on", "rates"), [("1x1", [4, 4]), ("3x3", [2, 4])])
def test_which_convolution_keeps_the_old_rate(stride_on, rates):
    """Of a stage whose input has rate 2: the one with the stride keeps it."""
    kind = {"bottleneck": True, "project": True, "stride_on": stride_on}
    blocks = [ResidualBlock(4, 2, "none", rate=2, dense=True, **kind)]
    blocks.append(ResidualBlock(4, 1, "none", rate=4, **kind))
    assert [block.convs[1].conv.dilation_rate for block in blocks] == [(r, r) for r in rates]
    assert all(conv.conv.strides == (1, 1) for block in blocks for conv in block.convs)


def test_winograd_is_left_out_where_it_would_be_wrong():
    image = tf.random.stateless_normal([1, 8, 8, 64], (0, 0))
    layers = []
    for choice in ("direct", "winograd"):
        with algorithm(choice):
            layers.append(ConvNorm(64, 3, 1, "none", dilation=2))
        layers[-1](image)
    layers[1].set_weights(layers[0].get_weights())
    wanted = layers[0](image)
    np.testing.assert_array_equal(layers[1](image), wanted)
    layers[1].fold()
    np.testing.assert_array_equal(layers[1](image), wanted)


def test_levels_beyond_the_last_are_refused():
    assert tiny.config(backbone_output_stride=8, min_level=3, max_level=3).min_level == 3
    with pytest.raises(UserError, match="min_level=4 must be from 2 to 3"):
        tiny.config(backbone_output_stride=8, min_level=4)
    with pytest.raises(UserError, match="backbone_output_stride=4 must be 8, 16 or 32"):
        tiny.config(backbone_output_stride=4)


@pytest.mark.thorough
def test_pyramid_anchors_and_rois_have_the_strides_of_their_levels():
    model = tiny.model(tiny.config(backbone_output_stride=8))
    features = batches.random_features()
    pyramid = model.pyramid(features["image"], features["image_size"])
    assert model.fpn.backbone_levels == (2, 3)
    shapes = {level: value.shape[1] for level, value in pyramid.items()}
    assert shapes == {level: 64 // 2**level for level in (2, 3, 4, 5)}
    for level, outputs in model.rpn(pyramid).items():
        sides = outputs["anchors_yxyx"][:, 2:] - outputs["anchors_yxyx"][:, :2]
        np.testing.assert_allclose(
            tf.exp(tf.reduce_mean(tf.math.log(sides))), 8 * 2**level, rtol=1e-5
        )
    # A RoI of any size falls on a level that the backbone has: features that tell their pixel.
    for level, values in pyramid.items():
        pixels = (tf.range(values.shape[1], dtype=tf.float32) + 0.5) * 2**level
        pyramid[level] = tf.broadcast_to(pixels[:, None, None], values.shape)
    rois = tf.constant([[[8.0, 0, 56, 64]], [[24, 24, 32, 32]]])
    found = model.roi_features(pyramid, rois, 4)
    np.testing.assert_allclose(found[0, :, 0, 0], [14, 26, 38, 50], atol=1e-4)
    np.testing.assert_allclose(found[1, :, 0, 0], [25, 27, 29, 31], atol=1e-4)
    detected = model(features["image"], features["image_size"])
    assert (detected["num_detections"].numpy() > 0).all()
