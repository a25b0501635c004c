"""Two classes of Shapes left out of training and added from a few boxes: do they get masks?

    python -m benchmarks.add_classes

Trains the detector and the mask head of Mask^X R-CNN twice: with all 72 classes, and without two
classes of set B and every image that shows one of them. The second model gets the two from
--examples boxes each (`maskx_tf.add_classes`), drawn anew --draws times. Reported is the mask AP of
the two, given their boxes, beside that of the model that was trained on all boxes; and whether the
outputs for the old classes stayed the same to the bit. What is done is not done again.
"""

import json
import pathlib

import numpy as np
from absl import flags

from maskx_tf import cli, config
from maskx_tf.data.files import write_atomically
from maskx_tf.demo import CONFIGS, Step, execute
from maskx_tf.errors import UserError


def without_classes(coco: dict, names: list[str]) -> dict:
    """A COCO json without the named classes and without every image that shows one of them."""
    left_out = {c["id"] for c in coco["categories"] if c["name"] in names}
    if len(left_out) < len(names):
        raise UserError(f"--classes={','.join(names)}: not all of them are classes of Shapes.")
    seen = {a["image_id"] for a in coco["annotations"] if a["category_id"] in left_out}
    return {
        "images": [image for image in coco["images"] if image["id"] not in seen],
        "annotations": [a for a in coco["annotations"] if a["image_id"] not in seen],
        "categories": [c for c in coco["categories"] if c["id"] not in left_out],
    }


def few_examples(coco: dict, names: list[str], count: int, seed: int) -> dict:
    """`count` random boxes of each named class and nothing else of their images."""
    rng = np.random.default_rng(seed)
    categories = [c for c in coco["categories"] if c["name"] in names]
    chosen = []
    for category in categories:
        boxes = [a for a in coco["annotations"] if a["category_id"] == category["id"]]
        if len(boxes) < count:
            raise UserError(f"--examples={count}: {category['name']} has only {len(boxes)} boxes.")
        chosen += [boxes[i] for i in sorted(rng.choice(len(boxes), count, replace=False))]
    kept = ("id", "image_id", "category_id", "bbox", "iscrowd")  # no masks
    shown = {a["image_id"] for a in chosen}
    return {
        "images": [image for image in coco["images"] if image["id"] in shown],
        "annotations": [{key: a[key] for key in kept} for a in chosen],
        "categories": categories,
    }


def train_steps(root: pathlib.Path, name: str, records: pathlib.Path, share: float) -> list[Step]:
    """The two stages of training on some records: ROOT/NAME/stage1_boxes and ROOT/NAME/maskx."""
    steps, needs = [], records / "manifest.json"
    for stage in ("stage1_boxes", "maskx"):
        flagfile, model_dir = f"{CONFIGS}/{stage}.flags", root / name / stage
        init = [f"--init_checkpoint={root / name / 'stage1_boxes'}"] if stage == "maskx" else []
        options = config.read_flagfile(flagfile)
        count = round(share * options.train_steps)
        drops = ",".join(str(round(share * step)) for step in options.lr_steps)
        command = (
            "maskx_tf.train",
            f"--flagfile={flagfile}",
            f"--train_steps={count}",
            f"--lr_steps={drops}",
            f"--train_records={records}",
            "--eval_records=",
            f"--mask_classes={root / 'data' / 'set_a.txt'}",
            f"--model_dir={model_dir}",
            *init,
        )
        last = model_dir / f"ckpt-{count}.index"
        steps.append(Step(f"Training {name}, {stage}", command, (needs,), (last,)))
        needs = last
    return steps


def model_steps(root: pathlib.Path, names: list[str], share: float) -> list[Step]:
    """Data and training of both models; the filtered annotations are written on the way."""
    data, filtered = root / "data", root / "without" / "instances_train.json"
    manifests = tuple(data / "records" / split / "manifest.json" for split in ("train", "val"))
    execute([Step("Making Shapes", ("tf_records.shapes", f"--output_dir={data}"), (), manifests)])
    if not filtered.exists():
        coco = json.loads((data / "instances_train.json").read_text())
        write_atomically(filtered, json.dumps(without_classes(coco, names)))
    records = root / "without" / "records"
    convert = (
        "tf_records.coco",
        f"--annotations={filtered}",
        f"--images={data / 'train'}",
        f"--output_dir={records}",
        "--overwrite",
    )
    written = (records / "manifest.json",)
    return [
        Step("Writing the records without two classes", convert, (filtered,), written),
        *train_steps(root, "without", records, share),
        *train_steps(root, "full", data / "records" / "train", share),
    ]


def main() -> None:
    """Trains, adds, evaluates, reports."""
    values = flags.FLAGS
    root = pathlib.Path(values.output_dir)
    execute(model_steps(root, values.classes, values.schedule))


if __name__ == "__main__":
    flags.DEFINE_string("output_dir", "runs/add_classes", "Where data, models and results go.")
    flags.DEFINE_list(
        "classes", ["speckled hourglass", "checkered heart"], "The classes to leave out."
    )
    flags.DEFINE_float("schedule", 1.0, "Share of the training steps of configs/shapes.")
    flags.DEFINE_integer("examples", 10, "Boxed examples of each.")
    flags.DEFINE_integer("draws", 5, "How often examples are drawn.")
    cli.run(main)
