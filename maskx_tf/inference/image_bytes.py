"""Image files of strangers to RGB, in the graph: upright, and refused before they fill memory."""

from __future__ import annotations

import tensorflow as tf

from maskx_tf.data import decoding
from maskx_tf.inference import image_header

MAX_PIXELS = 50_000_000
MAX_SCANS = 100  # of a progressive JPEG; usual are 10. A small file may hold thousands


def decode(encoded: tf.Tensor, max_pixels: int | tf.Tensor = MAX_PIXELS) -> tf.Tensor:
    """uint8 RGB [H, W, 3] of a JPEG or PNG file, string [], as a person would see it.

    The pixels are those of training. JPEG files are turned as their EXIF orientation says; training
    and evaluation, like COCO's annotations, know no EXIF.

    Args:
      encoded: string [], the file.
      max_pixels: largest height times width; larger ones are refused from the header.

    Raises:
      tf.errors.InvalidArgumentError: with a sentence in it, see `decoding.reason`.
    """
    return _decode(encoded, tf.cast(max_pixels, tf.int64))


@tf.function(
    input_signature=[tf.TensorSpec([], tf.string), tf.TensorSpec([], tf.int64)], autograph=False
)
def _decode(encoded: tf.Tensor, max_pixels: tf.Tensor) -> tf.Tensor:
    scans = image_header.jpeg_scans(encoded)
    encoded = decoding.require(
        encoded,
        scans <= MAX_SCANS,
        f"The JPEG image has {{}} scans; at most {MAX_SCANS} are accepted.",
        scans,
    )
    image = decoding.decode(encoded, max_pixels)
    with tf.control_dependencies([image]):  # what is no image is not looked into
        orientation = image_header.jpeg_orientation(tf.identity(encoded))
    return tf.ensure_shape(_upright(image, orientation), [None, None, 3])


def _upright(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """An image [h, w, 3] turned and mirrored as EXIF orientation 1..8 says."""

    def turn():
        turned = tf.cond(orientation >= 5, lambda: tf.transpose(image, [1, 0, 2]), lambda: image)
        # For orientations 0 to 8: are rows, are columns to be reversed?
        rows = tf.gather([False, False, False, True, True, False, False, True, True], orientation)
        columns = tf.gather(
            [False, False, True, True, False, False, True, True, False], orientation
        )
        return tf.reverse(turned, tf.boolean_mask([0, 1], tf.stack([rows, columns])))

    return tf.cond(orientation > 1, turn, lambda: image)
