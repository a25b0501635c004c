"""Visual Genome at full size from made-up data: time and memory of the whole conversion.

    python -m benchmarks.visual_genome_scale --directory=/tmp/vg_scale

Makes 108,000 tiny images and 3.8 million boxes in the format of objects.json 1.4 (synsets with
Zipf's frequencies, now and then one of the known defects), converts them in a process of its own
and prints its time and the peak of its memory, all worker processes included. Takes about 2 GB of
disk; --directory is removed at the end unless --keep.
"""

import json
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import time

import cv2
import numpy as np
from absl import flags

from maskx_tf.data.classes import named_classes
from maskx_tf.errors import UserError
from maskx_tf.system import cli
from tf_records.visual_genome.classes import COCO_SYNSETS

HEIGHT, WIDTH = 48, 64
COCO_VAL = 5_000
_FILES = 8  # different images; a file can have 65,000 names
_LIMIT_GIB = 4.0


def synset_names(count: int) -> list[str]:
    """COCO's synsets spread among made-up ones, most frequent first."""
    named = {name: f"{name.replace(' ', '_')}.n.01" for name in named_classes("coco")}
    coco = list((named | COCO_SYNSETS).values())
    made_up = [f"thing_{index}.n.0{1 + index % 3}" for index in range(count - len(coco))]
    step = max(len(made_up) // (8 * len(coco)), 1)  # all within the first eighth
    names = []
    for index, name in enumerate(made_up):
        if index % step == 0 and coco:
            names.append(coco.pop(0))
        names.append(name)
    return names + coco


def make(directory: pathlib.Path, num_images: int, num_objects: int, synsets: int, seed: int = 0):
    """Writes image files, image_data.json, objects.json and a COCO json; the paths by flag."""
    random = np.random.default_rng(seed)
    coco_ids = random.permutation(4 * num_images)[:num_images]
    has_coco = random.random(num_images) < 0.48
    images = []
    for index in range(num_images):
        folder = "VG_100K" if index % 2 else "VG_100K_2"
        images.append(
            {
                "image_id": index + 1,
                "url": f"https://cs.stanford.edu/people/rak248/{folder}/{index + 1}.jpg",
                "width": WIDTH,
                "height": HEIGHT,
                "coco_id": int(coco_ids[index]) if has_coco[index] else None,
                "flickr_id": 4_000_000_000 + index,
            }
        )
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "image_data.json").write_text(json.dumps(images))
    _write_coco(directory / "coco.json", images, random)
    _write_images(directory / "images", images, random)
    _write_objects(directory / "objects.json", num_images, num_objects, synsets, random)
    return {
        "objects": directory / "objects.json",
        "image_data": directory / "image_data.json",
        "images": directory / "images",
        "coco_annotations": directory / "coco.json",
    }


def _write_coco(path: pathlib.Path, images: list[dict], random: np.random.Generator) -> None:
    in_coco = [image for image in images if image["coco_id"] is not None]
    chosen = random.choice(len(in_coco), min(COCO_VAL, len(in_coco)) // 2, replace=False)
    entries = []
    for image in (in_coco[index] for index in sorted(chosen)):
        url = f"http://farm5.staticflickr.com/4033/{image['flickr_id']}_0a1b2c3d4e_z.jpg"
        entries.append({"id": image["coco_id"], "flickr_url": url})
    path.write_text(json.dumps({"images": entries}))


def _write_images(directory: pathlib.Path, images: list[dict], random: np.random.Generator) -> None:
    for folder in ("VG_100K", "VG_100K_2", "originals"):
        (directory / folder).mkdir(parents=True, exist_ok=True)
    originals = []
    for index in range(_FILES):
        shape = [HEIGHT, WIDTH] if index == 0 else [HEIGHT, WIDTH, 3]  # the first is grey
        originals.append(directory / "originals" / f"{index}.png.jpg")
        cv2.imwrite(str(originals[-1]), random.integers(0, 255, shape, dtype=np.uint8))
    for index, image in enumerate(images):
        name = directory.joinpath(*image["url"].split("/")[-2:])
        if not name.exists():
            os.link(originals[index % _FILES], name)


def _write_objects(
    path: pathlib.Path,
    num_images: int,
    num_objects: int,
    synsets: int,
    random: np.random.Generator,
) -> None:
    names = np.array(synset_names(synsets))
    share = 1 / np.arange(1, len(names) + 1)
    bounds = np.linspace(0, num_objects, num_images + 1).astype(int)
    with open(path, "w", encoding="utf-8") as file:
        for index in range(num_images):
            count = bounds[index + 1] - bounds[index]
            chosen = names[random.choice(len(names), count, p=share / share.sum())]
            x, y = random.integers(0, WIDTH, count), random.integers(0, HEIGHT, count)
            w, h = random.integers(1, WIDTH - x + 1), random.integers(1, HEIGHT - y + 1)
            x = x + (random.random(count) < 0.05) * random.integers(-WIDTH, WIDTH, count)
            w = w * (random.random(count) < 0.999)
            number = random.choice(3, count, p=[0.03, 0.95, 0.02])  # of synsets
            objects = [
                {
                    "synsets": [str(chosen[i]), "thing_0.n.01"][: number[i]],
                    "h": int(h[i]),
                    "object_id": int(bounds[index]) + i + 1,
                    "merged_object_ids": [],
                    "names": [str(chosen[i]).split(".")[0]],
                    "w": int(w[i]),
                    "y": int(y[i]),
                    "x": int(x[i]),
                }
                for i in range(count)
            ]  # fmt: skip
            entry = {"image_id": index + 1, "objects": objects, "image_url": "https://x/1.jpg"}
            file.write(("," if index else "[") + json.dumps(entry))
        file.write("]")


def memory_of(process_id: int) -> int:
    """Bytes that a process and its descendants hold; shared pages are counted once."""
    parents = {}
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rsplit(")", 1)[1].split()[1])
        except OSError:  # it has ended
            continue
    family, new = {process_id}, {process_id}
    while new:
        new = {child for child, parent in parents.items() if parent in new} - family
        family |= new
    total = 0
    for member in family:
        try:
            text = pathlib.Path(f"/proc/{member}/smaps_rollup").read_text()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in text.splitlines() if line[:4] == "Pss:")
    return total * 1024


def run(paths: dict, output: pathlib.Path, workers: int) -> tuple[float, float, str]:
    """(seconds, GiB at the peak, what was printed) of the conversion."""
    command = [sys.executable, "-m", "tf_records.visual_genome", f"--output_dir={output}"]
    command += [f"--{flag}={path}" for flag, path in paths.items()]
    start, peak = time.perf_counter(), 0
    with open(output.with_suffix(".log"), "w+", encoding="utf-8") as log:
        with subprocess.Popen([*command, f"--workers={workers}"], stdout=log) as process:
            while process.poll() is None:
                peak = max(peak, memory_of(process.pid))
                time.sleep(0.5)
        log.seek(0)
        printed = log.read()
    if process.returncode:
        raise UserError("the conversion failed; its message is above.")
    return time.perf_counter() - start, peak / 2**30, printed


def main() -> None:
    values = flags.FLAGS
    directory = pathlib.Path(values.directory)
    if directory.exists():
        raise UserError(f"--directory={directory} is there already; name another.")
    start = time.perf_counter()
    try:
        paths = make(directory, values.num_images, values.num_objects, values.num_synsets)
        megabytes = paths["objects"].stat().st_size / 1e6
        made = time.perf_counter() - start
        print(f"Made {values.num_images} images, {values.num_objects} objects in {made:.0f} s:")
        print(f"objects.json has {megabytes:.0f} MB.", flush=True)
        seconds, gib, printed = run(paths, directory / "records", values.workers)
        manifests = sum(path.stat().st_size for path in directory.glob("records/*/manifest.json"))
    finally:
        if not values.keep:
            shutil.rmtree(directory, ignore_errors=True)
    print(printed)
    print(f"time         {seconds:.0f} s, {values.num_images / seconds:.0f} images/s")
    print(f"peak memory  {gib:.2f} GiB of all processes (limit {_LIMIT_GIB:.0f} GiB)")
    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20  # from kB
    print(f"             {largest:.2f} GiB of the largest one, shared libraries included")
    print(f"manifests    {manifests / 1e6:.1f} MB")
    if gib > _LIMIT_GIB:
        raise UserError(f"the conversion took {gib:.2f} GiB.")


def _define_flags() -> None:
    flags.DEFINE_string("directory", None, "Made, and removed at the end.", required=True)
    flags.DEFINE_integer("num_images", 108_000, "Images.")
    flags.DEFINE_integer("num_objects", 3_800_000, "Boxes.")
    flags.DEFINE_integer("num_synsets", 8_000, "Different synsets.")
    flags.DEFINE_integer("workers", 0, "Processes; 0: one per core.")
    flags.DEFINE_bool("keep", False, "Keep the directory.")


if __name__ == "__main__":
    _define_flags()
    cli.run(main)
