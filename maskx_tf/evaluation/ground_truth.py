"""Ground truth of an evaluation in COCO's json layout, from records or from a COCO file.

Category ids are the model's contiguous class ids 1..K, boxes xywh in original pixels, masks
compressed run-length codes. An object without a mask has no `segmentation`.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterable, Sequence

from maskx_tf.data import manifest
from maskx_tf.data import records as record_lib
from maskx_tf.data.classes import Vocabulary
from maskx_tf.errors import UserError
from maskx_tf.ops import masks as mask_ops


def ground_truth_from_records(records: Sequence[str], vocabulary: Vocabulary) -> dict:
    """Ground truth of record directories (or shard globs), as `pipeline.make_dataset` takes them.

    Masks are as exact as the records hold them: at most 112 x 112 per object by default. Use
    `ground_truth_from_json` for COCO's own polygons.

    Raises:
      UserError: an object's class is not in the vocabulary, or an image id occurs twice.
    """
    images = record_lib.read_records(manifest.find_shards(records))
    return ground_truth_from_images(images, vocabulary)


def ground_truth_from_images(
    images: Iterable[record_lib.ImageRecord], vocabulary: Vocabulary
) -> dict:
    """Ground truth of images in memory; classes are matched to the vocabulary by name."""
    ground_truth = _empty(vocabulary)
    seen: set[int] = set()
    class_ids = {name: i + 1 for i, name in enumerate(vocabulary.names)}
    for image in images:
        if image.image_id in seen:
            raise UserError(
                f"Image id {image.image_id} ({image.file_name}) occurs twice in the records; "
                "evaluate data sets with clashing ids one by one."
            )
        seen.add(image.image_id)
        ground_truth["images"].append(
            {
                "id": image.image_id,
                "file_name": image.file_name,
                "height": image.height,
                "width": image.width,
            }
        )
        for item in image.objects:
            annotation = _annotation_of(item, image)
            annotation["id"] = len(ground_truth["annotations"]) + 1
            known = class_ids.get(item.class_name)
            annotation["category_id"] = known or vocabulary.id_of(item.class_name)
            ground_truth["annotations"].append(annotation)
    return ground_truth


def _annotation_of(item: record_lib.ObjectRecord, image: record_lib.ImageRecord) -> dict:
    y1, x1, y2, x2 = (float(v) for v in item.box_yxyx)
    annotation = {
        "image_id": image.image_id,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": float(item.area),
        "iscrowd": int(item.is_crowd),
    }
    if item.mask is not None:
        (annotation["segmentation"],) = mask_ops.paste_to_rle(
            item.mask[None], item.box_yxyx[None], image.height, image.width
        )
    return annotation


def ground_truth_from_json(path: str, vocabulary: Vocabulary) -> dict:
    """Ground truth of a COCO `instances` file, with its exact masks.

    Raises:
      UserError: the file cannot be read, or an annotated class is not in the vocabulary.
    """
    source = _read_json(path)
    names = {category["id"]: category["name"] for category in source["categories"]}
    images = {image["id"]: image for image in source["images"]}
    used = sorted({annotation["category_id"] for annotation in source["annotations"]})
    missing = [names[used_id] for used_id in used if names[used_id] not in vocabulary.names]
    if missing:
        raise UserError(
            f"{path} has objects of {len(missing)} classes that the model does not know, such as "
            f"{', '.join(missing[:5])}; evaluate with the annotations of the model's classes."
        )
    class_ids = {used_id: vocabulary.id_of(names[used_id]) for used_id in used}
    ground_truth = _empty(vocabulary)
    keys = ("id", "file_name", "height", "width")
    ground_truth["images"] = [{k: image[k] for k in keys} for image in images.values()]
    for index, source_annotation in enumerate(source["annotations"]):
        image = images[source_annotation["image_id"]]
        annotation = {
            "id": index + 1,
            "image_id": image["id"],
            "category_id": class_ids[source_annotation["category_id"]],
            "bbox": [float(v) for v in source_annotation["bbox"]],
            "iscrowd": int(source_annotation.get("iscrowd", 0)),
        }
        if source_annotation.get("segmentation"):
            annotation["segmentation"] = mask_ops.segmentation_to_rle(
                source_annotation["segmentation"], image["height"], image["width"]
            )
        annotation["area"] = float(source_annotation.get("area", _area(annotation)))
        ground_truth["annotations"].append(annotation)
    return ground_truth


def _area(annotation: dict) -> float:
    if "segmentation" in annotation:
        return mask_ops.rle_area(annotation["segmentation"])
    return annotation["bbox"][2] * annotation["bbox"][3]


def _read_json(path: str) -> dict:
    try:
        source = json.loads(pathlib.Path(path).read_text())
    except OSError as error:
        raise UserError(f"--annotations={path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise UserError(f"--annotations={path} is not json: {error}.") from None
    lacks = [key for key in ("images", "categories", "annotations") if key not in source]
    if lacks:
        raise UserError(f"--annotations={path} is not a COCO instances file: no {lacks[0]!r} list.")
    return source


def _empty(vocabulary: Vocabulary) -> dict:
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(vocabulary.names)]
    return {"images": [], "categories": categories, "annotations": []}
