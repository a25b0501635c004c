"""The mask head: one gathered kernel per RoI equals the K-channel convolution; the MLP branch."""

import numpy as np
import pytest
import tensorflow as tf

from maskx_tf.layers.mask_head import MaskHead

N, K, C = 5, 4, 6


def make_head(**options):
    head = MaskHead(filters=C, convs=2, **options)
    head(tf.zeros([1, 3, 3, 4]), tf.zeros([1, C]))
    rng = np.random.default_rng(0)
    for variable in head.weights:
        variable.assign(rng.normal(0, 0.3, variable.shape))
    return head


@pytest.fixture(scope="module")
def roi_features():
    return tf.constant(np.random.default_rng(1).normal(size=(N, 3, 3, 4)), tf.float32)


def test_equals_the_convolution_of_all_classes_with_gradients(roi_features):
    head = make_head(mlp=False)
    rng = np.random.default_rng(2)
    table = tf.constant(rng.normal(size=(K, C)), tf.float32)
    bias = tf.constant(rng.normal(size=K), tf.float32)
    classes = tf.constant([3, 0, 1, 1, 2])
    upstream = tf.constant(rng.normal(size=(N, 6, 6)), tf.float32)
    sources = [table, bias, roi_features, *head.trainable_variables]

    def dense():
        kernel = tf.transpose(table)[None, None]  # [1, 1, C, K]
        maps = tf.nn.conv2d(head.trunk(roi_features), kernel, 1, "SAME") + bias  # [N, 6, 6, K]
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


def test_the_deconvolution_is_that_of_the_layer(roi_features):
    head = make_head(mlp=False)
    before = head.convs[1](head.convs[0](roi_features))
    np.testing.assert_allclose(head.trunk(roi_features), head.deconv(before), atol=1e-5)


def test_mlp_branch_is_one_linear_layer_of_the_whole_trunk_output(roi_features):
    head = make_head(mlp=True)
    kernels = tf.random.stateless_normal([N, C], (0, 1))
    trunk = head.trunk(roi_features).numpy()  # [N, 6, 6, C]
    weights, bias = head.mlp_dense.get_weights()
    assert weights.shape == (6 * 6 * C, 6 * 6)
    mlp = (trunk.reshape(N, -1) @ weights + bias).reshape(N, 6, 6)
    fcn = np.einsum("nyxc,nc->nyx", trunk, kernels)
    np.testing.assert_allclose(head(roi_features, kernels), fcn + mlp, atol=1e-4)


def test_mlp_branch_does_not_see_the_class(roi_features):
    head = make_head(mlp=True)
    a, b = (tf.random.stateless_normal([N, C], (0, seed)) for seed in (1, 2))
    without = make_head(mlp=False)
    without.set_weights([w for w in head.get_weights() if w.shape not in [(216, 36), (36,)]])
    added = [head(roi_features, k) - without(roi_features, k) for k in (a, b)]
    assert np.std(added[0]) > 0.1
    np.testing.assert_allclose(*added, atol=1e-4)


def test_initial_weights():
    """Normal of variance 2 / fan_out for the trunk, 0.001 for the MLP branch."""
    head = MaskHead(filters=32, convs=1)
    head(tf.zeros([1, 3, 3, 16]), tf.zeros([1, 32]))
    deviation = {v.name: float(np.std(v)) for v in head.weights if "kernel" in v.name}
    conv, deconv, mlp = (
        next(value for name, value in deviation.items() if part in name)
        for part in ("conv1", "deconv", "mlp")
    )
    assert conv == pytest.approx(np.sqrt(2 / (32 * 9)), rel=0.05)
    assert deconv == pytest.approx(np.sqrt(2 / (32 * 4)), rel=0.05)
    assert mlp == pytest.approx(0.001, rel=0.05)
