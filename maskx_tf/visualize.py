"""Pictures of objects: masks, boxes and labels; set A in green, set B in red as in the paper.

Small images are enlarged first, so that lines and labels stay legible.
"""

from __future__ import annotations

import functools
import importlib
import io
import os
import pathlib
import sys
from collections.abc import Collection, Sequence

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont, ImageShow

from maskx_tf.errors import UserError
from maskx_tf.ops import masks as mask_ops
from maskx_tf.system.files import write_atomically

MIN_SIDE_PX = 480  # shorter pictures are enlarged to about this long a side
MASK_OPACITY = 0.45
PICTURES = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG"}  # formats that are written
# (first, last) hue in OpenCV's 0..179 that instances of a set are spread over
_HUES = {"A": (45, 76), "B": (-9, 9)}
_SCORE_THRESHOLD = 0.5  # from which detections are drawn
_GAP_PX = 6
_CAPTION_COLOR = (32, 32, 32)


def instance_colors(classes: Sequence[int], mask_class_ids: Collection[int]) -> np.ndarray:
    """A shade per object, uint8 [N, 3] RGB: greens for classes of set A, reds for the others."""
    seen = {"A": 0, "B": 0}
    colors = np.zeros((len(classes), 3), np.uint8)
    for i, class_id in enumerate(classes):
        subset = "A" if int(class_id) in mask_class_ids else "B"
        low, high = _HUES[subset]
        place = (0.5 + seen[subset] * 0.618034) % 1  # golden section: neighbours differ
        hsv = np.array([[[(low + (high - low) * place) % 180, 235, 235 - 60 * (1 - place)]]])
        colors[i] = cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB)[0, 0]
        seen[subset] += 1
    return colors


def draw(
    image: np.ndarray,
    boxes_yxyx: npt.ArrayLike,
    masks: Sequence[np.ndarray | dict | None] | None,
    labels: Sequence[str],
    colors: np.ndarray,
    enlarge: bool = True,
) -> np.ndarray:
    """Draws objects over an image; the first ones end up on top.

    Args:
      image: uint8 [H, W, 3] RGB; not changed.
      boxes_yxyx: float [N, 4], pixels of the image.
      masks: per object bool or {0, 1} [H, W], a run-length code of that size, or None for a box
        only; None: boxes only.
      labels: N texts; "" draws no label.
      colors: uint8 [N, 3] RGB.
      enlarge: small images.

    Returns:
      uint8 RGB, H and W times a whole number that makes the longer side at least `MIN_SIDE_PX`.
    """
    factor = max(1, -(-MIN_SIDE_PX // max(image.shape[:2]))) if enlarge else 1
    size = (image.shape[1] * factor, image.shape[0] * factor)
    picture = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC) if factor > 1 else image.copy()
    masks = [None] * len(labels) if masks is None else masks
    boxes = np.asarray(boxes_yxyx, np.float64).reshape(-1, 4) * factor
    line = max(1, round(max(size) / 500))
    order = range(len(labels) - 1, -1, -1)
    for i in order:
        mask = masks[i]
        if mask is not None:
            _draw_mask(picture, mask, colors[i], line)
    for i in order:
        y1, x1, y2, x2 = np.round(boxes[i]).astype(int)
        color = tuple(int(v) for v in colors[i])
        cv2.rectangle(picture, (x1, y1), (x2 - 1, y2 - 1), color, line)
    return draw_labels(picture, boxes, labels, colors)


def _draw_mask(picture: np.ndarray, mask: np.ndarray | dict, color: np.ndarray, line: int) -> None:
    """Blends a mask into the picture, in place, with a dark-edged contour."""
    mask = mask_ops.decode_rle(mask) if isinstance(mask, dict) else np.asarray(mask, np.uint8)
    height, width = picture.shape[:2]
    if mask.shape != (height, width):
        mask = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST)
    x, y, w, h = cv2.boundingRect(mask)
    if not w:
        return
    region, inside = picture[y : y + h, x : x + w], mask[y : y + h, x : x + w].astype(bool)
    blend = region[inside] * (1 - MASK_OPACITY) + color * MASK_OPACITY
    region[inside] = np.round(blend).astype(np.uint8)
    contours, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    dark, bright = (tuple(int(v * shade) for v in color) for shade in (0.35, 1.0))
    cv2.drawContours(picture, contours, -1, dark, line + 2, cv2.LINE_AA)
    cv2.drawContours(picture, contours, -1, bright, line, cv2.LINE_AA)


def draw_detections(
    image: np.ndarray,
    boxes_yxyx: npt.ArrayLike,
    classes: npt.ArrayLike,
    masks: Sequence[np.ndarray | dict | None] | None,
    names: Sequence[str],
    mask_class_ids: Collection[int],
    scores: npt.ArrayLike | None = None,
    score_threshold: float = _SCORE_THRESHOLD,
) -> np.ndarray:
    """Draws classified objects: green where the class is of set A, red where it is of set B.

    Args:
      image: uint8 [H, W, 3] RGB.
      boxes_yxyx: float [N, 4], pixels of the image.
      classes: int [N], 1..K; objects of class 0 (padding) are left out.
      masks: as of `draw`.
      names: names of the classes 1..K.
      mask_class_ids: set A.
      scores: float [N], appended to the labels; None: ground truth, all are drawn.
      score_threshold: objects below this score are left out.

    Returns:
      uint8 RGB as of `draw`.
    """
    ids = np.asarray(classes, int)
    confidences = np.ones(len(ids)) if scores is None else np.asarray(scores)
    kept = np.flatnonzero((ids > 0) & (confidences >= score_threshold)).tolist()
    labels = [names[ids[i] - 1] for i in kept]
    if scores is not None:
        labels = [f"{label} {confidences[i]:.2f}" for label, i in zip(labels, kept, strict=True)]
    return draw(
        image,
        np.asarray(boxes_yxyx).reshape(-1, 4)[kept],
        None if masks is None else [masks[i] for i in kept],
        labels,
        instance_colors(ids[kept].tolist(), mask_class_ids),
    )


def side_by_side(ground_truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """Two pictures, uint8 RGB, beside each other under their captions."""
    return grid([captioned(ground_truth, "ground truth"), captioned(prediction, "prediction")], 2)


def captioned(
    picture: np.ndarray, caption: str, ending: str = "", below: bool = False
) -> np.ndarray:
    """A picture with a line of text, uint8 RGB: [H, W, 3] -> [H + 24, W, 3].

    Args:
      picture: uint8 [H, W, 3].
      caption: the text; its beginning gives way where it is too long for the picture.
      ending: comes after it, whole.
      below: put the line under the picture, not over it.
    """
    font = font_of_size(16)
    height, width = picture.shape[:2]
    canvas = Image.new("RGB", (width, height + 24), "white")
    canvas.paste(Image.fromarray(picture), (0, 0 if below else 24))
    pen = ImageDraw.Draw(canvas)
    text = caption + ending
    for start in range(1, len(caption) + 1):
        if pen.textlength(text, font=font) <= width - 8:
            break
        text = "…" + caption[start:] + ending
    pen.text((4, height + 2 if below else 2), text, fill=_CAPTION_COLOR, font=font)
    return np.array(canvas)


def grid(pictures: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Pictures, uint8 RGB of any sizes, in rows on white: uint8 [H, W, 3]."""
    rows = [pictures[i : i + columns] for i in range(0, len(pictures), columns)]
    width = max(picture.shape[1] for picture in pictures)
    heights = [max(picture.shape[0] for picture in row) for row in rows]
    columns = min(columns, len(pictures))
    size = (sum(heights) + _GAP_PX * (len(rows) - 1), columns * (width + _GAP_PX) - _GAP_PX, 3)
    canvas = np.full(size, 255, np.uint8)
    top = 0
    for row, height in zip(rows, heights, strict=True):
        for i, picture in enumerate(row):
            left = i * (width + _GAP_PX)
            canvas[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
        top += height + _GAP_PX
    return canvas


def panel(
    examples: Sequence[dict[str, np.ndarray]],
    names: Sequence[str],
    mask_class_ids: Collection[int],
) -> np.ndarray:
    """Ground truth beside predictions, for TensorBoard.

    Args:
      examples: of each image "image" uint8 [H, W, 3], "image_size" [2], "boxes_yxyx", "classes",
        "has_mask" and "masks" as of the pipeline, detections as of the model, and
        "detection_mask_windows" [D, 4], what their masks reach over; without their batch dimension.
        Detections that score below 0.5 are left out.
      names: names of the classes 1..K.
      mask_class_ids: set A.

    Returns:
      uint8 RGB [H, W, 3], one image a row.
    """
    rows = [_panel_row(example, names, mask_class_ids) for example in examples]
    return grid(rows, columns=1)


def _panel_row(
    example: dict[str, np.ndarray], names: Sequence[str], mask_class_ids: Collection[int]
) -> np.ndarray:
    height, width = (round(float(side)) for side in example["image_size"])
    image = example["image"][:height, :width]

    def pasted(masks: np.ndarray, boxes: np.ndarray, present: np.ndarray) -> list:
        return [
            mask_ops.paste_mask(mask, box, height, width) if there else None
            for mask, box, there in zip(masks, boxes, present, strict=True)
        ]

    boxes, classes = example["boxes_yxyx"], example["classes"]
    masks = pasted(example["masks"], boxes, example["has_mask"])
    truth = draw_detections(image, boxes, classes, masks, names, mask_class_ids)
    boxes, scores = example["detection_boxes"], example["detection_scores"]
    windows = example["detection_mask_windows"]
    masks = pasted(example["detection_masks"], windows, scores >= _SCORE_THRESHOLD)
    classes = example["detection_classes"]
    found = draw_detections(image, boxes, classes, masks, names, mask_class_ids, scores)
    return side_by_side(truth, found)


def write_picture(picture: np.ndarray, path: pathlib.Path) -> None:
    """Writes a picture, uint8 [H, W, 3] RGB, atomically; `PICTURES` has the formats."""
    write_atomically(path, encode_picture(picture, PICTURES[path.suffix.lower()]))


def encode_picture(picture: np.ndarray, kind: str, quality: int = 92) -> bytes:
    """A picture, uint8 [H, W, 3] RGB, as the bytes of a file; `kind` is one of `PICTURES`."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, kind, quality=quality)
    return buffer.getvalue()


def show_picture(picture: np.ndarray) -> None:
    """Shows a picture, uint8 [H, W, 3] RGB: below a notebook's cell, else in the system's viewer.

    Raises:
      UserError: there is no screen or no viewer.
    """
    image = Image.fromarray(picture)
    ipython = sys.modules.get("IPython")
    if ipython and hasattr(ipython.get_ipython(), "kernel"):
        importlib.import_module("IPython.display").display(image)
        return
    has_screen = sys.platform in ("darwin", "win32") or any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")
    )
    if not (has_screen and ImageShow.show(image)):
        raise UserError("There is no screen or viewer to show a picture with; save it to a file.")


@functools.cache
def font_of_size(size_px: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, so that no system font is needed."""
    return ImageFont.load_default(size_px)


def draw_labels(
    picture: np.ndarray, boxes: np.ndarray, labels: Sequence[str], colors: np.ndarray
) -> np.ndarray:
    """Writes labels at the boxes' upper left corners, moved where they would cover another.

    Args:
      picture: uint8 [H, W, 3] RGB.
      boxes: float [N, 4] yxyx, pixels of the picture.
      labels: N texts; "" draws nothing.
      colors: uint8 [N, 3] RGB, the background of each label.

    Returns:
      uint8 [H, W, 3], a copy.
    """
    canvas = Image.fromarray(picture)
    pen = ImageDraw.Draw(canvas)
    font = font_of_size(int(np.clip(max(picture.shape[:2]) / 42, 13, 26)))
    taken: list[tuple[int, int, int, int]] = []
    for box, label, color in zip(boxes, labels, colors, strict=True):
        if not label:
            continue
        _, _, right, bottom = pen.textbbox((0, 0), label, font=font)
        place = _place(box, int(right) + 6, int(bottom) + 5, canvas.size, taken)
        taken.append(place)
        luminance = float(np.dot(color, (0.299, 0.587, 0.114)))
        pen.rectangle(place, fill=tuple(int(v) for v in color))
        ink = (0, 0, 0) if luminance > 120 else (255, 255, 255)
        pen.text((place[0] + 3, place[1] + 1), label, fill=ink, font=font)
    return np.array(canvas)


def _place(
    box: np.ndarray,
    width: int,
    height: int,
    size: tuple[int, int],
    taken: list[tuple[int, int, int, int]],
) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of a label: above its box, else the first free place around it."""
    y1, x1, y2, x2 = (round(float(v)) for v in box)
    first = y1 - height if y1 >= height else max(y1, 0)
    places = []
    for left in (x1, x2 - width, x2, x1 - width):
        for top in range(first, max(y2 + height, first + 1), height):
            top = int(np.clip(top, 0, max(size[1] - height, 0)))
            edge = int(np.clip(left, 0, max(size[0] - width, 0)))
            places.append((edge, top, edge + width, top + height))
    free = (place for place in places if not any(_overlap(place, other) for other in taken))
    return next(free, places[0])


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
