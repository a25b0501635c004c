"""What callers in Python give to a detector: images, boxes and classes of many kinds, checked."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL.Image
import PIL.ImageOps
import tensorflow as tf

from maskx_tf.data import decoding
from maskx_tf.data.classes import Vocabulary
from maskx_tf.data.image_formats import BadImageError, to_rgb, upright_file
from maskx_tf.errors import ImageError, UserError
from maskx_tf.inference import image_bytes

# The path of an image file, its bytes, a picture of Pillow, or uint8 RGB [H, W, 3].
Image = str | os.PathLike[str] | bytes | PIL.Image.Image | np.ndarray

MOST_BOXES = 100  # of an image that masks are made for at a time; more would only cost memory


def read_image(image: Image, max_pixels: int = image_bytes.MAX_PIXELS) -> tuple[str, np.ndarray]:
    """The name of an image ("" if it has none) and its pixels, uint8 RGB [H, W, 3], upright.

    Args:
      image: as above.
      max_pixels: files of more are refused before they are decoded.

    Raises:
      ImageError: it cannot be read, or is of another kind.
    """
    if isinstance(image, str | os.PathLike):
        name = os.fspath(image)
        try:
            return name, _decode(pathlib.Path(image).read_bytes(), name, max_pixels)
        except OSError as error:
            raise ImageError(f"{name} cannot be read: {error.strerror}.") from None
    if isinstance(image, bytes):
        return "", _decode(image, "image", max_pixels)
    if isinstance(image, PIL.Image.Image):
        return getattr(image, "filename", ""), to_rgb(PIL.ImageOps.exif_transpose(image))
    return "", _pixels(image)


def _decode(encoded: bytes, name: str, max_pixels: int) -> np.ndarray:
    try:
        return image_bytes.decode(tf.constant(upright_file(encoded)), max_pixels).numpy()
    except BadImageError as error:
        raise ImageError(f"{name}: {error}") from None
    except (tf.errors.OpError, ValueError) as error:
        raise ImageError(f"{name}: {decoding.reason(error)}") from None


def _pixels(image: Any) -> np.ndarray:
    if not isinstance(image, np.ndarray | tf.Tensor):
        raise ImageError(
            f"An image of type {type(image).__name__} is not understood; give a path, the bytes of "
            "an image file, a picture of Pillow, or an array, uint8 RGB [H, W, 3]."
        )
    array = np.asarray(image)
    what = f"The image is an array {array.dtype} {list(array.shape)}"
    if array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 1):
        remedy = "np.stack([image.squeeze()] * 3, axis=-1) makes RGB of grey"
    elif array.ndim == 3 and array.shape[2] == 4:
        remedy = "image[..., :3] leaves out the alpha channel"
    elif array.ndim == 3 and array.shape[0] == 3 and array.shape[2] != 3:
        remedy = "image.transpose(1, 2, 0) puts the channels last"
    elif array.ndim != 3 or array.shape[2] != 3 or not array.size:
        remedy = "several images go into a list"
    elif array.dtype != np.uint8:
        remedy = "(image * 255).round().astype(np.uint8) makes it of values between 0 and 1"
        if array.size and array.max() > 1:
            remedy = "image.astype(np.uint8) makes it of values between 0 and 255"
    else:
        return array
    raise ImageError(f"{what}, but it must be uint8 RGB [H, W, 3]; {remedy}.")


def read_boxes(boxes_yxyx: npt.ArrayLike, height: int, width: int) -> np.ndarray:
    """Boxes float64 [N, 4], clipped to their image of height × width pixels.

    Raises:
      UserError: they are no such boxes, or one has no area in the image.
    """
    try:
        boxes = np.asarray(boxes_yxyx, np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"boxes_yxyx cannot be read as an array of numbers: {error}.") from None
    if not boxes.size:
        return np.zeros([0, 4])
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise UserError(
            f"boxes_yxyx has shape {list(boxes.shape)}, but must have [N, 4]: a row (y1, x1, y2, "
            "x2) in pixels for each box."
        )
    if np.isfinite(boxes).all() and boxes.max() <= 1:
        raise UserError(
            "boxes_yxyx lie between 0 and 1, but must be in pixels of the image; multiply them by "
            f"({height}, {width}, {height}, {width})."
        )
    clipped = np.clip(boxes, 0, [height, width, height, width])
    is_box = np.isfinite(boxes).all(axis=1) & (clipped[:, 2:] > clipped[:, :2]).all(axis=1)
    for index in np.flatnonzero(~is_box)[:1]:
        raise UserError(
            f"boxes_yxyx[{index}] = {boxes[index].tolist()} has no area in the image of {height} × "
            f"{width} pixels; a box is (y1, x1, y2, x2) with y1 < y2 and x1 < x2."
        )
    return clipped


def read_classes(
    classes: str | int | Sequence[str | int] | np.ndarray, count: int, vocabulary: Vocabulary
) -> np.ndarray:
    """The class ids, int [count], of names or ids; a single one is that of all boxes.

    Raises:
      UserError: a class is unknown, or there are more or fewer than boxes.
    """
    given = [classes] * count if isinstance(classes, str | int) else list(classes)
    if len(given) != count:
        raise UserError(f"There are {len(given)} classes for {count} boxes; give one for each box.")
    names = [item for item in given if isinstance(item, str)]
    ids = iter(vocabulary.ids_of(names))
    numbers = [next(ids) if isinstance(item, str) else item for item in given]
    for number in numbers:
        is_id = isinstance(number, int | np.integer) and not isinstance(number, bool)
        if not is_id or not 1 <= number <= vocabulary.num_classes:
            raise UserError(
                f"There is no class {number!r}; give names, or ids from 1 to "
                f"{vocabulary.num_classes} in the order of the model's class_names."
            )
    return np.array(numbers, int)
