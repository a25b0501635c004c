"""The feature pyramid against NumPy."""

import numpy as np
import tensorflow as tf

from maskx_tf.layers.fpn import FPN


def test_shapes_up_to_the_coarsest_level():
    features = {level: tf.zeros([2, 256 >> level, 384 >> level, 4 + level]) for level in (3, 4)}
    pyramid = FPN((3, 4), 6, 8)(features)
    assert list(pyramid) == [3, 4, 5, 6]
    for level, value in pyramid.items():
        assert value.shape == (2, 256 >> level, 384 >> level, 8)


def test_top_down_sum_of_laterals():
    """With identity output convolutions the maps are lateral + upsampled coarser map."""
    rng = np.random.default_rng(0)
    fpn = FPN((2, 3), 3, 3)
    features = {level: rng.normal(size=(1, 32 >> level, 48 >> level, 5)) for level in (2, 3)}
    features = {level: value.astype(np.float32) for level, value in features.items()}
    fpn({level: tf.constant(value) for level, value in features.items()})
    identity = np.zeros([3, 3, 3, 3])
    identity[1, 1] = np.eye(3)
    for conv in fpn.outputs.values():
        conv.set_weights([identity, np.zeros(3)])
    pyramid = fpn({level: tf.constant(value) for level, value in features.items()})
    lateral = {}
    for level, value in features.items():
        kernel, bias = fpn.laterals[str(level)].get_weights()
        lateral[level] = value @ kernel[0, 0] + bias
    np.testing.assert_allclose(pyramid[3], lateral[3], atol=1e-5)
    wanted = lateral[2] + np.kron(lateral[3], np.ones([1, 2, 2, 1]))
    np.testing.assert_allclose(pyramid[2], wanted, atol=1e-5)


def test_levels_above_the_backbone_subsample():
    pyramid = FPN((2,), 4, 3)({2: tf.random.stateless_normal([1, 8, 8, 5], (0, 1))})
    np.testing.assert_array_equal(pyramid[3], pyramid[2][:, ::2, ::2])
    np.testing.assert_array_equal(pyramid[4], pyramid[2][:, ::4, ::4])
