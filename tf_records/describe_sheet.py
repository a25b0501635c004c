"""A picture of sample images of a record directory, with boxes, masks and names drawn."""

from __future__ import annotations

import colorsys
import pathlib
from collections.abc import Sequence

import cv2
import numpy as np

from maskx_tf import visualize
from maskx_tf.data import decoding
from maskx_tf.data.image_formats import BadImageError
from maskx_tf.data.records import framing, index, schema
from maskx_tf.data.records.manifest import Manifest, find_shards
from maskx_tf.data.records.schema import ImageRecord, ObjectRecord
from maskx_tf.errors import UserError
from maskx_tf.ops import masks as mask_ops

_SHEET_PX = 2240  # its width, if there are images enough
_ROW_PX = 420  # height of a row, about
_LARGEST_PX = 560  # height of a row, at most
_ASPECTS = 0.4, 4.0  # width / height beyond which an image gets a margin, so that its name fits
_GAP_PX = 6  # between the images of a row
_MARGIN_GREY = 225
_CROWD_GREY = 170
_GOLDEN_SECTION = 0.618034


def draw_sheet(directory: str, manifest: Manifest, count: int) -> np.ndarray:
    """Images taken evenly from all records, decoded as training does: uint8 [H, W, 3] RGB.

    Each object has a colour of its own, crowds are grey and named so, objects without a mask are
    boxes. File name and image id are under each image.

    Args:
      directory: of the records.
      manifest: its manifest.
      count: images to draw.

    Raises:
      UserError: an image cannot be decoded; its file, record and id are named.
    """
    found = index.build(find_shards([directory]), {}, skip_corrupt=False)
    chosen = np.unique(np.linspace(0, len(found) - 1, min(count, len(found))).astype(int))
    samples = [_read(found, record) for record in chosen.tolist()]
    images = [
        _decode(sample, found, number)
        for sample, number in zip(samples, chosen.tolist(), strict=True)
    ]
    rows = _rows([np.clip(image.shape[1] / image.shape[0], *_ASPECTS) for image in images])
    return _stack(
        [
            [_cell(samples[i], images[i], size, manifest.vocabulary.names) for i, size in row]
            for row in rows
        ]
    )


def _read(found: index.Index, record: int) -> ImageRecord:
    frame = framing.Frame(int(found.offset[record]), int(found.length[record]))
    path = pathlib.Path(found.paths[found.shard[record]])
    return schema.from_example(index.Place(path, frame).read())


def _decode(record: ImageRecord, found: index.Index, number: int) -> np.ndarray:
    try:
        return decoding.to_array(record.encoded)
    except BadImageError as error:
        path = found.paths[found.shard[number]]
        raise UserError(
            f"{path}: image {record.image_id} ({record.file_name}): {error}; "
            f"maskx records verify {pathlib.Path(path).parent} lists all damage."
        ) from None


def _rows(aspects: Sequence[float]) -> list[list[tuple[int, tuple[int, int]]]]:
    """Rows of about one height, all of the sheet's width: (image, (height, width)) of each.

    Args:
      aspects: width / height of the images.
    """
    ends = np.cumsum(aspects)
    count = max(1, round(float(ends[-1]) * _ROW_PX / _SHEET_PX))
    middle = (ends - np.array(aspects) / 2) / ends[-1]
    row_of = np.minimum((middle * count).astype(int), count - 1)
    rows = [np.flatnonzero(row_of == row).tolist() for row in range(count)]
    rows = [row for row in rows if row]
    sums = [sum(aspects[i] for i in row) for row in rows]
    sheet_width = min(_SHEET_PX, round(_LARGEST_PX * max(sums)))
    cells = []
    for row, total in zip(rows, sums, strict=True):
        edges = np.round(np.cumsum([0.0, *(aspects[i] for i in row)]) / total * sheet_width).astype(
            int
        )
        height = round(sheet_width / total)
        sizes = [(height, int(width)) for width in np.diff(edges)]
        cells.append(list(zip(row, sizes, strict=True)))
    return cells


def _cell(
    record: ImageRecord, image: np.ndarray, size: tuple[int, int], names: tuple[str, ...]
) -> np.ndarray:
    """An image with its objects and a gap that fill a (height, width), over its name."""
    size = (size[0], max(size[1] - _GAP_PX, 1))
    scale = min(size[0] / image.shape[0], size[1] / image.shape[1])
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    if abs(width - size[1]) + abs(height - size[0]) < 4:  # rounding, no margin
        height, width = size
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    picture = _draw(record, cv2.resize(image, (width, height), interpolation=how), names)
    cell = np.full((*size, 3), _MARGIN_GREY, np.uint8)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    cell[top : top + height, left : left + width] = picture
    ending = f" · image {record.image_id}"
    cell = visualize.captioned(cell, record.file_name, ending, below=True)
    return np.pad(cell, ((0, 0), (0, _GAP_PX), (0, 0)), constant_values=255)


def _draw(record: ImageRecord, image: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    height, width = image.shape[:2]
    factors = np.array([height / record.height, width / record.width] * 2)
    objects = sorted(record.objects, key=_area)  # the first ones are drawn on top
    boxes = np.array([item.box_yxyx for item in objects]).reshape(-1, 4) * factors
    masks = [
        None if item.mask is None else mask_ops.paste_mask(item.mask, box, height, width)
        for item, box in zip(objects, boxes, strict=True)
    ]
    labels = [("crowd: " if o.is_crowd else "") + names[o.class_id - 1] for o in objects]
    return visualize.draw(image, boxes, masks, labels, _colors(objects), enlarge=False)


def _colors(objects: Sequence[ObjectRecord]) -> np.ndarray:
    """uint8 [N, 3] RGB: hues far apart from object to object; crowds grey."""
    colors = np.full((len(objects), 3), _CROWD_GREY, np.uint8)
    for place, item in enumerate(objects):
        if not item.is_crowd:
            hue, value = place * _GOLDEN_SECTION % 1, (1.0, 0.75, 0.9)[place % 3]
            colors[place] = np.round(255 * np.array(colorsys.hsv_to_rgb(hue, 0.9, value)))
    return colors


def _area(item: ObjectRecord) -> float:
    y1, x1, y2, x2 = item.box_yxyx.tolist()
    return (y2 - y1) * (x2 - x1)


def _stack(rows: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Rows of equally high cells, of one width in all."""
    return np.concatenate([np.concatenate(row, axis=1) for row in rows], axis=0)
