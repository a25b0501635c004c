"""Image files of strangers to RGB, in the graph: upright, and refused before they fill memory."""

from __future__ import annotations

import functools

import tensorflow as tf

from maskx_tf.data import preprocessing
from maskx_tf.inference import image_header

MAX_PIXELS = 50_000_000
MAX_SCANS = 100  # of a progressive JPEG; usual are 10. A small file may hold thousands


def decode(encoded: tf.Tensor, max_pixels: int | tf.Tensor = MAX_PIXELS) -> tf.Tensor:
    """uint8 RGB [H, W, 3] of a JPEG, PNG, GIF or BMP file, string [], as a person would see it.

    JPEG files are turned as their EXIF orientation says; training and evaluation, like COCO's
    annotations, know no EXIF. But for that they are decoded as in training. Grey, palette, 16-bit,
    CMYK and transparent images become 8-bit RGB; of an animation the first frame is taken.

    Args:
      encoded: string [], the file.
      max_pixels: largest height times width; larger ones are refused from the header.

    Raises:
      tf.errors.InvalidArgumentError: with a sentence in it, see `reason`.
    """
    return _decode(encoded, tf.cast(max_pixels, tf.int64))


@tf.function(
    autograph=False, input_signature=[tf.TensorSpec([], tf.string), tf.TensorSpec([], tf.int64)]
)
def _decode(encoded: tf.Tensor, max_pixels: tf.Tensor) -> tf.Tensor:
    decoders = (_decode_jpeg, _decode_png, _decode_gif, _decode_bmp, _refuse)
    image = tf.switch_case(
        image_header.kind(encoded),
        [functools.partial(decoder, encoded, max_pixels) for decoder in decoders],
    )
    return tf.ensure_shape(image, [None, None, 3])


def reason(error: Exception) -> str:
    """One line of why an image could not be decoded, without TensorFlow's own decoration."""
    text = getattr(error, "message", "") or str(error)
    text = text.split("[Op:")[0].replace("{{function_node", "\n{{function_node")
    noise = ("Graph execution error", "Detected at node", "<stack traces", "File ", "[[", "{{")
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith(noise)]
    line = lines[-1] if lines else type(error).__name__
    return line.removeprefix("assertion failed: [").removesuffix("]")


def _decode_jpeg(encoded: tf.Tensor, max_pixels: tf.Tensor) -> tf.Tensor:
    scans = image_header.jpeg_scans(encoded)
    encoded = require(
        encoded,
        scans <= MAX_SCANS,
        f"The JPEG image has {{}} scans; at most {MAX_SCANS} are accepted.",
        scans,
    )
    encoded = _bounded(encoded, image_header.JPEG, max_pixels)
    return _upright(preprocessing.decode_image(encoded), image_header.jpeg_orientation(encoded))


def _decode_png(encoded: tf.Tensor, max_pixels: tf.Tensor) -> tf.Tensor:
    encoded = require(
        encoded,
        image_header.png_starts_with_its_header(encoded),
        "The PNG image does not begin with its header.",
    )
    return tf.io.decode_png(_bounded(encoded, image_header.PNG, max_pixels), channels=3)


def _decode_gif(encoded: tf.Tensor, max_pixels: tf.Tensor) -> tf.Tensor:
    encoded = _bounded(encoded, image_header.GIF, max_pixels)
    frame_bytes, frame = image_header.gif_first_frame(encoded)
    size = image_header.size(encoded, image_header.GIF)
    frame_bytes = require(
        frame_bytes, tf.strings.length(frame_bytes) > 0, "The GIF image has no whole first frame."
    )
    frame_bytes = require(
        frame_bytes,
        tf.reduce_all(frame == tf.stack([0, 0, size[1], size[0]])),
        "The first frame of the GIF image does not cover its screen.",
    )
    return tf.io.decode_gif(frame_bytes)[0]


def _decode_bmp(encoded: tf.Tensor, max_pixels: tf.Tensor) -> tf.Tensor:
    bits = image_header.bmp_bits(encoded)
    text = "The BMP image has {} bits per pixel; 24 and 32 are accepted."
    encoded = require(encoded, (bits == 24) | (bits == 32), text, bits)
    encoded = _bounded(encoded, image_header.BMP, max_pixels)
    return tf.io.decode_bmp(encoded)[..., :3]


def _refuse(encoded: tf.Tensor, max_pixels: tf.Tensor) -> tf.Tensor:
    encoded = require(
        encoded, tf.constant(False), "The bytes are not a JPEG, PNG, GIF or BMP image."
    )
    return tf.zeros([tf.strings.length(encoded) * 0, 0, 3], tf.uint8)


def _bounded(encoded: tf.Tensor, kind: int, max_pixels: tf.Tensor) -> tf.Tensor:
    """The same bytes, to be used only after their header's size was found acceptable."""
    height, width = tf.unstack(image_header.size(encoded, kind))
    # Sides are below 2^32; their product may wrap, their quotient does not.
    is_bounded = (height > 0) & (width > 0) & (height <= max_pixels // tf.maximum(width, 1))
    text = "The image is {} x {} pixels; at most {} pixels in all are accepted."
    return require(encoded, is_bounded, text, width, height, max_pixels)


def require(value: tf.Tensor, condition: tf.Tensor, text: str, *numbers: tf.Tensor) -> tf.Tensor:
    """`value`, which does not exist before the condition was found true.

    Raises:
      tf.errors.InvalidArgumentError: with `text`, in which each {} stands for one of the numbers.
    """
    message = tf.strings.format(text, numbers) if numbers else tf.constant(text)
    with tf.control_dependencies([tf.debugging.Assert(condition, [message])]):
        return tf.identity(value)


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
