"""Image files that services meet: odd but valid ones, damaged ones, and no images at all."""

import struct
import zlib

import numpy as np
from PIL import Image

from tests.harness import encode_image, image_file


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """uint8 [height, width, channels]."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels)).astype(np.uint8)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def flat_png(width: int, height: int) -> bytes:
    """A black one-bit PNG of any size, without ever holding its pixels."""
    squeeze, row = zlib.compressobj(9), bytes(1 + (width + 7) // 8)
    data = b"".join(squeeze.compress(row) for _ in range(height)) + squeeze.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    chunks = _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def deep_png(values: np.ndarray) -> bytes:
    """A PNG file of 16 bits of uint16 [h, w, channels]: grey, grey and alpha, RGB or RGBA."""
    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    color = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    chunks = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, color, 0, 0, 0))
    chunks += _chunk(b"IDAT", zlib.compress(rows)) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def with_exif(png: bytes, orientation: int) -> bytes:
    """A PNG file with EXIF after its header."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return png[:33] + _chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")) + png[33:]


def tiff(values: np.ndarray, orientation: int) -> bytes:
    """A TIFF file of uint8 or uint16 [h, w] or RGB [h, w, 3], with an orientation."""
    height, width, channels = *values.shape[:2], values[0, 0].size
    bits = 8 * values.itemsize
    body = values.astype(values.dtype.newbyteorder("<")).tobytes() + struct.pack("<3H", *[bits] * 3)
    end = 8 + len(body)
    tags = (
        (256, 3, 1, width), (257, 3, 1, height),
        (258, 3, channels, end - 6 if channels == 3 else bits), (259, 3, 1, 1),
        (262, 3, 1, 2 if channels == 3 else 1), (273, 4, 1, 8), (274, 3, 1, orientation),
        (277, 3, 1, channels), (278, 3, 1, height), (279, 4, 1, values.nbytes),
    )  # fmt: skip
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    head = b"II*\0" + struct.pack("<I", end) + body
    return head + struct.pack("<H", len(tags)) + entries + bytes(4)


def valid() -> dict[str, bytes]:
    """JPEG and PNG files of all kinds that a served model takes."""
    rgb = noise(40, 56)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    return {
        "jpeg": image_file(rgb, "JPEG"),
        "png": image_file(rgb),
        "progressive": image_file(rgb, "JPEG", progressive=True),
        "subsampled": image_file(noise(41, 57), "JPEG", subsampling=2),
        "1x1": image_file(noise(1, 1)),
        "1x4000": image_file(noise(4000, 1)),
        "7000x7000": image_file(np.zeros([7000, 7000, 3], np.uint8)),
        "cmyk": image_file(Image.fromarray(noise(40, 56, 4), "CMYK"), "JPEG"),
        "1 bit": image_file(Image.fromarray(rgb).convert("1")),
        "grey transparent": image_file(Image.fromarray(noise(40, 56, 4)).convert("LA")),
        "palette": image_file(Image.fromarray(rgb).quantize(16)),
        "grey": image_file(Image.fromarray(rgb).convert("L"), "JPEG"),
        "transparent": image_file(noise(40, 56, 4)),
        "exif": image_file(rgb, "JPEG", exif=exif),
        # Phones append films, and whole pictures; bytes of a film look like starts of scans.
        "jpeg and film": image_file(rgb, "JPEG") + b"\xff\xda" * 300,
        "two jpegs": image_file(rgb, "JPEG") + image_file(rgb, "JPEG"),
    }


def convertible() -> dict[str, bytes]:
    """Files of other kinds, of which PNG is made before anything else sees them."""
    rgb = noise(40, 56)
    picture = Image.fromarray(rgb)
    frames = [Image.fromarray(noise(40, 56, seed=seed)) for seed in range(3)]
    animation = {"save_all": True, "append_images": frames[1:]}
    deep = np.random.default_rng(0).integers(0, 4096, (40, 56)).astype(np.uint16)
    colors = np.random.default_rng(0).integers(0, 4096, (40, 56, 3)).astype(np.uint16)
    return {
        "bmp": image_file(rgb, "BMP"),
        "palette bmp": image_file(picture.quantize(16), "BMP"),
        "gif": image_file(picture.quantize(16), "GIF"),
        "animated gif": image_file(frames[0], "GIF", **animation),
        "webp": image_file(rgb, "WEBP"),
        "animated webp": image_file(frames[0], "WEBP", **animation),
        "tiff": image_file(rgb, "TIFF"),
        "cmyk tiff": image_file(picture.convert("CMYK"), "TIFF", compression="tiff_lzw"),
        "tiff of pages": image_file(frames[0], "TIFF", **animation),
        "12 bit tiff": image_file(Image.fromarray(deep), "TIFF"),
        "float tiff": image_file(Image.fromarray(deep.astype(np.float32) / 7 - 90), "TIFF"),
        "12 bit png": image_file(Image.fromarray(deep)),
        "12 bit rgb png": encode_image(colors, ".png"),
        "12 bit rgb tiff": encode_image(colors, ".tiff"),
        "ppm": image_file(rgb, "PPM"),
        "jpeg 2000": image_file(rgb, "JPEG2000"),
        "avif": image_file(rgb, "AVIF"),
    }


def invalid() -> dict[str, bytes]:
    """What must be refused."""
    return {
        "empty": b"",
        "html": b"<!DOCTYPE html><html><body>404</body></html>",
        "signature only": b"\xff\xd8\xff",
        "truncated png": image_file(noise(40, 56))[:300],
        "tiff": image_file(noise(40, 56), "TIFF"),
        "gif": image_file(noise(40, 56)[..., 0], "GIF"),
        "16 bit": image_file(noise(40, 56)[..., 0].astype(np.uint16) * 250),
        "8000x8000": flat_png(8_000, 8_000),  # an export takes 50 megapixels
        "bomb": flat_png(30_000, 30_000),
    }


def mutations(count: int, seed: int = 0) -> list[bytes]:
    """Damaged copies of small JPEG and PNG files.

    Bytes changed, cut out, doubled, cut off, spliced, or zeros at the end.
    """
    rng = np.random.default_rng(seed)
    files = valid()
    bases = [data for name, data in files.items() if name != "7000x7000"]
    return [_mutate(bases[rng.integers(len(bases))], bases, rng) for _ in range(count)]


_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F")
_KINDS = {
    "JPEG": ("L", "RGB", "CMYK"),
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "TIFF": _MODES,
    "WEBP": ("RGB", "RGBA"),
    "BMP": ("1", "L", "P", "RGB"),
    "GIF": ("L", "P"),
    "PPM": ("1", "L", "RGB", "I;16"),
}


def odd_files(count: int, seed: int = 0) -> list[bytes]:
    """Tiny pictures of random kinds, depths and EXIF, with other parts, bytes and tails."""
    rng = np.random.default_rng(seed)
    files = [_tiny(rng) for _ in range(count)]
    odd = []
    for data in files:
        if rng.random() < 0.6:
            data = _with_other_parts(data, files, rng)
        if rng.random() < 0.3:
            data = _mutate(data, files, rng)
        if rng.random() < 0.1:
            data += bytes(rng.integers(0, 256, rng.integers(1, 40)).astype(np.uint8))
        odd.append(data)
    return odd


def _tiny(rng: np.random.Generator) -> bytes:
    """A picture of at most 20 pixels a side; half of them have EXIF, some of it rubbish."""
    kind = (
        list(_KINDS)[rng.integers(len(_KINDS))]
        if rng.random() < 0.4
        else ("JPEG", "PNG")[rng.integers(2)]
    )
    mode = _KINDS[kind][rng.integers(len(_KINDS[kind]))]
    size = tuple(rng.integers(1, 21, 2).tolist())
    if mode.startswith(("I", "F")):
        values = rng.integers(0, rng.choice([2, 300, 4096, 65536]), size)
        dtype = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
        picture = Image.fromarray(values.astype(dtype))
    else:
        picture = Image.fromarray(noise(*size, seed=int(rng.integers(99)))).convert(mode)
    options = {}
    if kind in ("JPEG", "PNG", "WEBP") and rng.random() < 0.5:
        exif = Image.Exif()
        exif[0x0112] = int(rng.choice([0, 1, 3, 6, 8, 9, 300]))
        data = exif.tobytes()
        options["exif"] = data if rng.random() < 0.6 else _mutate(data, [data], rng) or b"Exif"
    return image_file(picture, kind, **options)


def _with_other_parts(data: bytes, others: list[bytes], rng: np.random.Generator) -> bytes:
    """A PNG file with chunks, or a JPEG file with segments, left out, doubled, moved or changed.

    Lengths and checksums are right.
    """
    parts, tail = _parts(data)
    if not parts:
        return data
    at = int(rng.integers(len(parts)))
    name, body = parts[at]
    kind = rng.integers(5)
    if kind == 0:
        del parts[at]
    elif kind == 1:
        parts.insert(int(rng.integers(len(parts) + 1)), parts[at])
    elif kind == 2:
        strange = _parts(others[rng.integers(len(others))])[0]
        if strange and len(strange[0][0]) == len(name):
            parts[at] = strange[rng.integers(len(strange))]
    elif kind == 3 and body:  # depth and kind of colours, for one
        place = int(rng.integers(len(body)))
        body = body[:place] + bytes([rng.integers(0, 17)]) + body[place + 1 :]
        parts[at] = name, body
    else:
        parts[at] = name, body[: int(rng.integers(len(body) + 1))]
    if data[:1] == b"\x89":
        return data[:8] + b"".join(_chunk(*part) for part in parts) + tail
    segments = (key + struct.pack(">H", len(body) + 2) + body for key, body in parts)
    return data[:2] + b"".join(segments) + tail


def _parts(data: bytes) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """(name, body) of the chunks of a PNG file or the segments of a JPEG file, and what follows."""
    parts = []
    if data[:4] == b"\x89PNG":
        place = 8
        while place + 12 <= len(data):
            length = int.from_bytes(data[place : place + 4], "big")
            parts.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + length]))
            place += 12 + length
        return parts, b""
    place = 2
    while data[:2] == b"\xff\xd8" and data[place : place + 1] == b"\xff":
        name, length = data[place : place + 2], int.from_bytes(data[place + 2 : place + 4], "big")
        parts.append((name, data[place + 4 : place + 2 + length]))
        place += 2 + length
        if name == b"\xff\xda":  # the pixels follow
            break
    return parts, data[place:] if parts else b""


def _mutate(data: bytes, others: list[bytes], rng: np.random.Generator) -> bytes:
    at, length = int(rng.integers(len(data))), int(rng.integers(1, 64))
    kind = rng.integers(6)
    if kind == 0:
        changed = bytearray(data)
        for position in rng.integers(len(data), size=rng.integers(1, 16)):
            changed[position] = rng.integers(256)
        return bytes(changed)
    if kind == 1:
        return data[:at]
    if kind == 2:
        return data[:at] + data[at + length :]
    if kind == 3:
        return data[:at] + data[at : at + length] * 2 + data[at + length :]
    if kind == 4:
        return data[:at] + bytes(len(data) - at)
    other = others[rng.integers(len(others))]
    return data[:at] + other[int(rng.integers(len(other))) :]
