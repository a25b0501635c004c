"""Writes shards on Apache Beam: a shard is one element, written whole by the worker that makes it.

No image goes through Beam. The items of a shard wait in a file of the output directory, its worker
leaves shard and sidecar there: all workers need that directory, and the images, at the same path.
A shard that a runner tries twice, or at once on two machines, becomes the same file.
"""

from __future__ import annotations

import contextlib
import pathlib
import pickle
import shlex
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tqdm

from maskx_tf.errors import UserError
from maskx_tf.system.files import write_atomically
from tf_records.output import Output, arguments_of
from tf_records.plan import Plan
from tf_records.shards import TEMPORARY, Part, load_part, write_shard

_JOB = f".job{TEMPORARY}"  # beside the shard: a pickle of function, items and fingerprint
_ERROR = f".error{TEMPORARY}"  # beside the shard: the message of a UserError
_POLL_S = 2.0


def write_shards(
    function: Callable[[Any], Any],
    items: Sequence[Any],
    plan: Plan,
    missing: Sequence[int],
    output: Output,
    bar: tqdm.tqdm,
) -> dict[int, Part]:
    """Writes the shards `missing` of the plan; what they hold.

    Args:
      function: picklable, item -> Encoded.
      items: of all shards.
      plan: which items go into which shard.
      missing: the shards to write.
      output: names Beam's options.
      bar: told how many items are done.

    Raises:
      UserError: Beam is absent, its options are wrong, its run failed, or `function` raised one.
    """
    arguments = arguments_of(output.beam_options, output.workers)
    paths = {index: plan.path(index) for index in missing}
    for index in missing:
        save_job(function, items, plan, index)
    with _watched(plan, missing, bar):
        _run([str(path) for path in paths.values()], arguments)
    for path in paths.values():
        with contextlib.suppress(FileNotFoundError):
            raise UserError(path.with_suffix(_ERROR).read_text(encoding="utf-8"))
    parts = {
        index: load_part(path, plan.fingerprint, check_hash=False) for index, path in paths.items()
    }
    if absent := [paths[index].name for index, part in parts.items() if part is None]:
        raise UserError(
            f"Beam ended, but {len(absent)} shards are not in {plan.directory}, the first is "
            f"{absent[0]}: do all workers see that directory at this path? Repeat the command to "
            "resume."
        )
    return {index: part for index, part in parts.items() if part is not None}


def save_job(function: Callable[[Any], Any], items: Sequence[Any], plan: Plan, index: int) -> None:
    """Leaves what shard `index` is made of beside its place."""
    job = (function, list(plan.items(items, [index])), plan.fingerprint)
    write_atomically(plan.path(index).with_suffix(_JOB), pickle.dumps(job))


def write_one(path_text: str) -> None:
    """Writes the shard of this path, as the file beside it says; runs in a worker of Beam."""
    path = pathlib.Path(path_text)
    function, items, fingerprint = pickle.loads(path.with_suffix(_JOB).read_bytes())
    if load_part(path, fingerprint) is not None:
        return  # done by an attempt whose success the runner did not learn
    try:
        write_shard(path, map(function, items), fingerprint)
    except UserError as error:  # trying again would not help
        write_atomically(path.with_suffix(_ERROR), str(error))


def _run(paths: list[str], arguments: list[str]) -> None:
    import apache_beam
    from apache_beam.options.pipeline_options import PipelineOptions

    try:
        with apache_beam.Pipeline(options=PipelineOptions(arguments)) as pipeline:
            elements = pipeline | apache_beam.Create(paths, reshuffle=True)
            _ = elements | apache_beam.Map(write_one)
    except SystemExit:  # of argparse, which has told why
        raise UserError(f"--beam_options: Beam refuses {shlex.join(arguments)}.") from None
    except Exception as error:  # of any type, as runners have it
        message = " ".join(str(error).split())
        raise UserError(
            f"Beam's run failed: {type(error).__name__}: {message[-400:]} Finished shards are "
            "kept; repeat the command to resume."
        ) from error


@contextlib.contextmanager
def _watched(plan: Plan, missing: Sequence[int], bar: tqdm.tqdm) -> Iterator[None]:
    """Moves the progress bar as shards appear, whoever writes them."""
    ended = threading.Event()
    waiting = set(missing)

    def look() -> None:
        for index in sorted(waiting):
            if plan.path(index).exists():
                waiting.discard(index)
                bar.update(plan.size(index))

    def watch() -> None:
        while not ended.wait(_POLL_S):
            look()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        look()
