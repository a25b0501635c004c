"""What tiles are worth on large images: AP of an export, plain and in tiles.

Example:
  python -m benchmarks.large_images --saved_model=exported/shapes --eval_records=records/val

The large images are mosaics of the records' images, which must be of one size; the tiles have the
size of one of them, and their borders are not those of the mosaic.
"""

from __future__ import annotations

import itertools
import time

import numpy as np
from absl import flags

from maskx_tf.errors import UserError
from maskx_tf.evaluation import coco
from maskx_tf.evaluation.ground_truth import ground_truth_from_records
from maskx_tf.evaluation.record_images import RecordImages
from maskx_tf.inference.detector import load_export
from maskx_tf.ops import masks
from maskx_tf.system import cli


def define_flags() -> None:
    """Defines this command's flags."""
    flags.DEFINE_string("saved_model", "", "Export to measure.")
    flags.DEFINE_list("eval_records", [], "Records whose images are of one size.")
    flags.DEFINE_integer("per_side", 4, "Images a side of a mosaic.", 2)
    flags.DEFINE_integer("mosaics", 10, "How many large images.", 1)


def mosaic(
    images: list[np.ndarray], annotations: list[list[dict]], per_side: int, image_id: int
) -> tuple[np.ndarray, list[dict]]:
    """Images in rows as one, and their objects in it.

    Args:
      images: per_side ** 2 of uint8 [h, w, 3].
      annotations: of each, COCO layout, with run-length codes as masks.
      per_side: images a row.
      image_id: of the mosaic.
    """
    rows = [np.concatenate(images[i : i + per_side], 1) for i in range(0, len(images), per_side)]
    whole, moved = np.concatenate(rows), []
    height, width = images[0].shape[:2]
    for place, objects in enumerate(annotations):
        top, left = place // per_side * height, place % per_side * width
        for item in objects:
            x, y, w, h = item["bbox"]
            pixels = masks.decode_rle(item["segmentation"])
            moved.append(
                {
                    **item,
                    "image_id": image_id,
                    "bbox": [x + left, y + top, w, h],
                    "segmentation": masks.encode_region(pixels, top, left, *whole.shape[:2]),
                }
            )
    return whole, moved


def main() -> None:
    """Prints AP of both ways."""
    values = flags.FLAGS
    detector = load_export(values.saved_model)
    source = ground_truth_from_records(values.eval_records, detector.vocabulary)
    of_image = {
        key: list(group)
        for key, group in itertools.groupby(source["annotations"], lambda item: item["image_id"])
    }
    read_image, per_mosaic = RecordImages(values.eval_records), values.per_side**2
    ids = list(read_image)[: values.mosaics * per_mosaic]
    if len(ids) < values.mosaics * per_mosaic:
        raise UserError(f"--eval_records has {len(ids)} images, too few for --mosaics.")
    truth = {**source, "images": [], "annotations": []}
    large = {}
    for number in range(values.mosaics):
        chosen = ids[number * per_mosaic :][:per_mosaic]
        objects = [of_image.get(key, []) for key in chosen]
        large[number], moved = mosaic(
            list(map(read_image, chosen)), objects, values.per_side, number
        )
        height, width = large[number].shape[:2]
        truth["images"].append({"id": number, "file_name": "", "height": height, "width": width})
        truth["annotations"] += moved
    for number, item in enumerate(truth["annotations"], start=1):
        item["id"] = number
    tile = height // values.per_side
    ways = {
        "whole": lambda image: detector(image, min_score=0),
        f"tiles of {tile}": lambda image: detector.tiled(image, tile, 0.25, min_score=0),
    }
    print(f"{values.mosaics} images of {height}x{width}, {len(truth['annotations'])} objects")
    for name, look in ways.items():
        scores = coco.CocoEvaluator(truth, detector.vocabulary, detector.mask_class_ids)
        started = time.process_time()
        for number, image in large.items():
            found = look(image)
            rles = [one.rle() for one in found]
            scores.add(number, found.boxes_yxyx, found.scores, found.class_ids, rles)
        seconds = (time.process_time() - started) / values.mosaics
        results = scores.evaluate()
        parts = [
            f"{kind} {key} {100 * results[kind]['all'][key]:.1f}"
            for kind in ("box", "mask")
            for key in ("AP", "APs")
            if results[kind]["all"][key] is not None
        ]
        print(f"  {name:14} {', '.join(parts)}; {seconds:.2f} s of processor time an image")


if __name__ == "__main__":
    define_flags()
    cli.run(main)
