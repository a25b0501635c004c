"""Boxes that a served model is asked to segment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from maskx_tf.errors import UserError


class Prompts(NamedTuple):
    """N boxes of an image with their classes.

    Attributes:
      boxes_yxyx: float32 [N, 4], pixels of the upright image.
      class_names: N names; "": the class that the model finds most probable there.
    """

    boxes_yxyx: np.ndarray
    class_names: tuple[str, ...]


def prompts_of(boxes_yxyx: npt.ArrayLike, class_names: str | Sequence[str]) -> Prompts:
    """Boxes [N, 4] with N classes, or one for all.

    Raises:
      UserError: there are not as many classes as boxes, or the boxes are no numbers [N, 4].
    """
    try:
        boxes = np.asarray(boxes_yxyx, np.float32).reshape(-1, 4)
    except (TypeError, ValueError):
        raise UserError("boxes_yxyx must be N rows of (y1, x1, y2, x2).") from None
    if isinstance(class_names, str):
        class_names = [class_names] * len(boxes)
    if len(class_names) != len(boxes):
        raise UserError(f"{len(boxes)} boxes have {len(class_names)} classes; give one for each.")
    return Prompts(boxes, tuple(class_names))
