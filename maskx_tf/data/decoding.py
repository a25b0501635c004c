"""What an image file decodes to: one function for writing, checking, training and predicting.

It takes JPEG and PNG files of 8 bits a channel. `image_formats` makes PNG of all other kinds.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from maskx_tf.data.image_formats import MAX_PIXELS, BadImageError, too_large

_HEADER_BYTES = 32  # holds all that is read of a PNG file's header


def decode(encoded: tf.Tensor, max_pixels: int | tf.Tensor = MAX_PIXELS) -> tf.Tensor:
    """uint8 RGB [H, W, 3] of a JPEG or PNG file, string [], as stored: EXIF does not turn it.

    Grey, palette and CMYK images become RGB; transparency is dropped.

    Args:
      encoded: string [], the file.
      max_pixels: largest height times width; larger ones are refused from the header.

    Raises:
      tf.errors.InvalidArgumentError: with a sentence in it, see `reason`.
    """
    return _decode(encoded, tf.cast(max_pixels, tf.int64))


def to_array(encoded: bytes) -> np.ndarray:
    """What `decode` makes of a file, uint8 [H, W, 3]; BadImageError if it refuses it."""
    try:
        return _decode(encoded, MAX_PIXELS).numpy()
    except (tf.errors.OpError, ValueError) as error:
        if "pixels in all are accepted" in str(error):
            raise too_large() from None
        message = f"it cannot be decoded: {_what_is_missing(encoded) or reason(error).rstrip('.')}"
        raise BadImageError("image_corrupt", message) from None


def _what_is_missing(encoded: bytes) -> str:
    """What an interrupted download or copy has done to a file; empty if it does not look so."""
    if not encoded.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")):
        return ""
    if zeros := len(encoded) - len(encoded.rstrip(b"\0")):
        return f"its last {zeros} bytes are zeros, as copies have that were broken off"
    end, body = (b"IEND", b"IDAT") if encoded[:1] == b"\x89" else (b"\xff\xd9", b"\xff\xda")
    return "" if encoded.rfind(end) > encoded.rfind(body) else "its end is missing"


def reason(error: Exception) -> str:
    """One line of why an image could not be decoded, without TensorFlow's own decoration."""
    text = getattr(error, "message", "") or str(error)
    text = text.split("[Op:")[0].replace("{{function_node", "\n{{function_node")
    noise = ("Graph execution error", "Detected at node", "<stack traces", "File ", "[[", "{{")
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith(noise)]
    line = lines[-1] if lines else type(error).__name__
    return line.removeprefix("assertion failed: [").removesuffix("]")


def require(value: tf.Tensor, condition: tf.Tensor, text: str, *numbers: tf.Tensor) -> tf.Tensor:
    """`value`, which does not exist before the condition was found true.

    Raises:
      tf.errors.InvalidArgumentError: with `text`, in which each {} stands for one of the numbers.
    """
    message = tf.strings.format(text, numbers) if numbers else tf.constant(text)
    with tf.control_dependencies([tf.debugging.Assert(condition, [message])]):
        return tf.identity(value)


@tf.function(
    input_signature=[tf.TensorSpec([], tf.string), tf.TensorSpec([], tf.int64)], autograph=False
)
def _decode(encoded: tf.Tensor, max_pixels: tf.Tensor) -> tf.Tensor:
    is_jpeg = tf.strings.substr(encoded, 0, 3) == b"\xff\xd8\xff"
    is_png = tf.strings.substr(encoded, 0, 8) == b"\x89PNG\r\n\x1a\n"
    encoded = require(encoded, is_jpeg | is_png, "The bytes are not a JPEG or PNG image.")
    # libjpeg's own reading of the size, and what libpng will read.
    height, width = tf.unstack(
        tf.cond(
            is_jpeg,
            lambda: tf.cast(tf.io.extract_jpeg_shape(encoded)[:2], tf.int64),
            lambda: _png_size(encoded),
        )
    )
    # Sides are below 2^32; their product may wrap, their quotient does not.
    is_bounded = (height > 0) & (width > 0) & (height <= max_pixels // tf.maximum(width, 1))
    text = "The image is {} x {} pixels; at most {} pixels in all are accepted."
    encoded = require(encoded, is_bounded, text, width, height, max_pixels)
    # The op reads PNG as well; the accurate transform is what Pillow and OpenCV decode with.
    image = tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE")
    return tf.ensure_shape(image, [None, None, 3])


def _png_size(encoded: tf.Tensor) -> tf.Tensor:
    """int64 [2], (height, width) in the header of a PNG file, which has to come first."""
    data = tf.io.decode_raw(tf.strings.substr(encoded, 0, _HEADER_BYTES), tf.uint8)
    data = tf.pad(data, [[0, _HEADER_BYTES - tf.size(data)]])
    data = require(
        data,
        tf.reduce_all(data[12:16] == list(b"IHDR")),
        "The PNG image does not begin with its header.",
    )
    text = "The PNG image has 16 bits a channel; 8 are accepted."
    data = require(data, data[24] <= 8, text)
    sides = tf.cast(tf.reshape(data[16:24], [2, 4]), tf.int64)  # (width, height), big-endian
    return tf.reverse(tf.reduce_sum(sides * [2**24, 2**16, 2**8, 1], axis=1), [0])
