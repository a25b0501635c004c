"""Seeded mutations of json values: what files of annotations have, and worse."""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Callable, Iterator
from typing import Any

VALUES: tuple[Any, ...] = (
    None, True, False, 0, -0.0, 1, -1, 7, 2.5, -3.75, 1e-300, 1e30, 1e308, 2**31, 2**53 + 1,
    2**63 - 1, 2**63, -(2**63), 10**400, math.nan, math.inf, -math.inf,
    "", " ", "0", "1", "NaN", "person", "x" * 300, "a\nb", "a\0b", "../1.jpg", "/", ".",
    "\ud800", "\udc80.jpg", "\u202e", "naïve ☃ 漢字 🦓", "é", "e\u0301",
    [], {}, [[]], [{}], {"": None}, [None] * 4, [0] * 4, ["1"] * 4, [math.nan] * 4, [1e9] * 6,
    [[1, 2, 3, 4, 5, 6]], [[-1e5, 3.5] * 4], {"size": [40, 60], "counts": "PQo01"},
    {"size": [2**31, 2**31], "counts": [2**62]}, {"counts": [10**400]},
)  # fmt: skip


_DEPTHS = (50, 900, 100_000)


def mutated(value: Any, rng: random.Random, times: int | None = None) -> Any:
    """A copy of a json value with `times` (default: 1 to 3) places changed; for `dumps`."""
    value = copy.deepcopy(value)
    for _ in range(times or rng.choice((1, 1, 1, 2, 3))):
        places = list(_places(value))
        if not places:
            return _odd(rng)
        # Evenly by depth: most places of a file lie in its polygons.
        depth = rng.choice(sorted({place[2] for place in places}))
        container, key, _ = rng.choice([place for place in places if place[2] == depth])
        rng.choice(_CHANGES)(container, key, rng)
    return value


def mutated_text(text: str, rng: random.Random) -> bytes:
    """The bytes of a json text that was cut, or has bytes changed, doubled or lost."""
    data = bytearray(text.encode())
    for _ in range(rng.choice((1, 1, 2, 5))):
        place = rng.randrange(len(data))
        kind = rng.randrange(5)
        if kind == 0:
            data[place] = rng.randrange(256)
        elif kind == 1:
            del data[place : place + rng.choice((1, 1, 10))]
        elif kind == 2:
            data[place:place] = data[place : place + rng.choice((1, 10))]
        elif kind == 3:
            data[place:place] = rng.choice((b'"', b"{", b"[", b"]", b"}", b",", b"\\", b"-", b"1e"))
        else:
            del data[place:]
        if not data:
            break
    return bytes(data)


def dumps(value: Any) -> str:
    """Json text as lenient writers have it: NaN, half surrogate pairs as escapes, deep nesting."""
    text = json.dumps(value)
    for depth in _DEPTHS:
        text = text.replace(f'"nested {depth}"', "[" * depth + "]" * depth)
    return text


def _odd(rng: random.Random) -> Any:
    if rng.random() < 0.02:
        return f"nested {rng.choice(_DEPTHS)}"  # see `dumps`
    return copy.deepcopy(rng.choice(VALUES))


def _places(value: Any, depth: int = 0) -> Iterator[tuple[Any, Any, int]]:
    """(container, key or index, depth) of each value inside."""
    if depth > 20:
        return
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in list(pairs):
        yield value, key, depth
        if isinstance(inner, (dict, list)):
            yield from _places(inner, depth + 1)


def _replace(container: Any, key: Any, rng: random.Random) -> None:
    container[key] = _odd(rng)


def _remove(container: Any, key: Any, rng: random.Random) -> None:
    del container[key]


def _scale(container: Any, key: Any, rng: random.Random) -> None:
    value = container[key]
    if isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**64):
        container[key] = value * rng.choice((-1, 0, 2, 10, 1e6, -1e12, 0.5, 1e-9))
    else:
        container[key] = _odd(rng)


def _wrap(container: Any, key: Any, rng: random.Random) -> None:
    value = container[key]
    container[key] = rng.choice(([value], {"a": value}, str(value)[:50], [value, value]))


def _repeat(container: Any, key: Any, rng: random.Random) -> None:
    """The same entry once more, as it is or as a copy under an odd key."""
    if isinstance(container, list):
        container.insert(rng.randrange(len(container) + 1), copy.deepcopy(container[key]))
    else:
        container[rng.choice((f"{key} ", "id", "image_id", ""))] = copy.deepcopy(container[key])


def _swap(container: Any, key: Any, rng: random.Random) -> None:
    other = rng.choice(list(container) if isinstance(container, dict) else range(len(container)))
    container[key], container[other] = container[other], container[key]


def _empty(container: Any, key: Any, rng: random.Random) -> None:
    container[key] = type(container[key])() if container[key] is not None else ""


_CHANGES: tuple[Callable[[Any, Any, random.Random], None], ...] = (
    _replace, _replace, _replace, _remove, _scale, _wrap, _repeat, _swap, _empty,
)  # fmt: skip
