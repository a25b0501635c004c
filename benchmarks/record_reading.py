"""How fast training batches come out of records, beside Model Garden's Mask R-CNN input.

    python -m benchmarks.record_reading --annotations=instances_train2017.json --images=train2017

Writes the images of a COCO json as our records and, with `create_coco_tf_record --include_masks`,
as Model Garden's; names their files again and again up to --count images; and takes shuffled and
flipped training batches with masks from both, in turns, at two output sizes. Prints images/s of
each turn, medians, spread and the ratio. Batches that are ready when a turn begins do not count.

Model Garden's input also normalises the image and labels anchors, which here is part of the
training step. Its canvas is the same for all images and has sides that divide by 64; ours is
landscape or portrait, its sides divide by 32.
"""

import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import tensorflow as tf
from absl import flags

from maskx_tf.config import Config
from maskx_tf.data import pipeline
from maskx_tf.data.records import manifest
from maskx_tf.errors import UserError
from maskx_tf.system import cli
from tf_records import coco
from tf_records.output import Output

OURS, PEER = "maskx_tf", "Model Garden"
SIZES = ((800, 1333), (512, 512))  # (short, long) side
SHARDS = 4
WARM_UP_BATCHES = 12
SHUFFLE_BUFFER = 256  # of the peer, which holds whole records


def write_records(annotations: str, images: str, directory: pathlib.Path) -> None:
    """Both kinds of records, in directory/ours and directory/peer."""
    coco.convert(annotations, images, Output(str(directory / "ours"), "coco", SHARDS))
    (directory / "peer").mkdir()
    command = [
        sys.executable, "-m", "official.vision.data.create_coco_tf_record", "--include_masks",
        f"--image_dir={images}", f"--object_annotations_file={annotations}",
        f"--output_file_prefix={directory / 'peer' / 'coco'}", f"--num_shards={SHARDS}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"create_coco_tf_record failed: {done.stderr[-500:]}")


def our_batches(
    directory: pathlib.Path, repeats: int, size: tuple[int, int], batch: int
) -> Iterator:
    config = Config(image_min_side=size[0], image_max_side=size[1], batch_size=batch)
    vocabulary = manifest.Manifest.load(directory / "ours").vocabulary
    mask_classes = range(1, vocabulary.num_classes + 1)
    records = [str(directory / "ours")] * repeats
    return iter(
        pipeline.make_dataset(records, config, vocabulary, mask_classes, training=True, seed=0)
    )


def peer_batches(
    directory: pathlib.Path, repeats: int, size: tuple[int, int], batch: int
) -> Iterator:
    from official.vision.configs import maskrcnn
    from official.vision.tasks.maskrcnn import MaskRCNNTask

    sides = [-(-side // 64) * 64 for side in size]  # what its pyramid needs
    model = maskrcnn.MaskRCNN(include_mask=True, input_size=[*sides, 3])
    files = sorted(map(str, (directory / "peer").glob("*.tfrecord"))) * repeats
    data = maskrcnn.DataConfig(
        input_path=files,
        is_training=True,
        global_batch_size=batch,
        dtype="float32",
        parser=maskrcnn.Parser(aug_rand_hflip=True),
        shuffle_buffer_size=SHUFFLE_BUFFER,
    )
    task = MaskRCNNTask(maskrcnn.MaskRCNNTask(model=model))
    return iter(task.build_inputs(data))


def images_per_second(batches: Iterator, batch: int, seconds: float) -> float:
    for _ in range(WARM_UP_BATCHES):
        next(batches)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        next(batches)
        count += batch
    return count / (time.perf_counter() - start)


def compare(directory: pathlib.Path, repeats: int, size: tuple[int, int]) -> None:
    values = flags.FLAGS
    batch = values.batch
    readers = {
        OURS: our_batches(directory, repeats, size, batch),
        PEER: peer_batches(directory, repeats, size, batch),
    }
    speeds: dict[str, list[float]] = {name: [] for name in readers}
    for _ in range(values.rounds):
        for name, batches in readers.items():
            speeds[name].append(images_per_second(batches, batch, values.seconds))
    print(f"\nOutput {size[0]} x {size[1]}, images/s ({values.rounds} turns of {values.seconds} s)")
    for name, found in speeds.items():
        turns = " ".join(f"{speed:6.1f}" for speed in found)
        median, spread = statistics.median(found), max(found) - min(found)
        print(f"  {name:<13} {turns}   median {median:6.1f}, spread {spread / median:4.0%}")
    ratios = [ours / peer for ours, peer in zip(speeds[OURS], speeds[PEER], strict=True)]
    ratio = statistics.median(speeds[OURS]) / statistics.median(speeds[PEER])
    span = f"{min(ratios):.2f} to {max(ratios):.2f}"
    print(f"  ratio of medians {ratio:.2f}, turn by turn {span}", flush=True)


def main() -> None:
    values = flags.FLAGS
    if not values.annotations or not values.images:
        raise UserError("--annotations and --images are needed: a COCO json and its images.")
    count = len(json.loads(pathlib.Path(values.annotations).read_text())["images"])
    repeats = -(-values.count // count)
    directory = pathlib.Path(tempfile.mkdtemp(prefix="record_reading_"))
    try:
        write_records(values.annotations, values.images, directory)
        cores = len(os.sched_getaffinity(0))
        print(f"{repeats * count} images, batches of {values.batch}, {cores} cores, ", end="")
        print(f"TensorFlow {tf.__version__}")
        for size in SIZES:
            compare(directory, repeats, size)
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    flags.DEFINE_string("annotations", "", "COCO instances json.")
    flags.DEFINE_string("images", "", "Directory of its images.")
    flags.DEFINE_integer("count", 2_000, "Images in the file list, at least.")
    flags.DEFINE_integer("batch", 2, "Images in a batch.")
    flags.DEFINE_integer("rounds", 5, "Turns of each pipeline.")
    flags.DEFINE_float("seconds", 6.0, "Length of a turn.")
    cli.run(main)
