"""Who may run: a few workers, a queue of limited length, deadlines."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from export.serving.errors import Code, ServingError
from export.serving.metrics import Metrics

Result = TypeVar("Result")


class Admission:
    """Lets at most `workers` requests run and `max_queue` more wait; refuses others at once.

    Used from one event loop. A predict request, over REST or gRPC, holds its place from before its
    body is read until its answer is made, so that memory is bounded too.
    """

    def __init__(self, workers: int, max_queue: int, metrics: Metrics):
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="serving")
        self._capacity = workers + max_queue
        self._metrics = metrics
        self._taken = 0
        self._closing = False

    @property
    def idle(self) -> bool:
        """Whether no request is being served."""
        return self._taken == 0

    @contextlib.asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """A place among the running and waiting requests.

        Raises:
          ServingError: UNAVAILABLE, where all are taken or the server is stopping.
        """
        if self._closing:
            raise ServingError(Code.UNAVAILABLE, "The server is shutting down")
        if self._taken >= self._capacity:
            raise ServingError(
                Code.UNAVAILABLE,
                f"The queue is full: {self._capacity} requests are running or waiting",
            )
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1

    async def run(self, job: Callable[[], Result], deadline: float) -> Result:
        """Runs `job` in a worker; to be called within `place`.

        A job that has not started when the client leaves or the deadline (`time.monotonic()`)
        passes is dropped. One that has started keeps its place until it ends.

        Raises:
          ServingError: DEADLINE_EXCEEDED, or what `job` raises.
        """
        loop = asyncio.get_running_loop()
        self._metrics.queue_length.inc()
        future = self._pool.submit(self._started(job))
        try:
            async with asyncio.timeout(max(0.0, min(deadline - time.monotonic(), 1e6))):
                return await asyncio.wrap_future(future)
        except TimeoutError:
            raise ServingError(Code.DEADLINE_EXCEEDED, "the deadline passed") from None
        finally:
            if future.cancel():
                self._metrics.queue_length.dec()
            elif not future.done():
                self._taken += 1
                future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._give_back))

    def _started(self, job: Callable[[], Result]) -> Callable[[], Result]:
        def run() -> Result:
            self._metrics.queue_length.dec()
            return job()

        return run

    def _give_back(self) -> None:
        self._taken -= 1

    def refuse(self) -> None:
        """From now on, everything new is refused."""
        self._closing = True

    def close(self) -> None:
        """Waits for running jobs and ends the workers."""
        self._pool.shutdown(wait=True, cancel_futures=True)
