"""Counts and sizes over all records of a directory, gathered by several processes."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import tqdm

from maskx_tf.data.records import schema
from maskx_tf.data.records.manifest import Manifest, find_shards
from maskx_tf.errors import UserError
from tf_records import pool

_FULL_MASK_CELLS = 8  # sides of a mask; in smaller ones a full mask is nothing special


@dataclasses.dataclass(frozen=True)
class Statistics:
    """All images and objects of a directory.

    Attributes:
      image_sizes: int64 [I, 2], (height, width) in pixels.
      image: int64 [N], image of each object.
      class_id: int64 [N], 1..K.
      side: float64 [N], square root of the box area, pixels.
      mask_weight: float64 [N]; 1 without mask.
      has_mask: bool [N].
      is_crowd: bool [N].
      is_full: bool [N], the mask is just the box.
    """

    image_sizes: np.ndarray
    image: np.ndarray
    class_id: np.ndarray
    side: np.ndarray
    mask_weight: np.ndarray
    has_mask: np.ndarray
    is_crowd: np.ndarray
    is_full: np.ndarray


def gather(directory: str, manifest: Manifest, workers: int = 0) -> Statistics:
    """Reads all records.

    Raises:
      UserError: a record is damaged, or its classes are not those of the manifest.
    """
    paths = list(map(str, find_shards([directory])))
    function = functools.partial(_read, num_classes=manifest.vocabulary.num_classes)
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    processes = min(pool.num_workers(workers, manifest.num_images), len(paths))
    with (
        pool.mapper(function, processes, decodes=True) as run,
        tqdm.tqdm(total=manifest.num_images, desc=manifest.name, unit=" images") as bar,
    ):
        for sizes, objects in run(paths):
            objects[:, 0] += sum(len(found) for found, _ in parts)
            parts.append((sizes, objects))
            bar.update(len(sizes))
    rows = np.concatenate([objects for _, objects in parts])
    image, class_id = rows[:, 0].astype(np.int64), rows[:, 1].astype(np.int64)
    flags = rows[:, 4:].astype(bool)
    sizes = np.concatenate([found for found, _ in parts])
    return Statistics(sizes, image, class_id, *rows[:, 2:4].T, *flags.T)


def _read(path: str, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Of a shard: image sizes [I, 2]; objects [N, 7]: image, class, side, weight, three flags."""
    sizes: list[tuple[int, int]] = []
    objects: list[tuple[Any, ...]] = []
    for record in schema.read_records([path]):
        for item in record.objects:
            if not 1 <= item.class_id <= num_classes:
                raise UserError(
                    f"{path}: image {record.image_id} has class {item.class_id} of {num_classes}; "
                    f"maskx records verify {pathlib.Path(path).parent} lists all damage."
                )
            y1, x1, y2, x2 = item.box_yxyx.tolist()
            side = max((y2 - y1) * (x2 - x1), 0) ** 0.5
            flags = (item.mask is not None, item.is_crowd, _is_full(item.mask))
            objects.append((len(sizes), item.class_id, side, item.mask_weight, *flags))
        sizes.append((record.height, record.width))
    found = np.array(objects, np.float64).reshape(-1, 7)
    return np.array(sizes, np.int64).reshape(-1, 2), found


def _is_full(mask: np.ndarray | None) -> bool:
    return mask is not None and min(mask.shape) >= _FULL_MASK_CELLS and bool(mask.all())


def per_class(statistics: Statistics, names: Sequence[str]) -> list[dict[str, Any]]:
    """For each class, in order: name, images, boxes, masks, full_masks, crowd, and box sides.

    Crowds are counted apart: nothing is trained on them.
    """
    order = np.argsort(statistics.class_id, kind="stable")
    bounds = np.searchsorted(statistics.class_id[order], np.arange(1, len(names) + 2))
    table = []
    for index, name in enumerate(names):
        found = order[bounds[index] : bounds[index + 1]]
        crowds = int(statistics.is_crowd[found].sum())
        found = found[~statistics.is_crowd[found]]
        side = statistics.side[found]
        row = {
            "name": name,
            "images": len(np.unique(statistics.image[found])),
            "boxes": len(found),
            "masks": int(statistics.has_mask[found].sum()),
            "full_masks": int(statistics.is_full[found].sum()),
            "crowd": crowds,
        }
        for key, function in (("median", np.median), ("smallest", np.min), ("largest", np.max)):
            row[f"{key}_side_px"] = round(float(function(side)), 1) if len(side) else None
        table.append(row)
    return table
