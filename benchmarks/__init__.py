"""Measurements that anyone can repeat; each module says what it measures and how to run it."""

import maskx_tf  # noqa: F401, its settings of TensorFlow come before the first import of that
