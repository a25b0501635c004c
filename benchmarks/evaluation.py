"""How long COCO's metrics take, and what memory, by number of classes and implementation.

    python -m benchmarks.evaluation --images=1000 --classes=80,3000

Random ground truth of 20 objects an image and 100 detections, half of them near an object of their
class; masks are rectangles, their run-length codes made before. Each evaluation runs in a new
process, in turns; the scores are compared.
"""

import time

import numpy as np
from absl import flags

from benchmarks import timing
from maskx_tf.data.classes import Vocabulary
from maskx_tf.evaluation.coco import ENGINES, CocoEvaluator
from maskx_tf.ops import masks as mask_ops
from maskx_tf.system import cli

SIDE, OBJECTS, DETECTIONS = 200, 20, 100


def random_evaluator(engine: str, images: int, num_classes: int) -> CocoEvaluator:
    """An evaluator that has all predictions."""
    rng = np.random.default_rng(0)
    vocabulary = Vocabulary.from_names(f"class {c}" for c in range(1, num_classes + 1))
    truth = _boxes(rng, images * OBJECTS).reshape(images, OBJECTS, 4)
    classes = rng.integers(1, num_classes + 1, [images, OBJECTS])
    ground_truth = {
        "images": [{"id": i, "height": SIDE, "width": SIDE} for i in range(1, images + 1)],
        "categories": vocabulary.categories(),
        "annotations": [
            _annotation(i, j, truth[i, j], classes[i, j])
            for i in range(images)
            for j in range(OBJECTS)
        ],
    }
    set_a = range(1, num_classes // 2 + 1)
    evaluator = CocoEvaluator(ground_truth, vocabulary, set_a, engine)
    near = DETECTIONS // 2
    for i in range(images):
        chosen = rng.integers(0, OBJECTS, [near])
        moved = np.clip(truth[i, chosen] + rng.normal(0, 2, [near, 4]), 0, SIDE)
        boxes = np.concatenate([moved, _boxes(rng, DETECTIONS - near)])
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        others = rng.integers(1, num_classes + 1, [DETECTIONS - near])
        labels = np.concatenate([classes[i, chosen], others])
        scores = np.sort(rng.uniform(0, 1, [DETECTIONS]))[::-1]
        evaluator.add(i + 1, boxes, scores, labels, [_rle(box) for box in boxes])
    return evaluator


def _boxes(rng, count: int) -> np.ndarray:
    sides = rng.uniform(5, SIDE / 2, [count, 2])
    corners = rng.uniform(0, 1, [count, 2]) * (SIDE - sides)
    return np.concatenate([corners, corners + sides], axis=1)


def _annotation(image: int, number: int, box: np.ndarray, class_id: int) -> dict:
    y1, x1, y2, x2 = map(float, box)
    return {
        "id": image * OBJECTS + number + 1,
        "image_id": image + 1,
        "category_id": int(class_id),
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": (y2 - y1) * (x2 - x1),
        "iscrowd": 0,
        "segmentation": _rle(box),
    }


def _rle(box: np.ndarray) -> dict:
    mask = np.zeros([SIDE, SIDE], np.uint8)
    y1, x1, y2, x2 = np.rint(box).astype(int)
    mask[y1:y2, x1:x2] = 1
    return mask_ops.encode_rle(mask)


def evaluate(engine: str, images: int, num_classes: int) -> tuple[float, float, float]:
    """In a process of its own: (seconds, MiB beyond what the predictions take, mask AP)."""
    evaluator = random_evaluator(engine, images, num_classes)
    before = timing.own_peak_mib()
    started = time.perf_counter()
    results = evaluator.evaluate()
    seconds = time.perf_counter() - started
    return seconds, timing.own_peak_mib() - before, results["mask"]["all"]["AP"]


def main() -> None:
    values = flags.FLAGS
    print(f"{timing.machine()}; {values.images} images, {DETECTIONS} detections each")
    for count in map(int, values.classes):
        found: dict[str, list] = {engine: [] for engine in values.engines}
        for _ in range(values.turns):
            for engine in values.engines:
                arguments = engine, values.images, count
                found[engine].append(timing.in_new_process(evaluate, *arguments))
        print(f"\n{count} classes")
        timings = {e: timing.Timing([s for s, *_ in results]) for e, results in found.items()}
        print(timing.table(timings, values.engines[-1]))
        for engine, results in found.items():
            memory = max(mib for _, mib, _ in results)
            print(f"  {engine}: {memory:,.0f} MiB more, mask AP {results[0][2]:.6f}", flush=True)


if __name__ == "__main__":
    flags.DEFINE_integer("images", 1000, "Images.", lower_bound=1)
    flags.DEFINE_list("classes", ["80", "3000"], "Numbers of classes.")
    flags.DEFINE_multi_enum("engines", list(ENGINES), list(ENGINES), "Implementations.")
    flags.DEFINE_integer("turns", 3, "Turns of each.", lower_bound=1)
    cli.run(main)
