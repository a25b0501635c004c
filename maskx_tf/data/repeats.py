"""How often images of rare classes come in an epoch: repeat factors.

Gupta, Dollár, Girshick: LVIS: A Dataset for Large Vocabulary Instance Segmentation, CVPR 2019,
appendix B.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Collection, Sequence

import numpy as np
import tensorflow as tf
from absl import logging
from google.protobuf.message import DecodeError

from maskx_tf.data.records.index import Index, features_of

_TEXT, _CROWD = "image/object/class/text", "image/object/is_crowd"


def repeat_factors(found: Index, threshold: float) -> np.ndarray:
    """float64 [N] repeats of records in an epoch.

    That of a class which a share f of the images has is max(1, sqrt(threshold / f)), that of an
    image the largest of its classes', 1 without any. Crowds do not count.

    Args:
      found: the records.
      threshold: the share of images below which a class is rare.

    Raises:
      UserError: a file cannot be read.
    """
    classes = [_classes(*features) for features in features_of(found, (_TEXT, _CROWD))]
    factors = _factors(classes, threshold)
    logging.info(
        "--repeat_threshold=%g: an epoch has %.0f examples of %d images, the rarest classes' "
        "%.1f times each.",
        threshold,
        factors.sum(),
        len(factors),
        factors.max(),
    )
    return factors


def _factors(classes: Sequence[Collection[bytes]], threshold: float) -> np.ndarray:
    images = collections.Counter(name for names in classes for name in names)
    of_class = {
        name: max(1.0, np.sqrt(threshold * len(classes) / count)) for name, count in images.items()
    }
    return np.array([max((of_class[name] for name in names), default=1.0) for names in classes])


def _classes(text: bytes, crowd: bytes) -> set[bytes]:
    """Classes of a record; none if it is damaged, which reading it will tell."""
    try:
        names = tf.train.Feature.FromString(text).bytes_list.value
        is_crowd = tf.train.Feature.FromString(crowd).int64_list.value
    except DecodeError:
        return set()
    return {name for name, flag in itertools.zip_longest(names, is_crowd) if not flag}
