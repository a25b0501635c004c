"""Which items go into which shard, and the fingerprint that tells the shards of one run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

_IMAGES_PER_SHARD = 1_000  # when the number of shards is left open
_SIDECARS = 2  # version of what they say; shards of another one are not resumed


@dataclasses.dataclass(frozen=True)
class Plan:
    """Which items go into which shard: `bounds[i]` to `bounds[i + 1]` into shard i."""

    directory: pathlib.Path
    name: str
    bounds: tuple[int, ...]
    fingerprint: str  # of source and settings, see `fingerprint_of`

    @classmethod
    def make(cls, directory: str, name: str, items: int, shards: int, source: Any) -> Plan:
        """Items spread evenly over the shards; `shards` 0: one per 1000 items."""
        count = num_shards(items, shards)
        bounds = tuple(items * index // count for index in range(count + 1))
        return cls(
            pathlib.Path(directory), name, bounds, fingerprint_of(name, bounds, source, _SIDECARS)
        )

    @property
    def num_shards(self) -> int:
        """Number of files."""
        return len(self.bounds) - 1

    def path(self, index: int) -> pathlib.Path:
        """The file of shard `index`."""
        return self.directory / f"{self.name}-{index:05d}-of-{self.num_shards:05d}.tfrecord"

    def size(self, index: int) -> int:
        """Number of items of shard `index`."""
        return self.bounds[index + 1] - self.bounds[index]

    def items(self, items: Sequence[Any], indices: Iterable[int]) -> Iterator[Any]:
        """The items of some shards, in order."""
        for index in indices:
            for position in range(self.bounds[index], self.bounds[index + 1]):
                yield items[position]


def num_shards(items: int, wanted: int) -> int:
    """How many files `items` go into, at most one for each; `wanted` 0: one per 1000 items."""
    return min(max(wanted or -(-items // _IMAGES_PER_SHARD), 1), max(items, 1))


def fingerprint_of(*values: Any) -> str:
    """sha256 in hex of json-like values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
