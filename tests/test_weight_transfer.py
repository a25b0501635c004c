"""T against NumPy for every shape it can have; the published sizes; learned mask weights."""

import numpy as np
import pytest
import tensorflow as tf

from maskx_tf.config import Config
from maskx_tf.layers.weight_transfer import LearnedMaskWeights, WeightTransfer
from maskx_tf.model import assemble

ACTIVATIONS = {
    "none": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.1 * x),
}


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_equals_numpy(layers, activation):
    rng = np.random.default_rng(0)
    w_det = rng.normal(size=(5, 20)).astype(np.float32)
    transfer = WeightTransfer(filters=6, layers=layers, units=8, activation=activation)
    transfer(tf.constant(w_det))
    for variable in transfer.weights:
        variable.assign(rng.normal(size=variable.shape))
    x = w_det
    values = transfer.get_weights()
    assert [v.shape[0] for v in values[::2]] == [20, 8, 8][:layers]
    for index, (kernel, bias) in enumerate(zip(values[::2], values[1::2], strict=True)):
        x = x @ kernel + bias
        x = ACTIVATIONS[activation](x) if index < layers - 1 else x
    np.testing.assert_allclose(transfer(tf.constant(w_det)), x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stop_gradient", [True, False])
def test_stop_gradient_lies_before_the_first_layer(stop_gradient):
    transfer = WeightTransfer(filters=3, units=4, stop_gradient=stop_gradient)
    w_det = tf.random.stateless_normal([5, 7], (0, 1))
    transfer(w_det)
    with tf.GradientTape() as tape:
        tape.watch(w_det)
        loss = tf.reduce_sum(transfer(w_det) ** 2)
    gradient, *others = tape.gradient(loss, [w_det, *transfer.trainable_variables])
    assert (gradient is None) == stop_gradient
    assert len(others) == 4 and all(np.any(g) for g in others)


def test_initial_weights_have_variance_2_over_fan_out():
    transfer = WeightTransfer(filters=64, units=128)
    transfer(tf.zeros([1, 500]))
    first, bias1, second, bias2 = transfer.get_weights()
    assert np.std(first) == pytest.approx(np.sqrt(2 / 128), rel=0.05)
    assert np.std(second) == pytest.approx(np.sqrt(2 / 64), rel=0.05)
    assert np.abs(first).max() > 3 * np.std(first)  # not truncated
    assert not np.any(bias1) and not np.any(bias2)


def test_learned_weights_class_agnostic_and_class_specific():
    classes = tf.constant([3, 0, 3])
    agnostic, specific = LearnedMaskWeights(1, 400), LearnedMaskWeights(5, 400)
    kernels, biases = agnostic(classes)
    np.testing.assert_array_equal(kernels, np.repeat(agnostic.kernel, 3, axis=0))
    assert kernels.shape == (3, 400) and biases.shape == (3,)
    assert np.std(kernels) == pytest.approx(0.001, rel=0.1)
    kernels, _ = specific(classes)
    np.testing.assert_array_equal(kernels, specific.kernel.numpy()[[3, 0, 3]])
    assert np.std(specific.kernel) == pytest.approx(np.sqrt(2 / 5), rel=0.1)  # variance 2 / fan_out


@pytest.fixture(scope="module")
def sizes():
    """{variable: number of values} of the published R-50 model for COCO; nothing is allocated."""
    with tf.Graph().as_default():
        model = assemble(Config(), 80)
        pyramid = model.pyramid(tf.zeros([1, 64, 64, 3]), tf.constant([[64.0, 64.0]]))
        model.rpn(pyramid)
        model.box_head(tf.zeros([1, 7, 7, 256]))
        w_seg = model.weight_transfer(model.box_head.class_weights(tf.constant([1]), "cls+box"))
        model.mask_head(tf.zeros([1, 14, 14, 256]), w_seg)
        variables = model.variables
    return {v.name.removesuffix(":0"): int(np.prod(v.shape)) for v in variables}


def test_parameters_of_t_and_of_the_mlp_branch(sizes):
    def count(prefix):
        return sum(size for name, size in sizes.items() if name.startswith(prefix))

    assert count("weight_transfer/") == 5120 * 256 + 256 + 256 * 256 + 256
    assert count("mask_head/mlp/") == 28 * 28 * 256 * 784 + 784


def test_parameters_of_the_published_model(sizes):
    """203,109,364 with a scale and an offset per channel; ours keeps the statistics beside them."""
    channels = sum(size for name, size in sizes.items() if name.endswith("norm/gamma"))
    assert channels == 26_560
    statistics = sum(size for name, size in sizes.items() if "/moving_" in name)
    assert statistics == 2 * channels
    assert sum(sizes.values()) - statistics == 203_109_364
