"""Image files of any kind as JPEG or PNG of 8 bits a channel, which `decoding` takes.

JPEG and PNG files stay as they are, byte for byte. TensorFlow is not needed here.
"""

from __future__ import annotations

import io
import warnings
from typing import Any, NamedTuple

import cv2
import numpy as np
import PIL.Image
from PIL.Image import Transpose

MAX_PIXELS = 178_956_970  # where Pillow, too, takes a file for a bomb
# Of those that Pillow reads: not the ones without a signature, for which anything may pass.
_FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG2000", "PNG", "PPM", "PSD", "QOI", "TIFF", "WEBP")
_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
_PNG_DEPTH = slice(24, 25)
_TIFF_BITS = 258
_ORIENTATION = 0x0112
_TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
TRANSPOSED = (5, 6, 7, 8)  # orientations that exchange height and width
_OUTLIERS = 0.1  # percent of an image's values, at either end, that may be cut off

# What files named like photos turn out to be: (first bytes, where they begin, what it is).
_NO_IMAGES = (
    (b"ftyphei", 4, "it is a HEIC photo: convert it to JPEG (heif-convert, or the phone's export)"),
    (b"ftypmif", 4, "it is a HEIF photo: convert it to JPEG (heif-convert, or the phone's export)"),
    (b"ftyp", 4, "it is a video: cut pictures out of it (ffmpeg)"),
    (b"version https://git-lfs", 0, "it is a Git LFS pointer: fetch the file with git lfs pull"),
    (b"<", 0, "it is an HTML or XML page, so its download failed: fetch it again"),
    (b"\x1f\x8b", 0, "it is compressed with gzip: unpack it"),
    (b"PK\3\4", 0, "it is a zip archive: unpack it"),
    (b"%PDF", 0, "it is a PDF: export its pages as images"),
    (b"DICM", 128, "it is a DICOM file: export it as PNG"),
    (b"\x93NUMPY", 0, "it is a NumPy array: save it as PNG"),
    (bytes(16), 0, "it begins with zero bytes, as copies do that were broken off: copy it again"),
)


class BadImageError(Exception):
    """An image file that cannot be used; `reason` is a key of `coco.issues.REASONS`."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Picture(NamedTuple):
    """An image file as JPEG or PNG.

    Attributes:
      encoded: the bytes.
      orientation: 1 to 8, as its EXIF says; 1 where it says nothing. Nothing was turned.
      changes: what was done to it, keys of `coco.issues.REASONS`.
    """

    encoded: bytes
    orientation: int
    changes: tuple[str, ...]


def to_picture(data: bytes, pixel_range: tuple[float, float] | None = None) -> Picture:
    """An image file of any kind as JPEG or PNG; of several frames or pages the first.

    Args:
      data: the file.
      pixel_range: values that become 0 and 255 where a file has more than 8 bits a channel or
        floats; None: each image's own smallest and largest, outliers apart.

    Raises:
      BadImageError: it is no image, or too large; JPEG and PNG are not looked into for damage.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, about metadata
        is_deep = data.startswith(_PNG) and data[_PNG_DEPTH] == b"\x10"
        if data.startswith((_JPEG, _PNG)) and not is_deep:
            return Picture(data, _orientation_of(data), ())
        try:
            with PIL.Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                return _converted(image, data, pixel_range)
        except BadImageError:
            raise
        except PIL.Image.DecompressionBombError:
            raise too_large() from None
        except PIL.UnidentifiedImageError:
            raise BadImageError("image_corrupt", _kind_of(data)) from None
        except Exception as error:  # Pillow raises a dozen types on damaged files
            message = f"it cannot be decoded: {' '.join(str(error).split())[:200]}"
            raise BadImageError("image_corrupt", message) from None


def upright_file(data: bytes, pixel_range: tuple[float, float] | None = None) -> bytes:
    """An image file as JPEG or PNG that a served model sees as a person would.

    JPEG files stay as they are: the model itself turns them as their EXIF says.
    """
    picture = to_picture(data, pixel_range)
    if picture.orientation == 1 or picture.encoded.startswith(_JPEG):
        return picture.encoded
    with PIL.Image.open(io.BytesIO(picture.encoded)) as image:
        return png(turned(np.asarray(image.convert("RGB")), picture.orientation))


def upright_pixels(data: bytes, max_pixels: int) -> np.ndarray:
    """The pixels of an image file as a person sees it, uint8 RGB [h, w, 3].

    Raises:
      BadImageError: it cannot be decoded, or has more pixels.
    """
    picture = to_picture(data)
    try:
        with PIL.Image.open(io.BytesIO(picture.encoded)) as image:
            if image.width * image.height > max_pixels:
                raise too_large()
            return turned(np.asarray(image.convert("RGB")), picture.orientation)
    except PIL.Image.DecompressionBombError:
        raise too_large() from None
    except (OSError, ValueError) as error:
        raise BadImageError("image_corrupt", f"it cannot be decoded: {error}") from None


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """An image uint8 [h, w] or [h, w, 3] turned and mirrored as EXIF orientation 1 to 8 says."""
    if orientation == 1:
        return pixels
    return np.asarray(PIL.Image.fromarray(pixels).transpose(_TURNS[orientation]))


def to_rgb(image: PIL.Image.Image) -> np.ndarray:
    """uint8 RGB [h, w, 3] of an image of any mode; greys beyond 8 bits as `to_8_bits` does it."""
    if image.mode.startswith(("I", "F")):
        return np.stack([to_8_bits(np.asarray(image), None)] * 3, axis=-1)
    return np.asarray(image.convert("RGB"))


def png(pixels: np.ndarray) -> bytes:
    """The PNG file of an image, uint8 [h, w] or RGB [h, w, 3]."""
    return _saved(PIL.Image.fromarray(pixels))


def too_large() -> BadImageError:
    """The error of an image of too many pixels."""
    return BadImageError(
        "image_too_large",
        f"it has more than {MAX_PIXELS:,} pixels: cut it into tiles or make it smaller",
    )


def _saved(image: PIL.Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _orientation_of(data: bytes) -> int:
    """Of a JPEG or PNG file, 1 also where its header or EXIF is damaged."""
    if data.startswith(_PNG):  # the chunk may come after the pixels
        start = data.find(b"eXIf")
        length = int.from_bytes(data[max(start - 4, 0) : start], "big")
        return _orientation(data[start + 4 : start + 4 + length] if start > 0 else b"")
    try:
        with PIL.Image.open(io.BytesIO(data), formats=("JPEG", "MPO")) as image:
            return _orientation(image.info.get("exif", b""))
    except Exception:  # Pillow raises a dozen types on damaged files
        return 1


def _orientation(exif_bytes: bytes) -> int:
    """As EXIF says, not XMP, which served models do not read."""
    exif = PIL.Image.Exif()
    try:
        exif.load(exif_bytes)
        return _valid(exif.get(_ORIENTATION))
    except Exception:  # Pillow raises a dozen types on damaged EXIF
        return 1


def _valid(orientation: Any) -> int:
    return orientation if isinstance(orientation, int) and orientation in _TURNS else 1


def _converted(
    image: PIL.Image.Image, data: bytes, pixel_range: tuple[float, float] | None
) -> Picture:
    if image.width * image.height > MAX_PIXELS:
        raise too_large()
    changes = ["image_first_frame"] if getattr(image, "n_frames", 1) > 1 else []
    orientation = _orientation(image.info.get("exif", b""))
    if image.format == "TIFF":  # gone once its pixels are read
        orientation = _valid(image.tag_v2.get(_ORIENTATION))  # type: ignore[attr-defined]
    values = _deep_values(image, data)
    deep = None if values is None else to_8_bits(values, pixel_range)
    picture = image.convert("RGB") if deep is None else PIL.Image.fromarray(deep)
    if image.format == "TIFF" and orientation != 1:  # Pillow and OpenCV have turned it
        back = {6: 8, 8: 6}.get(orientation, orientation)
        picture = picture.transpose(_TURNS[back])
    change = "image_reencoded" if deep is None else "image_range_changed"
    return Picture(_saved(picture), orientation, (change, *changes))


def _deep_values(image: PIL.Image.Image, data: bytes) -> np.ndarray | None:
    """Numbers [h, w] or RGB [h, w, 3] of an image with more than 8 bits a channel; else None."""
    if image.mode.startswith(("I", "F")):
        return np.asarray(image)
    bits = (16,) if image.format == "PNG" else getattr(image, "tag_v2", {}).get(_TIFF_BITS, (8,))
    if max(bits) <= 8:
        return None
    # Pillow has no colours of more than 8 bits.
    level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    cv2.utils.logging.setLogLevel(level)
    if values is None or values.dtype == np.uint8 or values.ndim != 3 or values.shape[2] < 3:
        raise BadImageError(
            "image_corrupt",
            f"it has {max(bits)} bits a channel of a kind that is not read: save it as RGB or grey "
            "PNG of 8 or 16 bits",
        )
    return values[..., 2::-1]


def to_8_bits(values: np.ndarray, pixel_range: tuple[float, float] | None) -> np.ndarray:
    """Numbers of any dtype as uint8: `pixel_range` becomes 0 to 255, what is beyond is cut off.

    Args:
      values: of any shape; NaN and infinity become 0.
      pixel_range: (low, high); None: the image's own, without outliers. An image of one value
        becomes grey.
    """
    values = values.astype(np.float64)
    finite = values[np.isfinite(values)]
    if not finite.size:
        raise BadImageError("image_corrupt", "it has no finite value")
    low, high = pixel_range or np.percentile(finite, (_OUTLIERS, 100 - _OUTLIERS))
    if not low < high:
        low, high = finite.min(), finite.max()
    if not low < high:
        return np.full(values.shape, 128, np.uint8)
    scaled = (np.nan_to_num(values, nan=low, posinf=high, neginf=low) - low) / (high - low)
    return np.round(255 * np.clip(scaled, 0, 1)).astype(np.uint8)


def _kind_of(data: bytes) -> str:
    """What a file is that is no image."""
    if not data:
        return "it is empty"
    start = data[:200]
    for signature, place, sentence in _NO_IMAGES:
        if start[place:].lstrip(b" \t\r\n" if signature == b"<" else b"").startswith(signature):
            return sentence
    return "it is no image of a kind that is known"
