"""T against NumPy for every shape it can have; learned mask weights."""

import numpy as np
import pytest
import tensorflow as tf

from maskx_tf.layers.weight_transfer import LearnedMaskWeights, WeightTransfer

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
