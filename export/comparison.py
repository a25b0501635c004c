"""Whether a SavedModel answers as the model that it was made from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from maskx_tf.config import Config
from maskx_tf.errors import UserError
from maskx_tf.ops import masks as mask_ops
from maskx_tf.system.literal_paths import literal

Outputs = dict[str, np.ndarray]


class Tolerance(NamedTuple):
    """How far the outputs of a SavedModel may lie from those of the model.

    Attributes:
      boxes: pixels.
      scores: probability.
      masks: 1/255 steps.
      share: of a request's detections that have to be that close; the rest may be missing or new.
    """

    boxes: float
    scores: float
    masks: int
    share: float = 1.0


# By precision. In bfloat16, with 8 bits, the order of additions decides on the last detections.
TOLERANCES = {
    "float32": Tolerance(boxes=1e-3, scores=1e-5, masks=1),
    "bfloat16": Tolerance(boxes=4.0, scores=0.05, masks=64, share=0.8),
}
# The first pass' rounding errors move the RoIs of the second, some by a whole cell.
SECOND_PASS = Tolerance(boxes=0.01, scores=1e-3, masks=8, share=0.9)
_LIMITED = {  # output: its limit in `Tolerance`
    "detection_boxes": "boxes",
    "detection_mask_windows": "boxes",
    "detection_scores": "scores",
    "detection_mask_scores": "scores",
    "detection_masks": "masks",
}
_PER_IMAGE = ("num_detections", "image_size")
RLE_TOLERANCE_PX = 4  # of a mask: pixels at exactly the threshold depend on the rounding


@dataclasses.dataclass(frozen=True)
class Request:
    """A request to both.

    Attributes:
      signature: "serving_default", "image_tensor" or "box_prompts".
      inputs: its arguments by name.
      description: of the images, for messages.
    """

    signature: str
    inputs: dict[str, tf.Tensor]
    description: str


def tolerance_of(config: Config) -> Tolerance:
    """How close the answers of an exported model with these options have to be."""
    if config.precision == "float32" and config.box_passes > 1:
        return SECOND_PASS
    return TOLERANCES[config.precision]


def requests(
    images: Sequence[np.ndarray],
    batch: Sequence[np.ndarray],
    most: int,
    class_names: Sequence[str],
) -> list[Request]:
    """Each image, uint8 [H, W, 3], alone by all signatures; `batch`, encoded, `most` at once.

    Boxes of two of the classes are given: the whole image, and its middle.
    """
    made = []
    for number, image in enumerate(images, start=1):
        description = f"image {number} of {len(images)}"
        encoded = {"image_bytes": tf.io.encode_png(image)[None]}
        made.append(Request("serving_default", encoded, description))
        made.append(Request("image_tensor", {"images": tf.constant(image[None])}, description))
        made.append(Request("box_prompts", encoded | prompts(image, class_names), description))
    for start in range(0, len(batch), most):
        files = [tf.io.encode_png(image) for image in batch[start : start + most]]
        description = f"a batch of {len(files)} images"
        made.append(Request("serving_default", {"image_bytes": tf.stack(files)}, description))
    return made


def prompts(image: np.ndarray, class_names: Sequence[str]) -> dict[str, tf.Tensor]:
    """Boxes of two of the classes, the whole of an image [H, W, 3] and its middle, as inputs."""
    height, width = image.shape[:2]
    boxes = np.array([[0, 0, 1, 1], [0.25, 0.25, 0.75, 0.75]]) * [height, width, height, width]
    return {
        "boxes": tf.constant(boxes[None], tf.float32),
        "class_names": tf.constant([[class_names[0], class_names[-1]]]),
    }


def random_images(config: Config, count: int) -> list[np.ndarray]:
    """Smooth noise of the canvas' size, uint8: `count` landscape images, then `count` portraits."""
    generator = np.random.default_rng(0)
    long, short = config.image_max_side, config.image_min_side
    sizes = [(max(short * 3 // 4, 1), long)] * count + [(long, short)] * count
    coarse = generator.uniform(0, 255, [2 * count, 12, 12, 3])
    smooth = [tf.image.resize(c, s, method="bicubic") for c, s in zip(coarse, sizes, strict=True)]
    return [np.clip(image, 0, 255).astype(np.uint8) for image in smooth]


def answer(signatures: dict[str, Callable], request: Request) -> Outputs:
    """The outputs of one of the signatures."""
    outputs = signatures[request.signature](**request.inputs)
    return {key: value.numpy() for key, value in outputs.items()}


def compare(
    path: str,
    asked: Sequence[Request],
    expected: Sequence[Outputs],
    tolerance: Tolerance = TOLERANCES["float32"],
) -> None:
    """Puts requests to a SavedModel.

    Raises:
      UserError: an answer is not the expected one.
    """
    signatures = tf.saved_model.load(literal(path)).signatures
    for request, wanted in zip(asked, expected, strict=True):
        found = answer(signatures, request)
        problem = difference(found, wanted, tolerance) or rle_problem(found)
        if problem:
            raise UserError(
                f"The SavedModel is not kept: for {request.description} its signature "
                f"{request.signature} differs from the model: {problem}. Please report this."
            )


def difference(
    found: Outputs, wanted: Outputs, tolerance: Tolerance = TOLERANCES["float32"]
) -> str:
    """What differs by more than allowed between two outputs for the same images, or ""."""
    places = [_partners(found, wanted, i, tolerance) for i in range(len(wanted["image_size"]))]
    if tolerance.share < 1:
        return _missing(found, wanted, places, tolerance.share)
    found = _in_order_of_wanted(found, places)
    for key, value in wanted.items():
        if key not in _LIMITED:
            if not np.array_equal(found[key], value):
                return f"{key} is {found[key].tolist()!s:.60} instead of {value.tolist()!s:.60}"
            continue
        limit = getattr(tolerance, _LIMITED[key])
        gap = np.abs(found[key].astype(np.float64) - value).max(initial=0)
        if not gap <= limit:
            return f"{key} by up to {gap:.3g}, allowed is {limit:g}"
    return ""


def _partners(found: Outputs, wanted: Outputs, image: int, tolerance: Tolerance) -> list[int]:
    """For each detection wanted of an image, the one found that fits it best; -1: none fits.

    Equal scores may have changed places.
    """
    found_count, wanted_count = (int(o["num_detections"][image]) for o in (found, wanted))
    free = np.ones(found_count, bool)
    partners = []
    for place in range(wanted_count):
        classes = found["detection_classes"][image, :found_count]
        fits = free & (classes == wanted["detection_classes"][image, place])
        distance = np.zeros(found_count)
        for key in _LIMITED.keys() & wanted.keys():
            limit = getattr(tolerance, _LIMITED[key])
            values = found[key][image, :found_count].astype(np.float64)
            gaps = np.abs(values - wanted[key][image, place])
            largest = gaps.max(axis=tuple(range(1, gaps.ndim)), initial=0)
            fits &= largest <= limit
            distance += largest / limit
        partners.append(int(np.argmin(np.where(fits, distance, np.inf))) if fits.any() else -1)
        if fits.any():
            free[partners[-1]] = False
    return partners


def _in_order_of_wanted(found: Outputs, places: list[list[int]]) -> Outputs:
    """`found` with the detections of each image reordered, if each has its partner."""
    ordered = {key: value.copy() for key, value in found.items()}
    for image, partners in enumerate(places):
        count = int(found["num_detections"][image])
        if sorted(partners) != list(range(count)):
            continue
        for key in set(found) - set(_PER_IMAGE):
            ordered[key][image, :count] = found[key][image, partners]
    return ordered


def _missing(found: Outputs, wanted: Outputs, places: list[list[int]], share: float) -> str:
    """Says if too few of the detections have a partner."""
    if not np.array_equal(found["image_size"], wanted["image_size"]):
        return "image_size"
    together = sum(place >= 0 for partners in places for place in partners)
    most = max(sum(map(len, places)), int(found["num_detections"].sum()))
    if together < share * most:
        return f"only {together} of {most} detections agree, {share:.0%} have to"
    return ""


def rle_problem(found: Outputs) -> str:
    """What is wrong with the run-length codes beside the masks and boxes found, or ""."""
    for i, codes in enumerate(found.get("detection_rle_bytes", ())):
        height, width = (int(side) for side in found["image_size"][i])
        count = int(found["num_detections"][i])
        masks = found["detection_masks"][i, :count] / 255
        windows = found.get("detection_mask_windows", found["detection_boxes"])[i, :count]
        wanted = mask_ops.paste_to_rle(masks, windows, height, width)
        for code, rle in zip(codes[:count], wanted, strict=True):
            if code.decode() == rle["counts"]:
                continue
            pixels = mask_ops.decode_rle({"size": [height, width], "counts": code})
            gap = int((pixels != mask_ops.decode_rle(rle)).sum())
            if gap > RLE_TOLERANCE_PX:
                return f"detection_rle_bytes by {gap} pixels, allowed are {RLE_TOLERANCE_PX}"
    return ""
