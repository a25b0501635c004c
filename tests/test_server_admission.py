"""Places, the queue, deadlines and clients that leave."""

import asyncio
import math
import threading
import time

import pytest

from export.serving.admission import Admission
from export.serving.errors import Code, ServingError
from export.serving.metrics import Metrics


class Gate:
    """A job that runs until it is let go, and counts its runs."""

    def __init__(self):
        self.open = threading.Event()
        self.runs = 0

    def __call__(self):
        self.runs += 1
        assert self.open.wait(30)
        return "done"


@pytest.fixture
def metrics():
    return Metrics()


def queue_length(metrics):
    return metrics.registry.get_sample_value("serving_queue_length")


async def request(admission, job, deadline=math.inf):
    async with admission.place():
        return await admission.run(job, deadline)


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


def test_a_full_queue_refuses_at_once_and_recovers(metrics):
    async def scenario():
        admission, gate = Admission(2, 3, metrics), Gate()
        tasks = [asyncio.create_task(request(admission, gate)) for _ in range(5)]
        await until(lambda: gate.runs == 2 and queue_length(metrics) == 3)
        start = time.monotonic()
        with pytest.raises(ServingError, match="queue is full: 5 requests") as caught:
            await request(admission, gate)
        assert caught.value.code is Code.UNAVAILABLE
        assert time.monotonic() - start < 0.05
        gate.open.set()
        assert await asyncio.gather(*tasks) == ["done"] * 5
        assert gate.runs == 5 and queue_length(metrics) == 0
        assert await request(admission, gate) == "done"
        assert admission.idle
        admission.close()

    asyncio.run(scenario())


def test_a_client_that_leaves_gives_its_place_back_unrun(metrics):
    async def scenario():
        admission, gate = Admission(1, 1, metrics), Gate()
        first = asyncio.create_task(request(admission, gate))
        await until(lambda: gate.runs == 1)
        second = asyncio.create_task(request(admission, gate))
        await until(lambda: queue_length(metrics) == 1)
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        assert queue_length(metrics) == 0
        third = asyncio.create_task(request(admission, gate))
        gate.open.set()
        assert await first == await third == "done"
        assert gate.runs == 2
        admission.close()

    asyncio.run(scenario())


def test_a_running_job_keeps_its_place_when_its_deadline_passes(metrics):
    async def scenario():
        admission, gate = Admission(1, 0, metrics), Gate()
        with pytest.raises(ServingError) as caught:
            await request(admission, gate, time.monotonic() + 0.05)
        assert caught.value.code is Code.DEADLINE_EXCEEDED
        with pytest.raises(ServingError, match="queue is full"):
            await request(admission, gate)
        gate.open.set()
        await until(lambda: admission.idle)
        assert await request(admission, gate) == "done"
        admission.close()

    asyncio.run(scenario())


def test_what_fails_in_a_job_reaches_its_client_only(metrics):
    async def scenario():
        admission = Admission(2, 8, metrics)

        def job(number):
            if number == 3:
                raise ServingError(Code.INVALID_ARGUMENT, "junk")
            return number

        calls = [request(admission, lambda n=n: job(n)) for n in range(8)]
        found = await asyncio.gather(*calls, return_exceptions=True)
        assert [value for value in found if isinstance(value, int)] == [0, 1, 2, 4, 5, 6, 7]
        assert str(found[3]) == "junk"
        admission.close()

    asyncio.run(scenario())


def test_nothing_new_after_refuse(metrics):
    async def scenario():
        admission, gate = Admission(1, 1, metrics), Gate()
        task = asyncio.create_task(request(admission, gate))
        await until(lambda: gate.runs == 1)
        admission.refuse()
        with pytest.raises(ServingError, match="shutting down") as caught:
            await request(admission, gate)
        assert caught.value.http_status == 503
        gate.open.set()
        assert await task == "done"
        admission.close()

    asyncio.run(scenario())
