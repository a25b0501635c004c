"""Side-by-side timing: several ways to do one thing, in turns, within one process."""

import concurrent.futures
import multiprocessing
import os
import pathlib
import re
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Timing(NamedTuple):
    """Seconds of every turn of one contender."""

    seconds: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """(largest - smallest) / median."""
        return (max(self.seconds) - min(self.seconds)) / self.median


def in_turns(contenders: Mapping[str, Callable[[], object]], turns: int) -> dict[str, Timing]:
    """Times the contenders one after another, `turns` times; each runs once before, untimed."""
    for run in contenders.values():
        run()
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(turns):
        for name, run in contenders.items():
            started = time.perf_counter()
            run()
            found[name].append(time.perf_counter() - started)
    return {name: Timing(seconds) for name, seconds in found.items()}


def table(timings: Mapping[str, Timing], reference: str) -> str:
    """Lines with the median in ms, the spread, and the ratio to the contender `reference`.

    The ratio is that of the medians; in brackets its smallest and largest value turn by turn.
    """
    width = max(map(len, timings))
    base = timings[reference]
    lines = []
    for name, timing in timings.items():
        ratios = [a / b for a, b in zip(timing.seconds, base.seconds, strict=True)]
        lines.append(
            f"  {name:<{width}} {1e3 * timing.median:9.1f} ms  spread {timing.spread:4.0%}  "
            f"ratio {timing.median / base.median:5.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        )
    return "\n".join(lines)


def in_new_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """function(*arguments), which can be pickled, in a process that has done nothing yet."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
        return pool.submit(function, *arguments).result()


def peak_mib(make: Callable[..., Callable[[], object]], *arguments: Any) -> float:
    """Largest resident memory in MiB of a new process that runs `make(*arguments)()` twice."""
    return in_new_process(_run_twice, make, arguments)


def _run_twice(make, arguments) -> float:
    run = make(*arguments)
    run()
    run()
    return own_peak_mib()


def own_peak_mib() -> float:
    """Largest resident memory of this process so far, in MiB."""
    # Not getrusage: its maximum includes that of the process before exec, the parent's.
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024


def machine() -> str:
    """One line on the cores and how busy they are: ratios only mean something of one run."""
    cores = len(os.sched_getaffinity(0))
    return f"{cores} cores, load {os.getloadavg()[0]:.1f}"
