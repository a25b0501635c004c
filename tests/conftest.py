"""Tests run with the settings of TensorFlow that the commands have."""

import maskx_tf  # noqa: F401
