"""One judgement of what an image is: for writing, checking, training and predicting alike."""

import io
import struct
import warnings
import zlib
from collections import Counter

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from maskx_tf.data import decoding, image_formats
from maskx_tf.data.coco.images import read_image
from maskx_tf.data.image_formats import BadImageError
from maskx_tf.data.records import index, reader, schema
from maskx_tf.data.records.framing import masked_crc
from tests import awkward_images
from tests.harness import encode_image, image_file, random_image

IMAGE = random_image(40, 56)
VALID = {name: data for name, data in awkward_images.valid().items() if name != "7000x7000"}


def pillow(encoded):
    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))


def training_pixels(files, tmp_path):
    """What training reads of records that hold these files, one image each; None: named damage."""
    path = tmp_path / "images.tfrecord"
    with open(path, "wb") as file:
        for number, data in enumerate(files):
            example = schema.serialize_record(schema.ImageRecord(number, "x", data, 40, 56, []))
            length = struct.pack("<Q", len(example))
            for part in (length, struct.pack("<I", masked_crc(length)), example):
                file.write(part)
            file.write(struct.pack("<I", masked_crc(example)))
    found = index.build([path], {}, skip_corrupt=False)
    numbers = tf.data.Dataset.from_tensor_slices(np.stack([np.arange(len(files))] * 2, axis=-1))
    pixels = []
    for _, payload, _ in reader.read(found, numbers):
        encoded = schema.parse_example(payload)["encoded"]
        try:
            pixels.append(decoding.decode(encoded).numpy())
        except tf.errors.InvalidArgumentError:
            pixels.append(None)
    return pixels


def written(files, tmp_path, expected=lambda data: (None, None)):
    """What the writer makes of these files: bytes and pixels; None where it refuses one."""
    results = []
    for data in files:
        (tmp_path / "photo").write_bytes(data)
        try:
            image = read_image(tmp_path / "photo", expected(data))
        except BadImageError as error:
            assert "photo cannot be used" in str(error) and "\n" not in str(error)
            assert "0x" not in str(error), "no memory address"
            results.append(None)
        else:
            results.append((image.encoded, image.pixels))
    return results


@pytest.mark.parametrize("name", VALID)
def test_jpeg_and_png_are_kept_and_decoded_as_pillow_does(tmp_path, name):
    ((encoded, pixels),) = written([VALID[name]], tmp_path)
    assert encoded == VALID[name]
    np.testing.assert_array_equal(training_pixels([encoded], tmp_path)[0], pixels)
    gap = np.abs(pixels.astype(int) - pillow(encoded)).max()
    assert gap <= (1 if name == "cmyk" else 0)


@pytest.mark.parametrize("name", awkward_images.convertible())
def test_other_kinds_become_png(tmp_path, name, recwarn):
    data = awkward_images.convertible()[name]
    ((encoded, pixels),) = written([data], tmp_path)
    assert encoded.startswith(b"\x89PNG")
    np.testing.assert_array_equal(training_pixels([encoded], tmp_path)[0], pixels)
    np.testing.assert_array_equal(pixels, pillow(image_formats.upright_file(data)))
    if not name.startswith(("12 bit", "float")):
        np.testing.assert_array_equal(pixels, pillow(data))
    assert not recwarn.list


def check_mutations(count, seed, tmp_path):
    files = awkward_images.mutations(count, seed)
    trained = training_pixels(files, tmp_path)
    accepted = 0
    for data, result, pixels in zip(files, written(files, tmp_path), trained, strict=True):
        if result is None:
            assert pixels is None, data
        elif result[0] == data:
            accepted += 1
            np.testing.assert_array_equal(result[1], pixels)
        else:  # of another kind now
            np.testing.assert_array_equal(result[1], pillow(result[0]))
    assert 0.1 * count < accepted < 0.9 * count


def test_what_is_written_is_what_training_decodes(tmp_path):
    """300 damaged files: accepted by both or refused by both, with equal pixels."""
    check_mutations(300, 0, tmp_path)


@pytest.mark.slow
def test_what_is_written_is_what_training_decodes_of_10000(tmp_path):
    check_mutations(10_000, 1, tmp_path)


def size_if_turned(data):
    """What a json says of a photo that a tool has turned; EXIF decides whether it is believed."""
    try:
        with warnings.catch_warnings(action="ignore"):
            return Image.open(io.BytesIO(data)).size
    except Exception:  # no image, or a damaged one
        return None, None


@pytest.mark.parametrize("count", [400, pytest.param(10_000, marks=pytest.mark.slow)])
def test_odd_files_are_written_if_and_only_if_training_decodes_them(tmp_path, count, recwarn):
    """Tiny pictures with other chunks, segments, EXIF, depths and tails; also turned by EXIF."""
    files = awkward_images.odd_files(count, seed=count)
    results = written(files, tmp_path, size_if_turned)
    pairs = zip(files, results, strict=True)
    stored = [data if result is None else result[0] for data, result in pairs]
    refused = Counter()
    for data, result, pixels in zip(files, results, training_pixels(stored, tmp_path), strict=True):
        if result is None:
            assert pixels is None, data
            refused[data[:3]] += 1
        else:
            np.testing.assert_array_equal(result[1], pixels)
    assert 0.05 * count < refused.total() < 0.6 * count
    assert refused[b"\xff\xd8\xff"] and refused[b"\x89PN"]
    assert not recwarn.list


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: data[: len(data) // 2], "its end is missing"),
        (lambda data: data[:-2], "its end is missing"),
        (lambda data: data[: len(data) // 2] + bytes(500), "its last 500 bytes are zeros"),
        (lambda data: data.replace(b"\xff\xc4", b"\xff\xc5", 1), "it cannot be decoded"),
    ],
)
def test_a_damaged_photo_is_refused_with_its_cause(tmp_path, damage, reason):
    data = damage(image_file(IMAGE, "JPEG"))
    with pytest.raises(BadImageError, match=reason):
        image_formats.to_picture(data) and decoding.to_array(data)
    assert written([data], tmp_path) == [None]


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "is empty"),
        (b"\0\0\0\x24ftypheic\0\0\0\0mif1heic", "HEIC photo: convert it to JPEG"),
        (b"\0\0\0\x20ftypisom\0\0\2\0", "a video"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"\n  <!DOCTYPE html><html>404</html>", "download failed"),
        (b"\x1f\x8b\x08\0", "gzip"),
        (bytes(1000), "zero bytes"),
        (image_file(IMAGE[..., 0], "GIF")[:1500], "cannot be decoded"),
        (b"rubbish", "no image of a kind that is known"),
        (awkward_images.flat_png(60_000, 3_000), "178,956,970 pixels: cut it into tiles"),
        (image_file(Image.new("1", (60_000, 3_000)), "TIFF", compression="group4"), "tiles"),
    ],
)
def test_kinds_of_files_are_named(tmp_path, data, sentence):
    (tmp_path / "a.jpg").write_bytes(data)
    with pytest.raises(BadImageError, match=sentence) as error:
        read_image(tmp_path / "a.jpg", (None, None))
    assert "a.jpg cannot be used" in str(error.value)


class TestPixelRange:
    """Files of more than 8 bits a channel, and of floats."""

    VALUES = np.linspace(100, 3000, 40 * 56).reshape(40, 56)

    @pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
    def test_the_range_of_an_image_becomes_black_to_white(self, dtype):
        values = self.VALUES.astype(dtype)
        pixels = image_formats.to_8_bits(values, None).astype(int)
        assert (pixels.min(), pixels.max()) == (0, 255)
        wanted = (values.astype(float) - 100) / 2900 * 255
        assert np.abs(pixels - wanted).max() < 1

    def test_a_hot_pixel_does_not_make_the_rest_black(self):
        values = self.VALUES.astype(np.uint16)
        values[3, 4] = 65535
        assert 100 < np.median(image_formats.to_8_bits(values, None)) < 150

    def test_what_is_no_number_is_black(self):
        values = self.VALUES.copy()
        values[0, :3] = [np.nan, np.inf, -np.inf]
        pixels = image_formats.to_8_bits(values, None)
        assert pixels[0, :3].tolist() == [0, 255, 0]
        with pytest.raises(BadImageError, match="no finite value"):
            image_formats.to_8_bits(np.full([3, 3], np.nan), None)

    @pytest.mark.parametrize("value", [0, 65535])
    def test_an_image_of_one_value_is_grey(self, value):
        assert (image_formats.to_8_bits(np.full([9, 9], value, np.uint16), None) == 128).all()

    def test_a_given_range_is_that_of_all_images(self):
        values = np.array([[0, 1000, 4095, 9000]], np.uint16)
        pixels = image_formats.to_8_bits(values, (0, 4095))
        assert pixels.tolist() == [[0, 62, 255, 255]]

    @pytest.mark.parametrize("channels", [1, 2, 3, 4])
    def test_png_of_12_bits_in_16_with_and_without_alpha(self, channels):
        values = np.random.default_rng(0).integers(0, 4096, (8, 9, channels)).astype(np.uint16)
        pixels = pillow(
            image_formats.to_picture(awkward_images.deep_png(values), (0, 4095)).encoded
        )
        colors = values[..., :3] if channels > 2 else values[..., [0, 0, 0]]
        assert np.abs(pixels - colors / 4095 * 255).max() <= 0.5

    def test_colours_keep_their_balance(self):
        names = ("12 bit rgb png", "12 bit rgb tiff")
        png, tiff = (awkward_images.convertible()[name] for name in names)
        pixels = pillow(image_formats.to_picture(png, (0, 4095)).encoded)
        colors = np.random.default_rng(0).integers(0, 4096, (40, 56, 3))
        assert np.abs(pixels - colors / 4095 * 255).max() <= 0.5
        np.testing.assert_array_equal(
            pillow(image_formats.to_picture(tiff, (0, 4095)).encoded), pixels
        )


class TestOrientation:
    """What EXIF says; nothing where it is broken."""

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
    def test_as_pillow_turns(self, orientation, kind):
        exif = Image.Exif()
        exif[0x0112] = orientation
        options = {"lossless": True} if kind == "WEBP" else {}
        data = image_file(IMAGE, kind, exif=exif, **options)
        picture = image_formats.to_picture(data)
        assert picture.orientation == orientation
        upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
        turned = image_formats.turned(pillow(picture.encoded), orientation)
        np.testing.assert_array_equal(turned, upright)
        file = image_formats.upright_file(data)
        if kind == "JPEG":
            assert file == data  # served models turn JPEG themselves
        else:
            np.testing.assert_array_equal(pillow(file), upright)

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize(
        "kind", ["grey tiff", "tiff", "deep grey tiff", "deep tiff", "deep png"]
    )
    def test_of_deep_files_and_tiff(self, orientation, kind):
        """Pillow and OpenCV turn TIFF themselves; here the json is asked first."""
        channels = () if "grey" in kind else (3,)
        values = np.random.default_rng(0).integers(0, 256, (4, 6, *channels)).astype(np.uint8)
        dtype = np.uint16 if "deep" in kind else np.uint8
        if "png" in kind:
            data = awkward_images.with_exif(encode_image(values.astype(dtype), ".png"), orientation)
        else:
            data = awkward_images.tiff(values.astype(dtype), orientation)
        picture = image_formats.to_picture(data, (0, 255))
        assert picture.orientation == orientation
        stored = values if channels else np.stack([values] * 3, axis=-1)
        np.testing.assert_array_equal(pillow(picture.encoded), stored)

    @pytest.mark.parametrize(
        "exif", [b"", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", bytes(40)]
    )
    @pytest.mark.parametrize("kind", ["JPEG", "PNG"])
    def test_broken_exif_is_none(self, tmp_path, exif, kind, recwarn):
        data = image_file(IMAGE, kind, exif=exif) if exif else image_file(IMAGE, kind)
        assert image_formats.to_picture(data).orientation == 1
        assert written([data], tmp_path)[0][0] == data
        assert not recwarn.list


def png_header(width, height, depth=8):
    """A PNG file of that size with (nearly) no pixels."""

    def chunk(name, data):
        crc = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + crc

    header = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(100)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "data",
    [*awkward_images.convertible().values(), png_header(9, 9, depth=16)],
    ids=[*awkward_images.convertible(), "16 bit header"],
)
def test_only_jpeg_and_png_of_8_bits_are_decoded(data):
    """TensorFlow alone would take WebP, and the upper bytes of 16 bits."""
    with pytest.raises(BadImageError, match="not a JPEG or PNG image|16 bits a channel"):
        decoding.to_array(data)
