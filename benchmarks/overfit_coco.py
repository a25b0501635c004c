"""Overfits R-50-FPN from scratch to a few COCO images: does the full-size model learn real input?

    python -m benchmarks.overfit_coco --annotations=instances_val2017.json --images=val2017

Chooses images by id order among those with 2 to 12 objects and no crowd, writes them as records,
trains Mask^X R-CNN (R-50-FPN, batch normalisation, no pretrained weights) on all their boxes and
masks at a small size, and evaluates it on the same images. The whole run is kept in --output_dir,
which other images (--count) need one of their own for.
"""

import collections
import json
import pathlib
import subprocess
import sys

from absl import flags

from maskx_tf.errors import UserError
from maskx_tf.system import cli
from maskx_tf.system.files import write_atomically

FLAGFILE = "configs/coco/overfit.flags"


def choose(coco: dict, count: int) -> dict:
    """The first `count` images with 2 to 12 objects and no crowd, as a COCO json of their own."""
    annotations = collections.defaultdict(list)
    for annotation in coco["annotations"]:
        annotations[annotation["image_id"]].append(annotation)
    images = [
        image
        for image in sorted(coco["images"], key=lambda image: image["id"])
        if 2 <= len(annotations[image["id"]]) <= 12
        and not any(annotation["iscrowd"] for annotation in annotations[image["id"]])
    ][:count]
    if len(images) < count:
        raise UserError(f"only {len(images)} images have 2 to 12 objects; lower --count={count}.")
    kept = [annotation for image in images for annotation in annotations[image["id"]]]
    return {"images": images, "annotations": kept, "categories": coco["categories"]}


def keep(path: pathlib.Path, text: str) -> None:
    """Writes a file that what is kept beside it is made of; UserError where it has other text."""
    if path.exists() and path.read_text() != text:
        raise UserError(
            f"--output_dir={path.parent} holds a run on other images; name another directory."
        )
    write_atomically(path, text)


def run(module: str, *arguments: str) -> None:
    """Runs `python -m module arguments…`, showing the command."""
    print(f"python -m {module} {' '.join(arguments)}", flush=True)
    if subprocess.run([sys.executable, "-m", module, *arguments]).returncode:
        raise UserError(f"{module} failed; its message is above.")


def main() -> None:
    """Writes the records, trains, evaluates, predicts."""
    values = flags.FLAGS
    output = pathlib.Path(values.output_dir)
    chosen = choose(json.loads(pathlib.Path(values.annotations).read_text()), values.count)
    keep(output / "instances.json", json.dumps(chosen))
    records, model_dir = output / "records", output / "model"
    run(
        "tf_records.coco",
        f"--annotations={output / 'instances.json'}",
        f"--images={values.images}",
        f"--output_dir={records}",
        "--num_shards=1",
        "--overwrite",
    )
    run(
        "maskx_tf.train",
        f"--flagfile={FLAGFILE}",
        f"--train_records={records}",
        f"--eval_records={records}",
        f"--model_dir={model_dir}",
    )
    run("maskx_tf.evaluate", f"--model_dir={model_dir}")
    names = ",".join(str(pathlib.Path(values.images) / i["file_name"]) for i in chosen["images"])
    run(
        "maskx_tf.predict",
        f"--model_dir={model_dir}",
        f"--images={names}",
        f"--output_dir={output / 'pictures'}",
    )


if __name__ == "__main__":
    flags.DEFINE_string("annotations", None, "COCO instances json.", required=True)
    flags.DEFINE_string("images", None, "Directory of its images.", required=True)
    flags.DEFINE_string("output_dir", "runs/overfit_coco", "Where everything is kept.")
    flags.DEFINE_integer("count", 8, "How many images.")
    cli.run(main)
