"""One data set as folders of five formats, written here without the readers' code."""

import json
import pathlib
from typing import NamedTuple
from xml.sax.saxutils import escape

import numpy as np
import PIL.Image
import yaml

from maskx_tf.labeling.formats.label_studio import brush_rle
from maskx_tf.ops import masks as mask_ops
from tests import harness

NAMES = ("ball", "cat & dog", "mug")
CELL = 28  # pixels; also the largest side of masks, so that polygons and pixels agree
SIDE = 4 * CELL


class Item(NamedTuple):
    """An object: class, box in whole pixels, and its polygon [x, y, ...] or None."""

    name: str
    bbox: tuple[int, int, int, int]
    polygon: list[int] | None


def data_set(boxes: int, masks: int, seed: int = 0) -> dict[str, list[Item]]:
    """File name -> objects on a grid, with and without masks in one image; the last has none."""
    rng = np.random.default_rng(seed)
    has_mask = rng.permutation([True] * masks + [False] * (boxes - masks)).tolist()
    images: dict[str, list[Item]] = {}
    while has_mask:
        cells = rng.permutation(16)[: rng.integers(8, 16)]
        items = [_item(rng, int(cell), has_mask.pop()) for cell in cells if has_mask]
        images[f"photo {len(images):03d}.png"] = items
    images[f"photo {len(images):03d}.png"] = []
    return images


def _item(rng: np.random.Generator, cell: int, has_mask: bool) -> Item:
    x, y = CELL * (cell % 4), CELL * (cell // 4)
    cut_x, cut_y = (int(value) for value in rng.integers(4, CELL - 4, 2))
    corner = [x, y, x + CELL, y, x + CELL, y + cut_y, x + cut_x, y + cut_y, x + cut_x, y + CELL]
    name = NAMES[rng.integers(len(NAMES))]
    return Item(name, (x, y, CELL, CELL), [*corner, x, y + CELL] if has_mask else None)


def mask(item: Item) -> np.ndarray:
    """uint8 {0, 1} [SIDE, SIDE] of its polygon: the upper rows and the left columns of its box."""
    x, y, w, h = item.bbox
    assert item.polygon
    _, _, _, _, _, row, column, *_ = item.polygon
    result = np.zeros([SIDE, SIDE], np.uint8)
    result[y:row, x : x + w] = 1
    result[y : y + h, x:column] = 1
    return result


def write_images(directory: pathlib.Path, images: dict[str, list[Item]]) -> None:
    directory.mkdir(parents=True)
    for seed, name in enumerate(images):
        pixels = harness.random_image(SIDE, SIDE, seed=seed)
        (directory / name).write_bytes(harness.encode_image(pixels, ".png"))


def coco(folder: pathlib.Path, images: dict[str, list[Item]]) -> None:
    write_images(folder / "images", images)
    items = [(number, each) for number, items in enumerate(images.values(), 1) for each in items]
    annotations = [
        {
            "id": place,
            "image_id": number,
            "category_id": NAMES.index(each.name) + 1,
            "bbox": each.bbox,
            "segmentation": [each.polygon] if each.polygon else [],
        }
        for place, (number, each) in enumerate(items, start=1)
    ]
    entries = [
        {"id": number, "file_name": name, "width": SIDE, "height": SIDE}
        for number, name in enumerate(images, start=1)
    ]
    categories = [{"id": number, "name": name} for number, name in enumerate(NAMES, start=1)]
    content = {"images": entries, "annotations": annotations, "categories": categories}
    (folder / "all.json").write_text(json.dumps(content))


def yolo_line(item: Item) -> str:
    number, (x, y, w, h) = NAMES.index(item.name), item.bbox
    values = item.polygon or [x + w / 2, y + h / 2, w, h]
    return " ".join([str(number), *(repr(value / SIDE) for value in values)])


def yolo(folder: pathlib.Path, images: dict[str, list[Item]]) -> None:
    """The last image, which has no objects, gets no label file."""
    write_images(folder / "train" / "images", images)
    (folder / "train" / "labels").mkdir()
    for name, items in images.items():
        if items:
            lines = "".join(f"{yolo_line(item)}\n" for item in items)
            (folder / "train" / "labels" / name).with_suffix(".txt").write_text(lines)
    content = {"train": "../train/images", "nc": len(NAMES), "names": list(NAMES)}
    (folder / "data.yaml").write_text(yaml.safe_dump(content))


def voc_xml(name: str, items: list[Item]) -> str:
    size = f"<size><width>{SIDE}</width><height>{SIDE}</height><depth>3</depth></size>"
    objects = "".join(
        f"<object><name>{escape(item.name)}</name><bndbox><xmin>{item.bbox[0]}</xmin>"
        f"<ymin>{item.bbox[1]}</ymin><xmax>{item.bbox[0] + item.bbox[2]}</xmax>"
        f"<ymax>{item.bbox[1] + item.bbox[3]}</ymax></bndbox></object>\n"
        for item in items
    )
    return f"<annotation><filename>{name}</filename>{size}\n{objects}</annotation>\n"


def voc(folder: pathlib.Path, images: dict[str, list[Item]]) -> None:
    write_images(folder / "JPEGImages", images)
    for inner in ("Annotations", "SegmentationObject"):
        (folder / inner).mkdir()
    for name, items in images.items():
        path = (folder / "Annotations" / name).with_suffix(".xml")
        path.write_text(voc_xml(name, items))
        numbers = np.zeros([SIDE, SIDE], np.uint8)
        for number, item in enumerate(items, start=1):
            if item.polygon:
                numbers[mask(item) == 1] = number
        if numbers.any():
            picture = PIL.Image.fromarray(numbers)
            picture.putpalette([value for i in range(256) for value in (i, i, i)])
            picture.save(folder / "SegmentationObject" / name)


def cvat_shapes(item: Item, group: int) -> str:
    """Of every other group the mask is a polygon, else runs in the box."""
    x, y, w, h = item.bbox
    label = f'label="{escape(item.name)}" source="manual" group_id="{group}"'
    text = f'<box {label} xtl="{x}" ytl="{y}" xbr="{x + w}" ybr="{y + h}"></box>\n'
    if not item.polygon:
        return text
    if group % 2:
        pairs = zip(item.polygon[::2], item.polygon[1::2], strict=True)
        points = ";".join(f"{px:.2f},{py:.2f}" for px, py in pairs)
        return text + f'<polygon {label} points="{points}"></polygon>\n'
    runs, last = [0], 0
    for value in mask(item)[y : y + h, x : x + w].ravel().tolist():
        runs += [0] if value != last else []
        runs[-1] += 1
        last = value
    place = f'left="{x}" top="{y}" width="{w}" height="{h}"'
    return text + f'<mask {label} rle="{", ".join(map(str, runs))}" {place}></mask>\n'


def cvat(folder: pathlib.Path, images: dict[str, list[Item]]) -> None:
    write_images(folder / "images", images)
    labels = "".join(f"<label><name>{escape(name)}</name></label>" for name in NAMES)
    meta = f"<meta><job><labels>{labels}</labels></job></meta>"
    text = "".join(
        f'<image id="{number}" name="{name}" width="{SIDE}" height="{SIDE}">\n'
        + "".join(cvat_shapes(item, group) for group, item in enumerate(items, start=1))
        + "</image>\n"
        for number, (name, items) in enumerate(images.items())
    )
    top = '<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version>'
    (folder / "annotations.xml").write_text(f"{top}{meta}\n{text}</annotations>\n")


def label_studio_regions(item: Item, number: int) -> list[dict]:
    """Of every other object the mask is a polygon, else drawn with the brush."""
    percent = 100 / SIDE
    x, y, w, h = (value * percent for value in item.bbox)
    common = {"original_width": SIDE, "original_height": SIDE, "image_rotation": 0}
    value = {"x": x, "y": y, "width": w, "height": h, "rotation": 0}
    value["rectanglelabels"] = [item.name]
    regions = [{"id": f"r{number}", "type": "rectanglelabels", "value": value, **common}]
    if not item.polygon:
        return regions
    inner = {"id": f"m{number}", "parentID": f"r{number}", **common}
    if number % 2:
        pairs = np.reshape(item.polygon, (-1, 2)) * percent
        value = {"points": pairs.tolist(), "closed": True, "polygonlabels": [item.name]}
        return [*regions, {**inner, "type": "polygonlabels", "value": value}]
    code = brush_rle(mask_ops.encode_rle(mask(item)))
    value = {"format": "rle", "rle": code, "brushlabels": [item.name]}
    return [*regions, {**inner, "type": "brushlabels", "value": value}]


def label_studio(folder: pathlib.Path, images: dict[str, list[Item]]) -> None:
    write_images(folder / "images", images)
    tasks = [
        {
            "id": number,
            "data": {"image": f"/data/upload/1/0123abcd-{name.replace(' ', '%20')}"},
            "annotations": [
                {
                    "was_cancelled": False,
                    "result": [
                        region
                        for place, item in enumerate(items)
                        for region in label_studio_regions(item, place)
                    ],
                }
            ],
            "predictions": [],
        }
        for number, (name, items) in enumerate(images.items(), start=100)
    ]
    (folder / "project-1.json").write_text(json.dumps(tasks))


WRITERS = {"coco": coco, "yolo": yolo, "voc": voc, "cvat": cvat, "label-studio": label_studio}
