"""Classes of Shapes left out of training and added from a few boxes: do they get masks?

    python -m benchmarks.add_classes

Trains the detector and the mask head of Mask^X R-CNN twice: with all 72 classes, and without
--classes of set B and every image that shows one of them. The second model gets these from
--examples boxes each (`maskx_tf.add_classes`), drawn anew --draws times. Reported is their mask AP,
given their boxes and detected, beside that of the model that was trained on all boxes; and whether
the outputs for the old classes stayed the same to the bit. What is done is not done again; what
other options need goes into directories of its own, `results.md` beside the draws.
"""

import dataclasses
import hashlib
import json
import pathlib
import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from absl import flags

from maskx_tf import checkpoints, config
from maskx_tf.data import decoding, preprocessing
from maskx_tf.errors import UserError
from maskx_tf.system import cli
from maskx_tf.system.files import write_atomically

CONFIGS = "configs/shapes"


@dataclasses.dataclass(frozen=True)
class Step:
    """A command, without the `python -m`, and the file that it writes last."""

    command: tuple[str, ...]
    output: pathlib.Path


def execute(steps: Sequence[Step]) -> None:
    """Runs the commands whose output is not there."""
    for step in steps:
        if step.output.exists():
            continue
        print(f"\npython -m {' '.join(step.command)}", flush=True)
        if subprocess.run([sys.executable, "-m", *step.command]).returncode:
            raise UserError(f"{step.command[0]} failed; its message is above.")


@dataclasses.dataclass(frozen=True)
class Setup:
    """The options, and where what depends on them is kept."""

    root: pathlib.Path
    classes: tuple[str, ...]
    schedule: float = 1.0
    examples: int = 10

    @property
    def data(self) -> pathlib.Path:
        return self.root / "data"

    @property
    def full(self) -> pathlib.Path:
        return self.root / f"schedule{self.schedule:g}" / "full"

    @property
    def without(self) -> pathlib.Path:
        names = "\n".join(sorted(self.classes))
        digest = hashlib.sha256(names.encode()).hexdigest()[:8]
        return self.root / f"schedule{self.schedule:g}" / f"without_{digest}"

    @property
    def draws(self) -> pathlib.Path:
        return self.without / f"examples{self.examples}"

    def added(self, draw: int) -> pathlib.Path:
        return self.draws / f"draw{draw}" / "model"


def without_classes(coco: dict, names: Sequence[str]) -> dict:
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


def few_examples(coco: dict, names: Sequence[str], count: int, seed: int) -> dict:
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


def train_steps(setup: Setup, directory: pathlib.Path, records: pathlib.Path) -> list[Step]:
    """The two stages of training on some records: stage1_boxes and cls_box in a directory."""
    steps = []
    for stage in ("stage1_boxes", "cls_box"):
        flagfile, model_dir = f"{CONFIGS}/{stage}.flags", directory / stage
        init = [f"--init_checkpoint={directory / 'stage1_boxes'}"] if stage == "cls_box" else []
        options = config.read_flagfile(flagfile)
        count = round(setup.schedule * options.train_steps)
        drops = ",".join(str(round(setup.schedule * step)) for step in options.lr_steps)
        command = (
            "maskx_tf.train",
            f"--flagfile={flagfile}",
            f"--train_steps={count}",
            f"--lr_steps={drops}",
            f"--train_records={records}",
            "--eval_records=",
            f"--mask_classes={setup.data / 'set_a.txt'}",
            f"--model_dir={model_dir}",
            *init,
        )
        steps.append(Step(command, model_dir / f"ckpt-{count}.index"))
    return steps


def model_steps(setup: Setup) -> list[Step]:
    """Data and training of both models; the filtered annotations are written on the way."""
    data, filtered = setup.data, setup.without / "instances_train.json"
    written_last = data / "word_vectors.txt"
    execute([Step(("tf_records.shapes", f"--output_dir={data}"), written_last)])
    if not filtered.exists():
        coco = json.loads((data / "instances_train.json").read_text())
        write_atomically(filtered, json.dumps(without_classes(coco, setup.classes)))
    records = setup.without / "records"
    convert = (
        "tf_records.coco",
        f"--annotations={filtered}",
        f"--images={data / 'train'}",
        f"--output_dir={records}",
        "--overwrite",
    )
    return [
        Step(convert, records / "manifest.json"),
        *train_steps(setup, setup.without, records),
        *train_steps(setup, setup.full, data / "records" / "train"),
    ]


def evaluation(setup: Setup, model_dir: pathlib.Path) -> Step:
    command = (
        "maskx_tf.evaluate",
        f"--model_dir={model_dir}",
        f"--eval_records={setup.data / 'records' / 'val'}",
        f"--mask_classes={setup.data / 'set_a.txt'}",
        "--per_class",
    )
    return Step(command, model_dir / "evaluation.json")


def draw_steps(setup: Setup, draw: int) -> list[Step]:
    """One draw of examples: adding the classes, evaluating."""
    model_dir = setup.added(draw)
    boxes = model_dir.with_name("new.json")
    if not boxes.exists():
        coco = json.loads((setup.data / "instances_train.json").read_text())
        chosen = few_examples(coco, setup.classes, setup.examples, draw)
        write_atomically(boxes, json.dumps(chosen))
    command = (
        "maskx_tf.add_classes",
        f"--model_dir={setup.without / 'cls_box'}",
        f"--boxes={boxes}",
        f"--images={setup.data / 'train'}",
        f"--output_dir={model_dir}",
    )
    return [Step(command, model_dir / "ckpt-0.index"), evaluation(setup, model_dir)]


def old_detections_equal(old_dir: pathlib.Path, new_dir: pathlib.Path, images: list) -> int:
    """Number of detections of old classes, all equal to the bit; UserError if one is not."""
    old, new = (checkpoints.load_model(str(path)) for path in (old_dir, new_dir))
    sides = old.config.image_min_side, old.config.image_max_side
    run_old, run_new = (tf.function(each.model, autograph=False) for each in (old, new))
    compared = 0
    for path in images:
        image = decoding.decode(tf.io.read_file(str(path)))
        resized, size, _ = preprocessing.resize_and_pad(image, *sides)
        before, after = (
            {key: value[0].numpy() for key, value in run(resized[None], size[None]).items()}
            for run in (run_old, run_new)
        )
        count = int(before.pop("num_detections"))
        rows = (after["detection_classes"] > 0) & (
            after["detection_classes"] <= old.vocabulary.num_classes
        )
        for key, value in before.items():
            if not np.array_equal(value[:count], after[key][rows]):
                raise UserError(f"{key} of old classes changed on {path}.")
        compared += count
    return compared


def all_steps(setup: Setup, draws: int) -> list[Step]:
    """Everything that is reported, in order."""
    steps = model_steps(setup)
    steps.append(evaluation(setup, setup.full / "cls_box"))
    for draw in range(draws):
        steps += draw_steps(setup, draw)
    return steps


def report(setup: Setup, draws: int, compared: int) -> str:
    """The table of mask AP of the added classes, in percent, beside full training."""
    names = setup.classes

    def scores(model_dir: pathlib.Path, kind: str) -> list[float]:
        results = json.loads((model_dir / "evaluation.json").read_text())
        return [100 * results[kind]["per_class"][name] for name in names]

    lines = [
        "| mask AP | " + " | ".join(names) + " | mean | of full training |",
        "|---|" + "---|" * (len(names) + 2),
    ]
    for kind, title in (("mask_given_boxes", "given boxes"), ("mask", "detected")):
        full = np.array(scores(setup.full / "cls_box", kind))
        added = np.array([scores(setup.added(d), kind) for d in range(draws)])
        cells = [f"{value:.1f}" for value in (*full, full.mean())]
        lines.append(f"| trained on all boxes, {title} | {' | '.join(cells)} | |")
        spread = [
            f"{column.mean():.1f} ({column.min():.1f} to {column.max():.1f})" for column in added.T
        ]
        share = added.mean() / full.mean()
        lines.append(
            f"| added, {title}, {draws} draws | {' | '.join(spread)} | {added.mean():.1f} | "
            f"{share:.0%} |"
        )
    lines.append(f"\nDetections of old classes compared, all equal to the bit: {compared}")
    return "\n".join(lines)


def main() -> None:
    """Trains, adds, evaluates, reports."""
    values = flags.FLAGS
    root = pathlib.Path(values.output_dir)
    setup = Setup(root, tuple(values.classes), values.schedule, values.examples)
    execute(all_steps(setup, values.draws))
    images = sorted((setup.data / "val").glob("*.jpg"))[:100]
    compared = old_detections_equal(setup.without / "cls_box", setup.added(0), images)
    text = report(setup, values.draws, compared)
    write_atomically(setup.draws / "results.md", text + "\n")
    print(f"\n{text}")


if __name__ == "__main__":
    flags.DEFINE_string("output_dir", "runs/add_classes", "Where data, models and results go.")
    flags.DEFINE_list(
        "classes", ["speckled hourglass", "checkered heart"], "The classes to leave out."
    )
    flags.DEFINE_float("schedule", 1.0, "Share of the training steps of configs/shapes.")
    flags.DEFINE_integer("examples", 10, "Boxed examples of each.")
    flags.DEFINE_integer("draws", 5, "How often examples are drawn.")
    cli.run(main)
