"""The mask head: one gathered kernel per RoI equals the K-channel convolution; the MLP branch."""

import numpy as np
import pytest
import tensorflow as tf

from maskx_tf.layers.mask_bodies.body import in_rows
from maskx_tf.layers.mask_bodies.fcn import FCN
from maskx_tf.layers.mask_branches import MLP
from maskx_tf.layers.mask_head import MaskHead
from tests.layer_check import randomize

N, K, C = 5, 4, 6


def make_head(*branches):
    head = MaskHead(FCN(C, convs=2), branches)
    head(tf.zeros([1, 3, 3, 4]), tf.zeros([1, C]))
    randomize(head)
    return head


@pytest.fixture(scope="module")
def roi_features():
    return tf.constant(np.random.default_rng(1).normal(size=(N, 3, 3, 4)), tf.float32)


def test_equals_the_convolution_of_all_classes_with_gradients(roi_features):
    head = make_head()
    rng = np.random.default_rng(2)
    table = tf.constant(rng.normal(size=(K, C)), tf.float32)
    bias = tf.constant(rng.normal(size=K), tf.float32)
    classes = tf.constant([3, 0, 1, 1, 2])
    upstream = tf.constant(rng.normal(size=(N, 6, 6)), tf.float32)
    sources = [table, bias, roi_features, *head.trainable_variables]

    def dense():
        kernel = tf.transpose(table)[None, None]  # [1, 1, C, K]
        pixels = in_rows(head.body(roi_features))
        maps = tf.nn.conv2d(pixels, kernel, 1, "SAME") + bias  # [N, 6, 6, K]
        return tf.gather(tf.transpose(maps, [0, 3, 1, 2]), classes, batch_dims=1)

    def gathered():
        return head(roi_features, tf.gather(table, classes), tf.gather(bias, classes))

    results = []
    for compute in (dense, gathered):
        with tf.GradientTape() as tape:
            tape.watch(sources)
            logits = compute()
            loss = tf.reduce_sum(logits * upstream)
        gradients = [tf.convert_to_tensor(g) for g in tape.gradient(loss, sources)]
        results.append([logits, *gradients])
    for wanted, found in zip(*results, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_mlp_branch_does_not_see_the_class(roi_features):
    head = make_head(MLP(name="mlp"))
    a, b = (tf.random.stateless_normal([N, C], (0, seed)) for seed in (1, 2))
    without = make_head()
    without.body.set_weights(head.body.get_weights())
    added = [head(roi_features, k) - without(roi_features, k) for k in (a, b)]
    assert np.std(added[0]) > 0.1
    np.testing.assert_allclose(*added, atol=1e-4)


def test_in_rows_puts_the_pixels_of_cells_in_order():
    pixels = np.arange(2 * 6 * 6).reshape(2, 6, 6)
    cells = pixels.reshape(2, 2, 3, 2, 3).transpose(0, 1, 3, 2, 4)  # 2 x 2 cells of 3 x 3 pixels
    np.testing.assert_array_equal(in_rows(tf.constant(cells)), pixels)


def test_initial_weights():
    """Normal of variance 2 / fan_out for the body, 0.001 for the MLP branch."""
    head = MaskHead(FCN(32, convs=1), [MLP(name="mlp")])
    head(tf.zeros([1, 3, 3, 16]), tf.zeros([1, 32]))
    deviation = {v.name: float(np.std(v)) for v in head.weights if "kernel" in v.name}
    conv, deconv, mlp = (
        next(value for name, value in deviation.items() if part in name)
        for part in ("conv1", "deconv", "mlp")
    )
    assert conv == pytest.approx(np.sqrt(2 / (32 * 9)), rel=0.05)
    assert deconv == pytest.approx(np.sqrt(2 / (32 * 4)), rel=0.05)
    assert mlp == pytest.approx(0.001, rel=0.05)
