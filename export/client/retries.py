"""Repeating a request that the server was not ready for."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from export.client.errors import ServerError, UnavailableError

T = TypeVar("T")
FIRST_DELAY_S = 0.2
LONGEST_DELAY_S = 5.0


def call(request: Callable[[], T], retries: int, sleep: Callable[[float], None] = time.sleep) -> T:
    """Calls `request`, and again up to `retries` times while the server is unavailable.

    The pauses double, from 0.2 to at most 5 seconds, each shortened by up to half at random, so
    that clients which failed together do not come back together.

    Raises:
      ServerError: the server was unavailable every time.
    """
    for attempt in range(retries + 1):
        try:
            return request()
        except UnavailableError as error:
            if attempt == retries:
                times = "once" if retries == 0 else f"{retries + 1} times"
                raise ServerError(f"{error} (tried {times})") from None
        delay = min(FIRST_DELAY_S * 2**attempt, LONGEST_DELAY_S)
        sleep(delay * random.uniform(0.5, 1))
    raise AssertionError("unreachable")
