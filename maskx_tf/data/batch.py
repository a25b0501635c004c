"""The structure of a training batch, the same of records and of a dataset of one's own.

A batch is a pair of dicts (features, labels). With B images, a canvas of H x W pixels, M places
for objects and masks of S x S cells:

  features:
    image       uint8 [B, H, W, 3], RGB 0..255, zero padded right and below
    image_size  float32 [B, 2], (height, width) of the image without padding, pixels
  labels:
    boxes_yxyx  float32 [B, M, 4], (y1, x1, y2, x2) in pixels of the canvas, y2 and x2 exclusive;
                zeros as padding
    classes     int32 [B, M], 1..K in the order of the vocabulary; 0 as padding
    is_crowd    bool [B, M], a box around several objects, which nothing is trained on; a dataset
                without crowds may leave it out
    has_mask    bool [B, M], whether the object has a mask to train on
    masks       uint8 {0, 1} [B, M, S, S], the mask stretched over its box; zeros without mask
    mask_weight float32 [B, M], the factor on the mask's loss, 0: as if it had no mask; a dataset
                of equal masks may leave it out

H and W are multiples of 32. Batches of records also have the features image_scale, original_size
and image_id, which evaluation needs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from maskx_tf.data.preprocessing import STRIDE
from maskx_tf.errors import UserError


class _Field(NamedTuple):
    dtype: tf.DType
    axes: tuple[str | int, ...]  # a letter is of any size

    def __str__(self) -> str:
        return f"{self.dtype.name} [{', '.join(map(str, self.axes))}]"

    def fits(self, spec: tf.TensorSpec) -> bool:
        shape = [None if isinstance(axis, str) else axis for axis in self.axes]
        return self.dtype == spec.dtype and spec.shape.is_compatible_with(shape)


_FEATURES = {
    "image": _Field(tf.uint8, ("B", "H", "W", 3)),
    "image_size": _Field(tf.float32, ("B", 2)),
}
_BOX_LABELS = {
    "boxes_yxyx": _Field(tf.float32, ("B", "M", 4)),
    "classes": _Field(tf.int32, ("B", "M")),
    "is_crowd": _Field(tf.bool, ("B", "M")),
}
_MASK_LABELS = {
    "has_mask": _Field(tf.bool, ("B", "M")),
    "masks": _Field(tf.uint8, ("B", "M", "S", "S")),
    "mask_weight": _Field(tf.float32, ("B", "M")),
}
_OPTIONAL = ("is_crowd", "mask_weight")


def check(dataset: tf.data.Dataset, batch_size: int, with_masks: bool) -> None:
    """Compares the structure of a dataset with that above.

    Args:
      dataset: of batches.
      batch_size: how many images the options say that a batch has.
      with_masks: whether masks are trained; without them the labels need none.

    Raises:
      UserError: it is no dataset, or its batches are others; the first difference is named.
    """
    if not isinstance(dataset, tf.data.Dataset):
        raise UserError(
            f"dataset is a {type(dataset).__name__}; it has to be a tf.data.Dataset of batches "
            "(features, labels), as maskx_tf.data.batch describes them."
        )
    spec = dataset.element_spec
    is_pair = isinstance(spec, tuple) and len(spec) == 2
    if not is_pair or not all(isinstance(dicts, dict) for dicts in spec):
        raise UserError(
            f"an element of dataset is {_short(spec)}; it has to be a pair of dicts (features, "
            "labels), as maskx_tf.data.batch describes them."
        )
    features, labels = spec
    _check_fields("features", features, _FEATURES)
    _check_fields("labels", labels, _BOX_LABELS | (_MASK_LABELS if with_masks else {}))
    count, height, width, _ = features["image"].shape
    if any(side is not None and side % STRIDE for side in (height, width)):
        raise UserError(
            f"the images of dataset have {height} x {width} pixels; pad them right and below to "
            f"multiples of {STRIDE}."
        )
    if count is not None and count != batch_size:
        raise UserError(
            f"the batches of dataset have {count} images, but batch_size={batch_size}, which "
            "learning rate and steps are meant for: make them equal."
        )
    if with_masks and labels["masks"].shape[2] is None:
        raise UserError(
            "the size of the masks in dataset is not known before they are read; give it with "
            "tf.ensure_shape."
        )


def _check_fields(name: str, specs: Mapping, fields: Mapping[str, _Field]) -> None:
    for key, field in fields.items():
        if key in _OPTIONAL and key not in specs:
            continue
        if key not in specs:
            raise UserError(
                f"the {name} of dataset have no {key!r}, which has to be {field}; they have "
                f"{', '.join(map(repr, specs)) or 'nothing'}."
            )
        if not isinstance(specs[key], tf.TensorSpec) or not field.fits(specs[key]):
            raise UserError(
                f"{name}[{key!r}] of dataset is {_short(specs[key])}; it has to be {field}."
            )


def _short(spec) -> str:
    if isinstance(spec, tf.TensorSpec):
        shape = "of any shape" if spec.shape.rank is None else list(spec.shape)
        return f"{spec.dtype.name} {shape}".replace("None", "?")
    return f"a {type(spec).__name__}"


def train_on(
    dataset: tf.data.Dataset, num_classes: int, mask_class_ids: Collection[int], start_step: int
) -> tf.data.Dataset:
    """A checked dataset as training takes it: without end, from a step on, masks of set A alone.

    Args:
      dataset: of batches.
      num_classes: K.
      mask_class_ids: set A; masks of other classes are withheld.
      start_step: number of batches to leave out, for a run that resumes.
    """
    in_set_a = np.zeros([num_classes + 1], bool)
    in_set_a[list(mask_class_ids)] = True

    @tf.autograph.experimental.do_not_convert
    def select(features: dict, labels: dict) -> tuple[dict, dict]:
        labels = {k: v for k, v in labels.items() if k in _BOX_LABELS | _MASK_LABELS}
        labels.setdefault("is_crowd", tf.zeros_like(labels["classes"], tf.bool))
        if "has_mask" in labels:
            # Ids out of range are not this function's affair: the step names them.
            is_known = tf.gather(in_set_a, tf.clip_by_value(labels["classes"], 0, num_classes))
            labels["has_mask"] &= is_known & ~labels["is_crowd"]
        return features, labels

    return dataset.repeat().skip(start_step).map(select, tf.data.AUTOTUNE, deterministic=True)
