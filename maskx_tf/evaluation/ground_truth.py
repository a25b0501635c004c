"""Ground truth of an evaluation in COCO's json layout, from records or from a COCO file.

Category ids are the model's contiguous class ids 1..K, boxes xywh in original pixels, masks
compressed run-length codes. An object without a mask has no `segmentation`. Of data that are
annotated as LVIS is, images have `neg_category_ids` and `not_exhaustive_category_ids`, and
categories a `frequency`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from absl import logging

from maskx_tf.data.classes import Vocabulary
from maskx_tf.data.coco import instances, issues
from maskx_tf.data.coco.masks import MaskError
from maskx_tf.data.coco.objects import IGNORED, CocoObject, read_objects
from maskx_tf.data.records import manifest
from maskx_tf.data.records import schema as record_lib
from maskx_tf.errors import UserError, first_of
from maskx_tf.evaluation import federated
from maskx_tf.ops import masks as mask_ops


def ground_truth_from_records(records: Sequence[str], vocabulary: Vocabulary) -> dict:
    """Ground truth of record directories (or shard globs), as `pipeline.make_dataset` takes them.

    Masks are as exact as the records hold them: at most 112 x 112 per object by default. Use
    `ground_truth_from_json` for COCO's own polygons.

    Raises:
      UserError: an object's class is not in the vocabulary, or an image id occurs twice.
    """
    found = manifest.find_records(records)
    ground_truth = ground_truth_from_images(record_lib.read_records(found.paths), vocabulary)
    for of_directory in found.manifests.values():
        federated.add_frequencies(ground_truth, of_directory.class_attributes)
    return ground_truth


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
        entry: dict[str, Any] = {
            "id": image.image_id,
            "file_name": image.file_name,
            "height": image.height,
            "width": image.width,
        }
        if image.neg_classes is not None:
            not_exhaustive = image.not_exhaustive_classes or ()
            entry |= _annotated_for(image.neg_classes, not_exhaustive, class_ids)
        ground_truth["images"].append(entry)
        for item in image.objects:
            annotation = _annotation_of(item, image)
            annotation["id"] = len(ground_truth["annotations"]) + 1
            known = class_ids.get(item.class_name)
            annotation["category_id"] = known or vocabulary.id_of(item.class_name)
            ground_truth["annotations"].append(annotation)
    return ground_truth


def _annotated_for(
    negative: Sequence[str], not_exhaustive: Sequence[str], class_ids: Mapping[str, int]
) -> dict[str, list[int]]:
    """What LVIS says of an image; a class that the model does not know cannot be detected."""
    return {
        key: [class_ids[name] for name in names if name in class_ids]
        for key, names in (
            ("neg_category_ids", negative),
            ("not_exhaustive_category_ids", not_exhaustive),
        )
    }


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


def ground_truth_from_json(
    path: str,
    vocabulary: Vocabulary,
    sizes: Mapping[int, tuple[int, int]] | None = None,
    crowds: str = IGNORED,
) -> dict:
    """Ground truth of a COCO `instances` file, with its exact boxes and masks.

    What makes no object is dropped, and a mask that cannot be decoded is left out, as
    `tf_records.coco` does it; a warning counts and names them.

    Args:
      path: of the json.
      vocabulary: of the model.
      sizes: image id -> (height, width) of its file, where known; of others the json tells.
      crowds: what iscrowd means, one of `objects.CROWDS`.

    Raises:
      UserError: the file is unreadable or malformed, an image has no size, an annotated class is
        not in the vocabulary, or there are annotations, but no object.
    """
    source = instances.read(path)
    names = dict(zip(source.vocabulary.external_ids, source.vocabulary.names, strict=True))
    class_ids = {name: class_id for class_id, name in enumerate(vocabulary.names, start=1)}
    ground_truth, found, missing = _empty(vocabulary), list(source.issues), set()
    for item in source.items:
        height, width = (sizes or {}).get(item.image_id, item.size)
        if height is None or width is None:
            raise UserError(
                f"--annotations={path}: image {item.image_id} ({item.file_name}) has no height and "
                "width of whole pixels; add them."
            )
        entry = {"id": item.image_id, "file_name": item.file_name, "height": height, "width": width}
        if item.neg_category_ids is not None:
            listed = (item.neg_category_ids, item.not_exhaustive_category_ids or ())
            negative, not_exhaustive = ([names[i] for i in ids if i in names] for ids in listed)
            entry |= _annotated_for(negative, not_exhaustive, class_ids)
        ground_truth["images"].append(entry)
        objects, issues_of_image = read_objects(item, (height, width), crowds)
        found += issues_of_image
        for annotation, item_object in objects:
            name = names[annotation.category_id]
            if name not in class_ids:
                missing.add(name)
                continue
            new, reasons = _annotation_of_json(item_object, (height, width))
            found += [issues.Issue(reason, item.image_id, annotation.number) for reason in reasons]
            new["id"] = len(ground_truth["annotations"]) + 1
            new |= {"image_id": item.image_id, "category_id": class_ids[name]}
            ground_truth["annotations"].append(new)
    federated.add_frequencies(ground_truth, source.class_attributes)
    if missing:
        raise UserError(
            f"{path} has objects of {len(missing)} classes that the model does not know, such as "
            f"{first_of(sorted(missing), 5)}; evaluate with the annotations of the model's classes."
        )
    if source.texts and all(item["iscrowd"] for item in ground_truth["annotations"]):
        why = issues.why_no_object(issues.tabulate(found))
        how = " It is read as --eval_records were written." if ground_truth["annotations"] else ""
        raise UserError(f"--annotations={path} has no object to be found by a model{why}.{how}")
    if found:
        logging.warning(
            "--annotations=%s:\n%s", path, issues.summary(issues.tabulate(found), len(source.texts))
        )
    return ground_truth


def _annotation_of_json(item: CocoObject, size: tuple[int, int]) -> tuple[dict, list[str]]:
    """The annotation without its ids, and what is wrong with its mask."""
    annotation: dict[str, Any] = {
        "bbox": list(item.bbox),  # as it is: COCO's are not clipped
        "iscrowd": int(item.is_crowd),
    }
    reasons = []
    if item.segmentation is not None:
        try:
            annotation["segmentation"] = item.segmentation.rle(size)
        except MaskError as error:
            reasons.append(error.reason)
    area = item.area
    if area is None and "segmentation" in annotation:
        area = mask_ops.rle_area(annotation["segmentation"])
    annotation["area"] = float(item.bbox[2] * item.bbox[3] if area is None else area)
    return annotation, reasons


def _empty(vocabulary: Vocabulary) -> dict:
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(vocabulary.names)]
    return {"images": [], "categories": categories, "annotations": []}
