"""The published initialisers under their Keras names (facts: Caffe2's XavierFill and MSRAFill)."""

import tf_keras


def xavier_fill() -> tf_keras.initializers.Initializer:
    """Uniform in ±sqrt(3 / fan_in): FPN and the fully connected layers of the box head."""
    return tf_keras.initializers.VarianceScaling(1.0, "fan_in", "uniform")


def msra_fill() -> tf_keras.initializers.Initializer:
    """Normal, not truncated, of variance 2 / fan_out: mask head and T. Not Keras' `he_normal`."""
    return tf_keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal")


def gaussian_fill(stddev: float) -> tf_keras.initializers.Initializer:
    """Normal, not truncated, around 0."""
    return tf_keras.initializers.RandomNormal(stddev=stddev)
