"""How fast COCO becomes records, and how large they are, beside Model Garden's tool.

    python -m benchmarks.record_writing --annotations=instances_val2017.json --images=val2017

Repeats the images of a COCO json up to --count (the same files under new ids), then runs
`python -m tf_records.coco` and `python -m official.vision.data.create_coco_tf_record
--include_masks`, each with --workers processes, in turns, and prints images/s and bytes of each
run, medians, spread and the ratios. A run's time is that of the whole command, start included.
Both store image files as they are, so bytes are also told without them.
Output goes to --output_dir, which is emptied after each run.
"""

import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

from absl import flags

from maskx_tf.errors import UserError
from maskx_tf.system import cli

OURS, PEER = "maskx_tf", "Model Garden"
SHARDS = 4


def repeated(coco: dict, count: int) -> dict:
    """`count` images with their annotations: those of `coco` over and over, under new ids."""
    annotations: dict[int, list[dict]] = {}
    for annotation in coco["annotations"]:
        annotations.setdefault(annotation["image_id"], []).append(annotation)
    images, objects = [], []
    for index in range(count):
        image = coco["images"][index % len(coco["images"])]
        images.append(image | {"id": index + 1})
        for annotation in annotations.get(image["id"], []):
            objects.append(annotation | {"id": len(objects) + 1, "image_id": index + 1})
    return {"images": images, "annotations": objects, "categories": coco["categories"]}


def our_command(annotations: pathlib.Path, images: str, output: pathlib.Path, workers: int) -> list:
    """What a user of this project types."""
    return [
        "tf_records.coco", f"--annotations={annotations}", f"--images={images}",
        f"--output_dir={output}", f"--num_shards={SHARDS}", f"--workers={workers}",
    ]  # fmt: skip


def peer_command(
    annotations: pathlib.Path, images: str, output: pathlib.Path, workers: int
) -> list:
    """What a user of Model Garden types for records with masks."""
    return [
        "official.vision.data.create_coco_tf_record", "--include_masks", f"--image_dir={images}",
        f"--object_annotations_file={annotations}", f"--output_file_prefix={output / 'records'}",
        f"--num_shards={SHARDS}", f"--num_processes={workers}",
    ]  # fmt: skip


def measure(command: list[str], output: pathlib.Path) -> tuple[float, int]:
    """Seconds of a run and bytes of its records, which are removed."""
    output.mkdir(parents=True, exist_ok=True)
    log = output.with_name("log.txt")
    start = time.perf_counter()
    with open(log, "w") as file:
        status = subprocess.run(
            [sys.executable, "-m", *command], stdout=file, stderr=subprocess.STDOUT
        ).returncode
    seconds = time.perf_counter() - start
    if status:
        raise UserError(f"{command[0]} failed; see {log}.")
    size = sum(path.stat().st_size for path in output.glob("*.tfrecord"))
    shutil.rmtree(output)
    return seconds, size


def main() -> None:
    """Prints a line for each run, then medians and ratios."""
    values = flags.FLAGS
    root = pathlib.Path(values.output_dir)
    root.mkdir(parents=True, exist_ok=True)
    annotations = root / "instances.json"
    coco = repeated(json.loads(pathlib.Path(values.annotations).read_text()), values.count)
    annotations.write_text(json.dumps(coco))
    files = [pathlib.Path(values.images) / image["file_name"] for image in coco["images"]]
    image_bytes = sum(path.stat().st_size for path in files)
    print(
        f"{values.count} images of {image_bytes / values.count / 1e3:.1f} kB, "
        f"{len(coco['annotations'])} objects, {values.workers} processes"
    )
    commands: dict[str, Callable] = {OURS: our_command, PEER: peer_command}
    rates: dict[str, list[float]] = {name: [] for name in commands}
    sizes = {}
    for run in range(values.runs):
        for name in sorted(commands, reverse=run % 2 == 1):
            command = commands[name](annotations, values.images, root / "records", values.workers)
            seconds, sizes[name] = measure(command, root / "records")
            rates[name].append(values.count / seconds)
            print(
                f"  run {run + 1} {name}: {rates[name][-1]:.1f} images/s, "
                f"{sizes[name] / 1e6:.1f} MB",
                flush=True,
            )
    rest = {name: size - image_bytes for name, size in sizes.items()}
    for name, found in rates.items():
        print(
            f"{name}: median {statistics.median(found):.1f} images/s ({min(found):.1f} to "
            f"{max(found):.1f}), {sizes[name] / values.count / 1e3:.1f} kB per image, "
            f"{rest[name] / values.count / 1e3:.2f} kB of them besides the image file"
        )
    ratios = [ours / peer for ours, peer in zip(rates[OURS], rates[PEER], strict=True)]
    print(
        f"{OURS} / {PEER}: {statistics.median(ratios):.2f} times the images/s ({min(ratios):.2f} "
        f"to {max(ratios):.2f}), {sizes[OURS] / sizes[PEER]:.2f} times the bytes, "
        f"{rest[OURS] / rest[PEER]:.2f} times besides the image file"
    )
    annotations.unlink()


if __name__ == "__main__":
    flags.DEFINE_string("annotations", None, "COCO instances json.", required=True)
    flags.DEFINE_string("images", None, "Directory of its images.", required=True)
    flags.DEFINE_string("output_dir", "runs/record_writing", "Where records are written.")
    flags.DEFINE_integer("count", 2_000, "How many images.", lower_bound=1)
    flags.DEFINE_integer("runs", 3, "Runs of each tool.", lower_bound=1)
    flags.DEFINE_integer("workers", len(os.sched_getaffinity(0)), "Processes.", lower_bound=1)
    cli.run(main)
