"""How much the local server bears, beside the SavedModel it serves.

    python -m benchmarks.serving_load

Exports a network with random weights (--network, by default Shapes' at 96 x 96 pixels; or takes
--model_base_path), starts the local server in a process of its own, and prints Markdown tables:

  overhead   images/s over gRPC and REST beside the bare SavedModel's, same batches, in turns
  load       1, 2, 4, … clients until less than 99.9 % of requests succeed: percentiles,
             throughput, how fast refusals come
  versions   requests lost while a version is swapped, and while a broken one appears
  answers    REST, gRPC and Python compared on --images images
  memory     growth over --requests requests of mixed sizes
  prompts    boxes of an image the server has not seen, then others of the same image

Client and server share the machine's cores.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import io
import itertools
import os
import pathlib
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator

import grpc
import numpy as np
import tensorflow as tf
from absl import flags
from PIL import Image

from benchmarks.serving_clients import Grpc, LocalServer, Rest
from export import saved_model
from export.client.client import Client
from maskx_tf import config
from maskx_tf.assembly import build_model
from maskx_tf.data.classes import Vocabulary
from maskx_tf.errors import UserError
from maskx_tf.system import cli

RETRY_AFTER_S = 1.0  # as the server asks of those it refuses
MIXED_SIDES = (16, 40, 96, 160, 300, 640, 1000)


def export_network(flagfile: str, side: int, root: pathlib.Path) -> None:
    """A SavedModel of the flagfile's network; every RoI scores enough to be a detection."""
    options = config.read_flagfile(flagfile).replace(score_threshold=0.0)
    if side:
        options = options.replace(image_min_side=side, image_max_side=side)
    names = tuple(f"class {number}" for number in range(1, 73))
    vocabulary = Vocabulary(names, tuple(range(1, 73)))
    model = build_model(options, vocabulary.num_classes)
    saved_model.export(model, options, vocabulary, range(1, 37), str(root))


def jpeg(side: int, seed: int = 0) -> bytes:
    """A photo-like JPEG: smooth, `side` pixels wide and three quarters as high."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    image = Image.fromarray(coarse).resize((side, max(1, side * 3 // 4)), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def newest(root: pathlib.Path) -> int:
    return max(int(path.name) for path in root.iterdir() if path.name.isdecimal())


@contextlib.contextmanager
def serving(root: pathlib.Path, *arguments: str) -> Iterator[LocalServer]:
    server = LocalServer(root, *arguments)
    try:
        server.wait_for(newest(root), "AVAILABLE")
        Grpc(server)([jpeg(96)])
        yield server
    finally:
        server.close()


def rate(call: Callable, images: list[bytes], seconds: float) -> float:
    """Images per second of calls one after the other."""
    start, count = time.perf_counter(), 0
    while (passed := time.perf_counter() - start) < seconds:
        call(images)
        count += len(images)
    return count / passed


def overhead(root: pathlib.Path, side: int) -> None:
    signature = tf.saved_model.load(str(root / str(newest(root)))).signatures["serving_default"]

    def bare(images: list[bytes]) -> None:
        found = signature(image_bytes=tf.constant(images))
        for value in found.values():
            value.numpy()

    print("\n| batch | bare images/s | gRPC | REST | gRPC : bare | REST : bare |")
    print("|---|---|---|---|---|---|")
    with serving(root) as server:
        ways = {"bare": bare, "gRPC": Grpc(server), "REST": Rest(server)}
        for batch in (1, 4, 8):
            images = [jpeg(side, seed) for seed in range(batch)]
            for call in ways.values():
                call(images)
            rounds = [
                {name: rate(call, images, flags.FLAGS.seconds / 2) for name, call in ways.items()}
                for _ in range(flags.FLAGS.rounds)
            ]
            middle = {name: statistics.median(r[name] for r in rounds) for name in ways}
            ratio = {n: statistics.median(r[n] / r["bare"] for r in rounds) for n in ways}
            cells = [f"{middle[name]:.1f}" for name in ways]
            cells += [f"{ratio[name]:.2f}" for name in ("gRPC", "REST")]
            print(f"| {batch} | {' | '.join(cells)} |", flush=True)


class Outcome:
    """Durations in seconds of the requests that were answered, and of those that failed."""

    def __init__(self):
        self.good: list[float] = []
        self.bad: list[float] = []
        self.errors: set[str] = set()

    def row(self, seconds: float) -> str:
        share = len(self.good) / max(1, len(self.good) + len(self.bad))
        cells = [f"{1000 * np.percentile(self.good or [np.nan], q):.0f}" for q in (50, 95, 99)]
        refused = "–"
        if self.bad:
            refused = " / ".join(f"{1000 * np.percentile(self.bad, q):.0f}" for q in (50, 99))
        cells += [f"{len(self.good) / seconds:.1f}", f"{100 * share:.2f} %", refused]
        return " | ".join(cells)


@contextlib.contextmanager
def clients(way: type, server: LocalServer, count: int, images: list[bytes]) -> Iterator[Outcome]:
    """`count` clients that ask all the time while the block runs, but for a pause when refused."""
    outcome, stop = Outcome(), threading.Event()

    def client(number: int) -> None:
        call, turn = way(server), itertools.cycle(images[number % len(images) :] + images)
        while not stop.is_set():
            start = time.perf_counter()
            try:
                call([next(turn)])
                outcome.good.append(time.perf_counter() - start)
            except Exception as error:
                outcome.bad.append(time.perf_counter() - start)
                text = error.details() if isinstance(error, grpc.RpcError) else str(error)
                outcome.errors.add(str(text)[:100])
                time.sleep(RETRY_AFTER_S)

    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        running = [pool.submit(client, number) for number in range(count)]
        try:
            yield outcome
        finally:
            stop.set()
    for future in running:
        future.result()


def load(root: pathlib.Path, side: int) -> None:
    images = [jpeg(side, seed) for seed in range(16)]
    for way in (Grpc, Rest):
        print(f"\n{way.__name__.upper() if way is Rest else 'gRPC'}, images of {side} pixels\n")
        print("| clients | p50 ms | p95 | p99 | images/s | success | refused p50 / p99 ms |")
        print("|---|---|---|---|---|---|---|")
        with serving(root) as server:
            count, share = 1, 1.0
            while share >= 0.999 and count <= 256:
                start = time.perf_counter()
                with clients(way, server, count, images) as outcome:
                    time.sleep(flags.FLAGS.seconds)
                print(f"| {count} | {outcome.row(time.perf_counter() - start)} |", flush=True)
                share = len(outcome.good) / (len(outcome.good) + len(outcome.bad))
                count *= 2
        print(f"\nRefusals: {sorted(outcome.errors) or 'none'}")


def versions(root: pathlib.Path, side: int) -> None:
    images = [jpeg(side, seed) for seed in range(16)]
    with tempfile.TemporaryDirectory() as directory:
        copy = pathlib.Path(directory)
        shutil.copytree(root / str(newest(root)), copy / "1")
        with serving(copy) as server, clients(Grpc, server, 8, images) as outcome:
            time.sleep(flags.FLAGS.seconds)
            before = len(outcome.good)
            shutil.copytree(root / str(newest(root)), copy / ".2")
            (copy / ".2").rename(copy / "2")
            server.wait_for(1, "END")
            swapped = len(outcome.good)
            (copy / ".3").mkdir()
            (copy / ".3" / "saved_model.pb").write_bytes(b"broken")
            (copy / ".3").rename(copy / "3")
            server.wait_for(3, "END")
            time.sleep(flags.FLAGS.seconds)
            states = server.versions()
        during = outcome.good[before:swapped]
        print("\n8 clients over gRPC; version 2 appears, then a broken version 3:", states)
        print(
            f"{len(outcome.good)} answered, {len(outcome.bad)} lost {sorted(outcome.errors)}; "
            f"during the swap {len(during)}, the slowest in {1000 * max(during):.0f} ms"
        )


def difference(found: np.ndarray, wanted: np.ndarray) -> float:
    """The largest; 1 for any between strings."""
    if wanted.dtype == object:
        return float(found.astype("S").tolist() != wanted.astype("S").tolist())
    return float(np.abs(found.astype(float) - wanted.astype(float)).max())


def answers(root: pathlib.Path, side: int) -> None:
    signature = tf.saved_model.load(str(root / str(newest(root)))).signatures["serving_default"]
    worst: dict[str, float] = {}
    with serving(root) as server:
        ways = Grpc(server), Rest(server)
        for seed in range(flags.FLAGS.images):
            image = jpeg(side + 7 * (seed % 10), seed)
            wanted = signature(image_bytes=tf.constant([image]))
            for found in [way([image]) for way in ways]:
                for key, value in wanted.items():
                    gap = difference(np.asarray(found[key]), value.numpy())
                    worst[key] = max(worst.get(key, 0.0), gap)
    print(
        f"\nLargest difference of REST and gRPC from Python, {flags.FLAGS.images} images: {worst}"
    )


def memory(root: pathlib.Path, side: int) -> None:
    images = [jpeg(width, seed) for seed, width in enumerate((*MIXED_SIDES, side))]
    total = flags.FLAGS.requests
    with serving(root) as server, concurrent.futures.ThreadPoolExecutor(4) as pool:
        local = threading.local()

        def ask(number: int) -> None:
            if not hasattr(local, "ways"):
                local.ways = Grpc(server), Rest(server)
            local.ways[number % 2]([images[number % len(images)]])

        print(f"\n{total} requests of sides {MIXED_SIDES} in turn, REST and gRPC\n")
        print("| requests | resident MB | growth since the first tenth |")
        print("|---|---|---|")
        base = 0.0
        for tenth in range(10):
            list(pool.map(ask, range(tenth * total // 10, (tenth + 1) * total // 10)))
            resident = server.resident_bytes() / 1e6
            base = base or resident
            print(f"| {(tenth + 1) * total // 10} | {resident:.0f} | {resident - base:+.0f} |")


def prompts(root: pathlib.Path, side: int) -> None:
    images = [jpeg(side, seed) for seed in range(flags.FLAGS.rounds + 1)]
    whole = np.array([0.1, 0.1, 0.9, 0.9]) * [side * 3 // 4, side, side * 3 // 4, side]
    print("\n| boxes | first request ms | second | second : first |")
    print("|---|---|---|---|")
    for count in (1, 10):
        boxes = np.tile(whole, [count, 1])
        with (
            contextlib.closing(LocalServer(root)) as server,
            Client(grpc=f"127.0.0.1:{server.port}", timeout_s=600.0) as client,
        ):
            server.wait_for(newest(root), "AVAILABLE")
            times = np.array(
                [[_seconds(client, image, boxes / n) for n in (1, 2)] for image in images]
            )
            first, second = np.median(times[1:], axis=0)  # graphs are optimised in the first
            print(f"| {count} | {1e3 * first:.0f} | {1e3 * second:.0f} | {second / first:.2f} |")


def _seconds(client: Client, image: bytes, boxes: np.ndarray) -> float:
    start = time.perf_counter()
    client.masks(image, boxes, "class 1")
    return time.perf_counter() - start


PARTS = {
    "overhead": overhead,
    "load": load,
    "versions": versions,
    "answers": answers,
    "memory": memory,
    "prompts": prompts,
}


def main() -> None:
    values = flags.FLAGS
    if unknown := set(values.parts) - set(PARTS):
        raise UserError(f"--parts: {sorted(unknown)} are none of {', '.join(PARTS)}.")
    with tempfile.TemporaryDirectory() as directory:
        root = pathlib.Path(values.model_base_path or directory)
        if not values.model_base_path:
            export_network(values.network, values.network_side, root)
        print(f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f} at the start")
        for part in values.parts:
            PARTS[part](root, values.side)


if __name__ == "__main__":
    flags.DEFINE_string("model_base_path", "", "Exported versions; empty: exports --network.")
    flags.DEFINE_string("network", "configs/shapes/cls_box.flags", "Flagfile of a network.")
    flags.DEFINE_integer("network_side", 0, "Input side in pixels; 0: the flagfile's.", 0)
    flags.DEFINE_list("parts", list(PARTS), "What to measure.")
    flags.DEFINE_integer("side", 96, "Width of the images sent, in pixels.", 1)
    flags.DEFINE_integer("images", 50, "Images to compare answers on.", 1)
    flags.DEFINE_integer("requests", 10_000, "Requests of the memory part.", 10)
    flags.DEFINE_integer("rounds", 5, "Turns of the overhead part.", 1)
    flags.DEFINE_float("seconds", 10.0, "Of each load level, and of each overhead round.", 0.1)
    cli.run(main)
