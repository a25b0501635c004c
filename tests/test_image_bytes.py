"""Files of strangers: each decoded as Pillow does, upright, or refused with a sentence; fast."""

import io
import struct
import time
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from maskx_tf.data import preprocessing
from maskx_tf.inference import image_bytes, image_header
from tests import tiny
from tests.harness import image_file

IMAGE = tiny.images()[0]  # uint8 [40, 56, 3]


def pillow(encoded):
    image = Image.open(io.BytesIO(encoded))
    return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def refusal(encoded, max_pixels=image_bytes.MAX_PIXELS):
    with pytest.raises(tf.errors.InvalidArgumentError) as error:
        image_bytes.decode(encoded, max_pixels)
    return image_bytes.reason(error.value)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "JPEG"])
def test_decodes(kind):
    image = np.kron(IMAGE[::8, ::8], np.ones((8, 8, 1), np.uint8))
    image = image // 128 * 255  # few colours, for the palette of a GIF
    decoded = image_bytes.decode(image_file(image, kind)).numpy()
    assert decoded.shape == image.shape and decoded.dtype == np.uint8
    if kind != "JPEG":
        np.testing.assert_array_equal(decoded, image)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [(mode, "PNG") for mode in ("L", "P", "1")]
    + [(mode, "GIF") for mode in ("L", "P", "1")]
    + [("L", "JPEG"), ("RGBA", "BMP")],
)
def test_grey_and_palette_images_become_rgb(mode, kind):
    encoded = image_file(Image.fromarray(IMAGE).convert(mode), kind)
    np.testing.assert_array_equal(image_bytes.decode(encoded), pillow(encoded))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_dropped(mode):
    picture = Image.fromarray(IMAGE).convert(mode)
    picture.putalpha(99)
    decoded = image_bytes.decode(image_file(picture, "PNG"))
    np.testing.assert_array_equal(decoded, pillow(image_file(picture, "PNG")))


def test_16_bit_png_keeps_the_upper_byte():
    values = np.random.default_rng(0).integers(0, 2**16, (30, 20)).astype(np.uint16)
    decoded = image_bytes.decode(image_file(values, "PNG")).numpy()
    np.testing.assert_allclose(decoded[..., 0], values / 257, atol=1)


def test_cmyk_jpeg():
    encoded = image_file(Image.fromarray(np.kron(IMAGE[::8, ::8], np.ones((8, 8, 1), np.uint8)))
                     .convert("CMYK"), "JPEG", quality=95)  # fmt: skip
    gap = np.abs(image_bytes.decode(encoded).numpy().astype(int) - pillow(encoded))
    assert gap.mean() < 3


def test_jpeg_is_decoded_as_in_training():
    encoded = image_file(IMAGE, "JPEG")
    np.testing.assert_array_equal(image_bytes.decode(encoded), preprocessing.decode_image(encoded))


@pytest.mark.parametrize("frames", [1, 3])
def test_first_frame_of_an_animation(frames):
    pictures = [Image.fromarray(IMAGE[..., i]) for i in range(frames)]
    encoded = image_file(pictures[0], "GIF", save_all=True, append_images=pictures[1:])
    np.testing.assert_array_equal(image_bytes.decode(encoded).numpy()[..., 0], IMAGE[..., 0])


def test_gif_is_cut_before_later_frames_are_decoded():
    """What follows the first frame is not even looked at: here it is no GIF any more."""
    pictures = [Image.fromarray(IMAGE[..., i]) for i in range(2)]
    encoded = image_file(pictures[0], "GIF", save_all=True, append_images=pictures[1:])
    frame, place = image_header.gif_first_frame(encoded)
    assert encoded.startswith(frame.numpy()[:-1]) and len(frame.numpy()) < len(encoded) * 2 / 3
    assert place.numpy().tolist() == [0, 0, 56, 40]
    damaged = encoded[: len(frame.numpy())] + b"\xff" * 1000
    np.testing.assert_array_equal(image_bytes.decode(damaged), image_bytes.decode(encoded))


def test_large_gif_is_walked_through_quickly():
    noise = np.random.default_rng(0).integers(0, 256, (1000, 1000)).astype(np.uint8)
    encoded = image_file(noise, "GIF")
    assert len(encoded) > 1e6
    start = time.monotonic()
    np.testing.assert_array_equal(image_bytes.decode(encoded).numpy()[..., 0], noise)
    assert time.monotonic() - start < 2


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


def bmp_header(width, height):
    return b"BM" + struct.pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, width, height, 1, 24, *[0] * 6)


def gif_header(width, height):
    frame = struct.pack("<BHHHHB", 0x2C, 0, 0, width, height, 0)
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0, 0, 0) + frame + b"\2\1\0\0;"


def jpeg_header(width, height):
    encoded = image_file(IMAGE, "JPEG")
    place = encoded.index(b"\xff\xc0") + 5
    return encoded[:place] + struct.pack(">HH", height, width) + encoded[place + 4 :]


@pytest.mark.parametrize("header", [png_header, bmp_header, gif_header, jpeg_header])
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


def test_bmp_with_rows_from_the_top():
    assert "is 30000 x 30000 pixels" in refusal(bmp_header(30_000, -30_000))


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
        (b"", "The bytes are not a JPEG, PNG, GIF or BMP image."),
        (b"\xff", "The bytes are not a JPEG, PNG, GIF or BMP image."),
        (b"<!DOCTYPE html><html></html>", "The bytes are not a JPEG, PNG, GIF or BMP image."),
        (b"RIFF\x24\0\0\0WEBPVP8 ", "The bytes are not a JPEG, PNG, GIF or BMP image."),
        (b"\xff\xd8\xff", "JPEG"),
        (b"\x89PNG\r\n\x1a\n", "The PNG image does not begin with its header."),
        (b"GIF8", "pixels in all are accepted"),  # its size is read from its last bytes
        (b"GIF89a\1\0\1\0\0\0\0;", "The GIF image has no whole first frame."),
        (b"BM", "The BMP image has "),
        (image_file(IMAGE, "JPEG")[:1500], "JPEG"),
        (image_file(IMAGE, "PNG")[:1500], "PNG"),
        (image_file(IMAGE, "BMP")[:1500], ""),
        (image_file(Image.fromarray(IMAGE[..., 0]), "GIF")[:1500], "no whole first frame"),
        (image_file(Image.fromarray(IMAGE).convert("P"), "BMP"), "8 bits per pixel; 24 and 32 are"),
    ],
)
def test_refused_with_a_sentence(encoded, text):
    reason = refusal(encoded)
    assert text in reason
    assert len(reason) > 10 and "\n" not in reason and "node" not in reason and len(reason) < 200


def test_a_gif_frame_beside_its_screen_is_refused():
    encoded = bytearray(image_file(Image.fromarray(IMAGE[..., 0]), "GIF"))
    encoded[6:8] = struct.pack("<H", 57)
    assert refusal(bytes(encoded)) == "The first frame of the GIF image does not cover its screen."
