"""Pictures of pairs of objects in nearly the same box, with the masks of several models.

Only the class says which of the two is meant: what a class-agnostic mask head cannot know.
"""

from __future__ import annotations

import itertools
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import cv2
import numpy as np
import tensorflow as tf

from maskx_tf import checkpoints, visualize
from maskx_tf.checkpoints import LoadedModel
from maskx_tf.data.pipeline import make_dataset
from maskx_tf.evaluation.ceiling import SAME_BOX_IOU
from maskx_tf.evaluation.operating_point import MIN_IOU, MIN_SCORE
from maskx_tf.ops import masks as mask_ops
from maskx_tf.ops.boxes import mask_windows

TILE_PX = 200
_MARGIN = 0.1  # around the pair, in its longer sides
_FADING = 0.6  # towards white, of what a mask leaves out


class DetectedObject(NamedTuple):
    """An object that is detected: its box yxyx, class, score and masks, of the truth first."""

    box: np.ndarray
    class_id: int
    score: float
    masks: list[np.ndarray]  # bool [H, W]


def picture(runs: Mapping[str, str | pathlib.Path], count: int) -> np.ndarray | None:
    """The first pairs of the validation images whose two objects are both detected at score 0.5.

    Args:
      runs: {caption: model directory} of runs on the same detector; the first one's --eval_records
        are read.
      count: of pairs, at most.

    Returns:
      uint8 RGB [H, W, 3]: a pair a row, and of each of its objects the true mask, then each run's
      mask of the same detection; classes of set A in green, the others in red. None without pairs.
    """
    models = [checkpoints.load_model(str(directory)) for directory in runs.values()]
    names = models[0].vocabulary.names
    tiles = []
    for image, pair in itertools.islice(_pairs(models), count):
        corners = np.array([item.box for item in pair])
        low, high = corners[:, :2].min(axis=0), corners[:, 2:].max(axis=0)
        side = math.ceil((1 + 2 * _MARGIN) * (high - low).max())
        top, left = np.round((low + high - side) / 2).astype(int)
        colors = visualize.instance_colors([o.class_id for o in pair], models[0].mask_class_ids)
        for item, color in zip(pair, colors, strict=True):
            title = names[item.class_id - 1]
            captions = [f"{title} (truth)", *(f"{run} {item.score:.2f}" for run in runs)]
            for caption, mask in zip(captions, item.masks, strict=True):
                square = (top, left, side)
                tile = _tile(_crop(image, *square, beyond=255), _crop(mask, *square), color)
                tiles.append(visualize.captioned(tile, caption))
    return visualize.grid(tiles, columns=2 * (1 + len(runs))) if tiles else None


def _crop(array: np.ndarray, top: int, left: int, side: int, beyond: int = 0) -> np.ndarray:
    """A square of an image [H, W, …], `beyond` where it leaves the image."""
    border = [(side, side), (side, side), *[(0, 0)] * (array.ndim - 2)]
    padded = np.pad(array, border, constant_values=beyond)
    return padded[top + side : top + 2 * side, left + side : left + 2 * side]


def _tile(image: np.ndarray, mask: np.ndarray, color: np.ndarray) -> np.ndarray:
    """The masked part of an image, outlined, on a faded ground: uint8 [TILE_PX, TILE_PX, 3]."""
    size = (TILE_PX, TILE_PX)
    tile = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC).astype(np.float32)
    inside = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_CUBIC) > 0.5
    tile[~inside] = _FADING * 255 + (1 - _FADING) * tile[~inside]
    tile = tile.round().astype(np.uint8)
    contours, _ = cv2.findContours(inside.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(tile, contours, -1, tuple(int(v) for v in color), 2, cv2.LINE_AA)
    return tile


def _pairs(models: list[LoadedModel]) -> Iterator[tuple[np.ndarray, list[DetectedObject]]]:
    """Images uint8 RGB [H, W, 3] with two detected objects in nearly the same box."""
    config, vocabulary = models[0].config, models[0].vocabulary
    every = range(1, vocabulary.num_classes + 1)  # the true masks of set B are drawn too
    dataset = make_dataset(
        config.eval_records, config, vocabulary, every, training=False, seed=config.seed
    )
    detect = [tf.function(loaded.model, autograph=False) for loaded in models]
    for features, labels in dataset:
        inputs = features["image"], features["image_size"], features["image_scale"]
        outputs = [function(*inputs) for function in detect]
        of_all = {}
        for i, (loaded, output) in enumerate(zip(models, outputs, strict=True)):
            scale = loaded.config.mask_roi_scale
            of_all[f"masks{i}"] = output["detection_masks"]
            of_all[f"windows{i}"] = mask_windows(outputs[0]["detection_boxes"], scale)
        batch = {**features, **labels, **outputs[0], **of_all}
        arrays = {name: value.numpy() for name, value in batch.items()}
        for i in range(len(arrays["image"])):
            example = {name: value[i] for name, value in arrays.items()}
            image, objects = detected(example, len(models))
            for pair in itertools.combinations(objects, 2):
                if is_pair(*pair):
                    yield image, list(pair)


def is_pair(first: DetectedObject, second: DetectedObject) -> bool:
    """Whether two objects are in nearly the same box."""
    return _iou(first.box, second.box) >= SAME_BOX_IOU


def detected(
    example: dict[str, np.ndarray], models: int
) -> tuple[np.ndarray, list[DetectedObject]]:
    """An image and its objects that have a right detection.

    Args:
      example: features, labels and detections without their batch dimension, and "masks0",
        "masks1", … float [D, m, m], the detections' masks of each model, with what they reach over,
        "windows0", "windows1", … [D, 4].
      models: how many.
    """
    height, width = (round(float(side)) for side in example["image_size"])
    objects = []
    for box, class_id, mask in zip(
        example["boxes_yxyx"], example["classes"], example["masks"], strict=True
    ):
        for j, score in enumerate(example["detection_scores"]):
            found = example["detection_boxes"][j]
            same_class = class_id > 0 and example["detection_classes"][j] == class_id
            if score < MIN_SCORE or not same_class or _iou(box, found) < MIN_IOU:
                continue
            predicted = [
                (example[f"masks{i}"][j], example[f"windows{i}"][j]) for i in range(models)
            ]
            masks = [mask_ops.paste_mask(*one, height, width) for one in ((mask, box), *predicted)]
            objects.append(DetectedObject(found, int(class_id), float(score), masks))
            break
    return example["image"][:height, :width], objects


def _iou(first: np.ndarray, second: np.ndarray) -> float:
    low, high = np.maximum(first[:2], second[:2]), np.minimum(first[2:], second[2:])
    shared = float(np.maximum(high - low, 0).prod())
    areas = sum(float((box[2:] - box[:2]).prod()) for box in (first, second))
    return shared / (areas - shared) if shared else 0.0
