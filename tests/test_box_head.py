"""The box head: own-class rows equal the dense layers, w_det is laid out as documented."""

import numpy as np
import pytest
import tensorflow as tf

from maskx_tf.layers.box_head import BoxHead
from tests import oracles

K, D, N = 5, 6, 9


@pytest.fixture(scope="module")
def head():
    built = BoxHead(K, D)
    built(tf.zeros([1, 2, 2, 3]))
    rng = np.random.default_rng(0)
    for variable in built.weights:
        variable.assign(rng.normal(size=variable.shape))
    return built


@pytest.fixture(scope="module")
def features():
    return tf.constant(np.random.default_rng(1).normal(size=(N, D)), tf.float32)


def test_class_logits_are_a_dense_layer(head, features):
    wanted = features.numpy() @ head.cls_kernel.numpy().T + head.cls_bias.numpy()
    np.testing.assert_allclose(head.class_logits(features), wanted, atol=1e-5)


def test_class_deltas_and_gradients_equal_the_dense_formulation(head, features):
    classes = tf.constant(np.random.default_rng(3).integers(0, K + 1, N), tf.int32)
    upstream = tf.constant(np.random.default_rng(4).normal(size=(N, 4)), tf.float32)
    sources = [head.box_kernel, head.box_bias, features]

    def dense():
        everything = tf.einsum("nd,kjd->nkj", features, head.box_kernel) + head.box_bias
        return tf.gather(everything, classes, batch_dims=1)

    results = []
    for compute in (dense, lambda: head.class_deltas(features, classes)):
        with tf.GradientTape() as tape:
            tape.watch(sources)
            deltas = compute()
            loss = tf.reduce_sum(deltas * upstream)
        gradients = [tf.convert_to_tensor(g) for g in tape.gradient(loss, sources)]
        results.append([deltas, *gradients])
    for wanted, found in zip(*results, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_class_weights_are_cls_then_dy_dx_dh_dw(head):
    """Each block of w_box is what multiplies the feature in that delta."""
    classes = tf.constant([4, 0, 2])
    cls = head.class_weights(classes, "cls").numpy()
    box = head.class_weights(classes, "box").numpy()
    np.testing.assert_array_equal(cls, head.cls_kernel.numpy()[[4, 0, 2]])
    both = head.class_weights(classes, "cls+box")
    np.testing.assert_array_equal(both, np.concatenate([cls, box], axis=1))
    x = tf.random.stateless_normal([3, D], (0, 1))
    biases = head.box_bias.numpy()[[4, 0, 2]]
    deltas = head.class_deltas(x, classes) - biases  # dy, dx, dh, dw
    by_block = np.einsum("njd,nd->nj", box.reshape(3, 4, D), x)
    np.testing.assert_allclose(by_block, deltas, atol=1e-5)


def test_refined_rois_are_the_decoded_boxes_of_the_most_probable_class(head):
    """Clipped to their image, the padding stays empty, and no gradient passes."""
    rois = np.float32([[[10, 10, 30, 40], [5, 5, 9, 9], [0, 0, 0, 0]]] * 2)
    features = tf.constant(np.random.default_rng(5).normal(0, 2, (6, D)), tf.float32)
    logits = head.class_logits(features)
    best = np.argmax(logits[:, 1:], axis=1) + 1
    deltas = head.class_deltas(features, tf.constant(best, tf.int32)).numpy()
    wanted = [
        oracles.decode(delta, roi, head.delta_weights)
        for delta, roi in zip(deltas, rois.reshape(6, 4), strict=True)
    ]
    with tf.GradientTape() as tape:
        tape.watch(features)
        refined = head.refine(features, logits, tf.constant(rois), tf.constant([[40.0, 45]] * 2))
    assert tape.gradient(refined, features) is None
    wanted = np.clip(np.reshape(wanted, [2, 3, 4]), 0, [40, 45, 40, 45])
    np.testing.assert_allclose(refined, wanted, atol=1e-3)
    np.testing.assert_array_equal(refined[:, 2], 0)


def test_initial_weights():
    """Gaussian 0.01 and 0.001 of the last layers, uniform ±sqrt(3 / fan_in) of the hidden ones."""
    head = BoxHead(200, 256)
    head(tf.zeros([1, 2, 2, 32]))
    assert np.std(head.cls_kernel) == pytest.approx(0.01, rel=0.05)
    assert np.std(head.box_kernel) == pytest.approx(0.001, rel=0.05)
    for layer, fan_in in ((head.fc1, 128), (head.fc2, 256)):
        limit = np.sqrt(3 / fan_in)
        assert 0.98 * limit < np.max(layer.kernel) <= limit
        assert np.std(layer.kernel) == pytest.approx(limit / np.sqrt(3), rel=0.05)
    assert not any(np.any(v) for v in head.weights if "bias" in v.name)
