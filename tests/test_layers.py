"""Every layer: values, graph, gradients, weights and half precision, by `check_layer`.

What is special in a layer is in the file of its name.
"""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from maskx_tf.layers import choices
from maskx_tf.layers.backbone import ResNet
from maskx_tf.layers.box_head import BoxHead
from maskx_tf.layers.fpn import FPN
from maskx_tf.layers.mask_bodies.body import in_rows
from maskx_tf.layers.mask_bodies.fcn import FCN
from maskx_tf.layers.mask_branches import MLP
from maskx_tf.layers.mask_head import MaskHead
from maskx_tf.layers.mask_iou_head import MaskIoUHead
from maskx_tf.layers.point_head import PointHead
from maskx_tf.layers.rpn import RPN
from maskx_tf.layers.weight_transfer import LearnedMaskWeights, WeightTransfer
from tests.harness import thorough
from tests.layer_check import check_layer

N, S, C = 3, 8, 6


def normal(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def relu(x):
    return np.maximum(x, 0)


@pytest.mark.parametrize("normalization", ["frozen_batch_norm", "batch_norm", "group_norm"])
def test_backbone(normalization):
    def make():
        return ResNet("small", 4, normalization, frozen_stages=1)

    features = check_layer(make, normal(2, 32, 64, 3))(tf.zeros([2, 32, 64, 3]))
    assert list(features) == [2, 3, 4]


def test_fpn():
    levels = {level: normal(2, 32 >> level, 64 >> level, 3 + level) for level in (2, 3)}
    check_layer(lambda: FPN((2, 3), 4, C), levels)


def test_rpn():
    levels = {level: normal(2, 32 >> level, 64 >> level, C) for level in (2, 3)}
    check_layer(lambda: RPN(C, 8.0, (0.5, 1.0), 0.5, 0.7), levels)


def test_box_head():
    """Two fully connected layers with ReLU."""

    def oracle(head, x):
        x = np.reshape(x, [len(x), -1])
        for layer in (head.fc1, head.fc2):
            kernel, bias = layer.get_weights()
            x = relu(x @ kernel + bias)
        return x

    def trained(head):  # the rows of the classes are not for `call`
        return head.fc1.trainable_variables + head.fc2.trainable_variables

    check_layer(lambda: BoxHead(4, 5), normal(N, 2, 2, 3), oracle=oracle, trained=trained)


@pytest.mark.parametrize(
    "name", [name if c.divisor <= 4 else thorough(name) for name, c in choices.MASK_BODIES.items()]
)
def test_mask_body(name):
    """Every body in a head, with a kernel for each RoI."""
    choice = choices.MASK_BODIES[name]
    side = max(4, choice.divisor)

    def make():
        return MaskHead(choices.load(choice.constructor)(filters=8))

    inputs = normal(N, side, side, C), normal(N, make().body.filters)
    head = check_layer(make, *inputs)
    assert head.body.upsampling == 2
    assert head(*inputs).shape == (N, 2 * side, 2 * side)


def test_fcn():
    def oracle(body, x):
        for layer in body.convs:
            x = layer(x)
        kernel, bias = body.deconv.get_weights()
        x = tf.nn.relu(tf.nn.conv2d_transpose(x, kernel, [N, 2 * S, 2 * S, C], 2) + bias)
        return x.numpy().reshape(N, S, 2, S, 2, C).transpose(0, 1, 3, 2, 4, 5)

    check_layer(lambda: FCN(C, convs=2), normal(N, S, S, 4), oracle=oracle)


def test_mlp_branch():
    def oracle(branch, x):
        weights, bias = branch.get_weights()
        assert weights.shape == (S * S * C, S * S)
        return (np.reshape(x, [N, -1]) @ weights + bias).reshape(N, S, S)

    check_layer(MLP, normal(N, S, S, C), oracle=oracle)


def test_mask_head():
    """A 1x1 convolution by the RoI's own kernel, its bias, and the map of the branch."""

    def oracle(head, x, kernels, biases):
        pixels = in_rows(head.body(x)).numpy()
        maps = np.einsum("nyxc,nc->nyx", pixels, kernels) + biases.numpy()[:, None, None]
        return maps + head.branches[0](pixels)

    inputs = normal(N, S, S, 4), normal(N, C), normal(N)
    check_layer(lambda: MaskHead(FCN(C, convs=1), [MLP()]), *inputs, oracle=oracle)


def test_point_head():
    """The coarse logit joins the input of every layer, and of the class's kernel."""

    def oracle(head, x, coarse, kernels, biases):
        coarse = coarse.numpy()[..., None]
        x = np.concatenate([x, coarse], -1)
        for layer in head.dense:
            kernel, bias = layer.get_weights()
            x = np.concatenate([relu(x @ kernel + bias), coarse], -1)
        return np.einsum("npc,nc->np", x, kernels) + biases.numpy()[:, None]

    inputs = normal(N, 7, C), normal(N, 7), normal(N, 5), normal(N)
    check_layer(lambda: PointHead(4, layers=2), *inputs, oracle=oracle)
    assert PointHead().filters == 257


def test_mask_iou_head():
    """The largest probability of each cell joins the features, of which half the sides remain."""

    def oracle(head, x, masks, kernels, biases):
        largest = masks.numpy().reshape(N, S, 2, S, 2).max((2, 4))
        x = np.concatenate([x, largest[..., None]], -1)
        for conv in head.convs:
            x = conv(x)
        assert x.shape[1:3] == (S // 2, S // 2)
        x = np.reshape(x, [N, -1])
        for layer in (head.fc1, head.fc2):
            kernel, bias = layer.get_weights()
            x = relu(x @ kernel + bias)
        return np.sum(x * kernels, -1) + biases

    inputs = normal(N, S, S, C), normal(N, 2 * S, 2 * S), normal(N, 5), normal(N)
    check_layer(lambda: MaskIoUHead(4, 5), *inputs, oracle=oracle)


def test_weight_transfer():
    check_layer(lambda: WeightTransfer(C, layers=3, units=5), normal(7, 10))


@pytest.mark.parametrize("rows", [1, 5])
def test_learned_mask_weights(rows):
    def oracle(layer, classes):
        chosen = classes.numpy() if rows > 1 else [0] * 3
        return layer.kernel.numpy()[chosen], layer.bias.numpy()[chosen]

    check_layer(lambda: LearnedMaskWeights(rows, C), np.array([3, 0, 3], np.int32), oracle=oracle)


class Scaled(tf_keras.layers.Layer):
    """x times a vector, with a fault."""

    def __init__(self, fault: str):
        super().__init__()
        self.fault = fault

    def build(self, input_shape):
        dtype = self.compute_dtype if self.fault == "half weights" else None
        self.vector = self.add_weight("vector", [input_shape[-1]], dtype, "ones")
        self.unused = self.add_weight("unused", [3], trainable=self.fault == "unused weight")

    def call(self, x):
        vector = tf.cast(self.vector, x.dtype)
        if self.fault == "gradient":
            return x * tf.stop_gradient(vector) + 0 * vector
        if self.fault == "number of rows" and isinstance(x.shape[0], int):
            return 2 * x * vector
        if self.fault == "overflow" and x.dtype != tf.float32:
            return x * float("inf")
        return x * vector + float(self.fault == "value")


FAULTS = ("half weights", "unused weight", "gradient", "number of rows", "overflow", "value")


def test_the_check_finds_faults():
    def check(fault):
        oracle = (lambda layer, x: x * layer.vector) if fault in ("", "value") else None
        check_layer(lambda: Scaled(fault), normal(N, C), oracle=oracle)

    check("")
    for fault in FAULTS:
        with pytest.raises(AssertionError):
            check(fault)
