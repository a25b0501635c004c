"""Writing of record shards: COCO-format data sets and the embedded Shapes."""

import maskx_tf  # noqa: F401, its settings of TensorFlow come before the first import of that
