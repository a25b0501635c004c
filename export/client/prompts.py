"""Boxes that a served model is asked to segment, as the inputs of its signature."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from maskx_tf.errors import UserError


def inputs_of(boxes_yxyx: npt.ArrayLike, class_names: str | Sequence[str]) -> dict[str, np.ndarray]:
    """`boxes` float32 [1, N, 4] and `class_names` [1, N] of N boxes with N classes, or one for all.

    Raises:
      UserError: there are not as many classes as boxes, or the boxes are no numbers [N, 4].
    """
    try:
        boxes = np.asarray(boxes_yxyx, np.float32).reshape(1, -1, 4)
    except (TypeError, ValueError):
        raise UserError("boxes_yxyx must be N rows of (y1, x1, y2, x2).") from None
    count = boxes.shape[1]
    if isinstance(class_names, str):
        class_names = [class_names] * count
    if len(class_names) != count:
        raise UserError(f"{count} boxes have {len(class_names)} classes; give one for each.")
    return {"boxes": boxes, "class_names": np.array([class_names], object).reshape(1, count)}
