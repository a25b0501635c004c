"""Files of strangers: each decoded as in training, upright, or refused with a sentence; fast."""

import io
import struct
import time
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from maskx_tf.data import decoding
from maskx_tf.inference import image_bytes, image_header
from tests import awkward_images, tiny
from tests.harness import image_file

IMAGE = tiny.images()[0]  # uint8 [40, 56, 3]


def pillow(encoded):
    image = Image.open(io.BytesIO(encoded))
    return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def refusal(encoded, max_pixels=image_bytes.MAX_PIXELS):
    with pytest.raises(tf.errors.InvalidArgumentError) as error:
        image_bytes.decode(encoded, max_pixels)
    return decoding.reason(error.value)


@pytest.mark.parametrize("name", sorted(set(awkward_images.valid()) - {"7000x7000", "exif"}))
def test_decoded_as_in_training(name):
    encoded = awkward_images.valid()[name]
    np.testing.assert_array_equal(image_bytes.decode(encoded), decoding.to_array(encoded))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("endian", ["<", ">"])
def test_exif_orientation(orientation, endian):
    """As Pillow turns it, whichever byte order the camera wrote."""
    exif = Image.Exif()
    exif.endian = endian
    exif[0x010F] = "a maker"  # sorted before the orientation
    exif[0x0112] = orientation
    exif[0x0131] = "a program"
    encoded = image_file(IMAGE, "JPEG", exif=exif.tobytes())
    decoded = image_bytes.decode(encoded).numpy()
    np.testing.assert_array_equal(decoded, pillow(encoded))
    assert decoded.shape == ((40, 56, 3) if orientation < 5 else (56, 40, 3))
    assert image_header.jpeg_orientation(tf.constant(encoded)).numpy() == orientation


def exif_jpeg(tiff):
    """A JPEG whose EXIF segment, after another one, holds these bytes."""
    encoded = image_file(IMAGE, "JPEG")
    body = b"Exif\0\0" + tiff
    return b"".join(
        [
            encoded[:2],
            b"\xff\xe2" + struct.pack(">H", 2 + 300) + b"\xff\xda" + bytes(298),
            b"\xff\xff\xe1" + struct.pack(">H", 2 + len(body)) + body,  # with a fill byte
            encoded[2:],
        ]
    )


@pytest.mark.parametrize(
    ("tiff", "orientation"),
    [
        (struct.pack("<2sHIHHHIHH", b"II", 42, 8, 1, 0x0112, 3, 1, 6, 0), 6),
        (struct.pack(">2sHIHHHIHH", b"MM", 42, 8, 1, 0x0112, 3, 1, 6, 0), 6),
        (struct.pack("<2sHIHHHIHH", b"II", 42, 8, 1, 0x0112, 3, 1, 9, 0), 1),  # no such
        (struct.pack("<2sHIHHHIHH", b"II", 42, 8, 1, 0x0112, 3, 1, 0, 0), 1),
        (struct.pack("<2sHIHHHIHH", b"II", 42, 8, 1, 0x0113, 3, 1, 6, 0), 1),  # another tag
        (struct.pack("<2sHIHHHIHH", b"II", 42, 8, 60000, 0x0112, 3, 1, 6, 0), 1),  # too many
        (struct.pack("<2sHIH", b"II", 42, 2**32 - 1, 1), 1),  # a directory beyond the file
        (b"", 1),
        (b"II", 1),
    ],
)
def test_exif_made_by_hand(tiff, orientation):
    encoded = exif_jpeg(tiff)
    assert image_header.jpeg_orientation(tf.constant(encoded)).numpy() == orientation
    shape = (40, 56, 3) if orientation == 1 else (56, 40, 3)
    assert image_bytes.decode(encoded).shape == shape


def png_header(width, height):
    """A PNG file of that size with (nearly) no pixels."""

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(100)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def jpeg_header(width, height):
    encoded = image_file(IMAGE, "JPEG")
    place = encoded.index(b"\xff\xc0") + 5
    return encoded[:place] + struct.pack(">HH", height, width) + encoded[place + 4 :]


@pytest.mark.parametrize("header", [png_header, jpeg_header])
@pytest.mark.parametrize(("width", "height"), [(50_000, 1001), (1001, 50_000), (60_000, 60_000)])
def test_size_is_refused_from_the_header(header, width, height):
    start = time.monotonic()
    reason = refusal(header(width, height))
    assert reason == (
        f"The image is {width} x {height} pixels; at most 50000000 pixels in all are accepted."
    )
    assert time.monotonic() - start < 1


@pytest.mark.parametrize("sides", [(2**31 - 1, 2**31 - 1), (2**32 - 1, 2**32 - 1), (1, 2**31)])
def test_products_that_wrap_are_refused(sides):
    assert "at most 50000000 pixels" in refusal(png_header(*sides))


def test_max_pixels_is_the_largest_accepted():
    encoded = image_file(IMAGE, "PNG")
    assert image_bytes.decode(encoded, 40 * 56).shape == (40, 56, 3)
    assert "is 56 x 40 pixels; at most 2239" in refusal(encoded, 40 * 56 - 1)


def test_a_true_bomb_of_a_few_hundred_kilobytes():
    bomb = image_file(Image.new("1", (40_000, 40_000)), "PNG")  # 4.8 GB as RGB
    assert 1e5 < len(bomb) < 5e5
    start = time.monotonic()
    assert "The image is 40000 x 40000 pixels" in refusal(bomb)
    assert time.monotonic() - start < 1


def test_jpeg_of_thousands_of_scans_is_refused():
    encoded = image_file(IMAGE, "JPEG", progressive=True)
    assert image_bytes.decode(encoded).shape == (40, 56, 3)
    place = encoded.rindex(b"\xff\xda")
    repeated = encoded[:place] + encoded[place:-2] * 3000 + encoded[-2:]
    assert "scans; at most 100 are accepted" in refusal(repeated)


@pytest.mark.parametrize(
    ("encoded", "text"),
    [
        (b"", "The bytes are not a JPEG or PNG image."),
        (b"\xff", "The bytes are not a JPEG or PNG image."),
        (b"<!DOCTYPE html><html></html>", "The bytes are not a JPEG or PNG image."),
        (b"RIFF\x24\0\0\0WEBPVP8 ", "The bytes are not a JPEG or PNG image."),
        (image_file(IMAGE, "WEBP"), "The bytes are not a JPEG or PNG image."),
        (image_file(IMAGE[..., 0], "GIF"), "The bytes are not a JPEG or PNG image."),
        (image_file(IMAGE[..., 0].astype(np.uint16)), "16 bits a channel; 8 are accepted"),
        (b"\xff\xd8\xff", "JPEG"),
        (b"\x89PNG\r\n\x1a\n", "The PNG image does not begin with its header."),
        (image_file(IMAGE, "JPEG")[:1500], "JPEG"),
        (image_file(IMAGE, "PNG")[:1500], "PNG"),
    ],
)
def test_refused_with_a_sentence(encoded, text):
    reason = refusal(encoded)
    assert text in reason
    assert len(reason) > 10 and "\n" not in reason and "node" not in reason and len(reason) < 200
