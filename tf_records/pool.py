"""A process pool that maps a function over many items: in order, a bounded number in flight."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import itertools
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from maskx_tf.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")

_IN_FLIGHT_PER_WORKER = 8
_function: list[Callable[[Any], Any]] = []  # of a worker process, once it is set


def num_workers(wanted: int, num_items: int) -> int:
    """Processes to use: `wanted`, or one per core if 0, and none for a handful of items."""
    if wanted < 0:
        raise UserError(f"--workers={wanted} must not be negative; 0 means one per core.")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(wanted or (cores or 1 if num_items >= 32 else 1), max(num_items, 1))


@contextlib.contextmanager
def mapper(
    function: Callable[[Item], Result], workers: int, *, decodes: bool = False
) -> Iterator[Callable]:
    """Gives `map(items) -> iterator of results in order`; in this process for one worker.

    Args:
      function: picklable, sent to each process once; must depend on nothing but its item.
      workers: number of processes.
      decodes: the function decodes images: TensorFlow is imported once for all processes.
    """
    if workers == 1:
        yield lambda items: map(function, items)
        return
    # Not forked from this process: TensorFlow's threads would not survive that.
    context = multiprocessing.get_context("spawn" if os.name == "nt" else "forkserver")
    context.set_forkserver_preload(["maskx_tf.data.decoding"] if decodes else [])
    executor = concurrent.futures.ProcessPoolExecutor(
        workers, mp_context=context, initializer=_set_function, initargs=(function,)
    )
    try:
        yield lambda items: _map(executor, items, workers * _IN_FLIGHT_PER_WORKER)
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _map(
    executor: concurrent.futures.Executor, items: Iterable[Any], in_flight: int
) -> Iterator[Any]:
    items = iter(items)
    futures = collections.deque(
        executor.submit(_call, item) for item in itertools.islice(items, in_flight)
    )
    try:
        while futures:
            result = futures.popleft().result()
            futures.extend(executor.submit(_call, item) for item in itertools.islice(items, 1))
            yield result
    except BrokenProcessPool:
        raise UserError(
            "A worker process died, usually because memory ran out; try fewer with --workers=N."
        ) from None


def _set_function(function: Callable[[Any], Any]) -> None:
    _function[:] = [function]
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this worker when its parent was killed; it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _call(item: Any) -> Any:
    return _function[0](item)
