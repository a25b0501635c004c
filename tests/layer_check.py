"""What every layer has to do, checked by one call: `check_layer`."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf
import tf_keras

_STEP = 1e-3  # share of the loss that a small step should take off


def randomize(layer: tf_keras.layers.Layer, seed: int = 0) -> None:
    """Random weights that keep the size of what passes through; variances stay positive."""
    rng = np.random.default_rng(seed)
    for variable in layer.weights:
        fan_in = max(int(np.prod(variable.shape[:-1])), 1)
        if "variance" in variable.name or "gamma" in variable.name:
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
        else:
            variable.assign(rng.normal(0, fan_in**-0.5, variable.shape))


def check_layer(
    make: Callable[[], tf_keras.layers.Layer],
    *inputs,
    oracle: Callable | None = None,
    trained: Callable = lambda layer: layer.trainable_variables,
) -> tf_keras.layers.Layer:
    """Checks values, graph, gradients, weights that are copied, and half precision.

    Args:
      make: a new layer.
      *inputs: of a call; float32 or int32 arrays, or nests of them, of one number of rows.
      oracle: (layer, *inputs) -> the outputs, in NumPy.
      trained: layer -> the variables that a call reads and that are trained.

    Returns:
      The layer with random weights.
    """
    inputs = tf.nest.map_structure(tf.constant, inputs)
    layer = _built(make, inputs)
    randomize(layer)
    outputs = _arrays(layer(*inputs))
    assert all(np.isfinite(value).all() and np.any(value) for value in outputs)
    if oracle:
        wanted = tf.nest.flatten(oracle(layer, *inputs))
        for found, value in zip(outputs, wanted, strict=True):
            np.testing.assert_allclose(found, value, atol=1e-4)
    _check_graph(layer, inputs, outputs)
    _check_gradients(layer, inputs, trained(layer))
    copy = _built(make, inputs)
    copy.set_weights(layer.get_weights())
    outputs = _arrays(layer(*inputs))
    for found, value in zip(_arrays(copy(*inputs)), outputs, strict=True):
        np.testing.assert_array_equal(found, value)
    _check_half_precision(make, layer, inputs, outputs)
    return layer


def _built(make, inputs) -> tf_keras.layers.Layer:
    layer = make()
    layer(*inputs)
    return layer


def _arrays(outputs) -> list[np.ndarray]:
    return [tf.cast(value, tf.float32).numpy() for value in tf.nest.flatten(outputs)]


def _check_graph(layer, inputs, outputs) -> None:
    """One graph for any number of rows."""
    specs = tf.nest.map_structure(lambda x: tf.TensorSpec([None, *x.shape[1:]], x.dtype), inputs)
    graph = tf.function(lambda *x: layer(*x), input_signature=specs, autograph=False)
    for found, value in zip(_arrays(graph(*inputs)), outputs, strict=True):
        np.testing.assert_allclose(found, value, atol=1e-4)


def _check_gradients(layer, inputs, variables) -> None:
    """Each trained variable has one, and following them a little does what they say."""

    def loss():
        outputs = [tf.cast(value, tf.float32) for value in tf.nest.flatten(layer(*inputs))]
        return tf.add_n([tf.reduce_sum(value**2) for value in outputs])

    with tf.GradientTape() as tape:
        before = loss()
    gradients = tape.gradient(before, variables)
    missing = [v.name for v, g in zip(variables, gradients, strict=True) if g is None]
    assert missing == []
    gradients = [tf.convert_to_tensor(gradient) for gradient in gradients]
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    scale = _STEP * before / tf.linalg.global_norm(gradients) ** 2
    for variable, gradient in zip(variables, gradients, strict=True):
        variable.assign_sub(scale * gradient)
    share = float((before - loss()) / before)
    assert 0.3 * _STEP < share < 3 * _STEP, share


def _check_half_precision(make, layer, inputs, outputs) -> None:
    """bfloat16 within, float32 weights, and what comes out is near."""
    before = tf_keras.mixed_precision.global_policy()
    tf_keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        half = _built(make, inputs)
    finally:
        tf_keras.mixed_precision.set_global_policy(before)
    assert {v.dtype for v in half.weights} <= {tf.float32}
    half.set_weights(layer.get_weights())
    for found, value in zip(_arrays(half(*inputs)), outputs, strict=True):
        assert np.linalg.norm(found - value) < 0.05 * np.linalg.norm(value)
