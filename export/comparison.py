"""Whether a SavedModel answers as the model that it was made from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from maskx_tf.config import Config
from maskx_tf.errors import UserError
from maskx_tf.ops import masks as mask_ops

Outputs = dict[str, np.ndarray]
# Largest difference between the SavedModel and the model: pixels, probability, 1/255 steps.
TOLERANCES = {"detection_boxes": 1e-3, "detection_scores": 1e-5, "detection_masks": 1}
RLE_TOLERANCE_PX = 4  # of a mask: pixels at exactly the threshold depend on the rounding


@dataclasses.dataclass(frozen=True)
class Request:
    """A request to both.

    Attributes:
      signature: "serving_default" or "image_tensor".
      inputs: its arguments by name.
      description: of the images, for messages.
    """

    signature: str
    inputs: dict[str, tf.Tensor]
    description: str


def requests(images: Sequence[np.ndarray], batch: Sequence[np.ndarray]) -> list[Request]:
    """Each image, uint8 [H, W, 3], alone by both signatures, and `batch`, encoded, at once."""
    made = []
    for number, image in enumerate(images, start=1):
        description = f"image {number} of {len(images)}"
        encoded = {"image_bytes": tf.io.encode_png(image)[None]}
        made.append(Request("serving_default", encoded, description))
        made.append(Request("image_tensor", {"images": tf.constant(image[None])}, description))
    encoded = {"image_bytes": tf.stack([tf.io.encode_png(image) for image in batch])}
    return [*made, Request("serving_default", encoded, f"a batch of {len(batch)} images")]


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


def compare(path: str, asked: Sequence[Request], expected: Sequence[Outputs]) -> None:
    """Puts requests to a SavedModel.

    Raises:
      UserError: an answer is not the expected one.
    """
    signatures = tf.saved_model.load(path).signatures
    for request, wanted in zip(asked, expected, strict=True):
        found = answer(signatures, request)
        problem = difference(found, wanted) or rle_problem(found)
        if problem:
            raise UserError(
                f"The SavedModel is not kept: for {request.description} its signature "
                f"{request.signature} differs from the model: {problem}. Please report this."
            )


def difference(found: Outputs, wanted: Outputs) -> str:
    """What differs by more than `TOLERANCES` between two outputs for the same images, or ""."""
    for key, value in wanted.items():
        if key not in TOLERANCES:
            if not np.array_equal(found[key], value):
                return f"{key} is {found[key].tolist()!s:.60} instead of {value.tolist()!s:.60}"
            continue
        gap = np.abs(found[key].astype(np.float64) - value).max(initial=0)
        if not gap <= TOLERANCES[key]:
            return f"{key} by up to {gap:.3g}, allowed is {TOLERANCES[key]:g}"
    return ""


def rle_problem(found: Outputs) -> str:
    """What is wrong with the run-length codes beside the masks and boxes found, or ""."""
    for i, codes in enumerate(found.get("detection_rle_bytes", ())):
        height, width = (int(side) for side in found["image_size"][i])
        count = int(found["num_detections"][i])
        masks, boxes = found["detection_masks"][i, :count] / 255, found["detection_boxes"][i]
        wanted = mask_ops.paste_to_rle(masks, boxes[:count], height, width)
        for code, rle in zip(codes[:count], wanted, strict=True):
            if code.decode() == rle["counts"]:
                continue
            pixels = mask_ops.decode_rle({"size": [height, width], "counts": code})
            gap = int((pixels != mask_ops.decode_rle(rle)).sum())
            if gap > RLE_TOLERANCE_PX:
                return f"detection_rle_bytes by {gap} pixels, allowed are {RLE_TOLERANCE_PX}"
    return ""
