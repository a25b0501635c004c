"""Export of trained models for serving."""

import maskx_tf  # noqa: F401, its settings of TensorFlow come before the first import of that
