"""Arrays of a weight file, rules that turn them into our variables, and what became of each."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import tensorflow as tf

from maskx_tf.errors import UserError, first_of


@dataclasses.dataclass(frozen=True)
class Rule:
    """How one variable is made: `make(*arrays)` of the blobs `names`."""

    names: tuple[str, ...]
    make: Callable[..., np.ndarray]


class Blobs:
    """The arrays of a file by name, each to be used, ignored on purpose, or left as unexpected.

    Attributes:
      source: the file, for messages.
      arrays: name -> array.
      used: name -> the variables made of it.
      ignored: name -> why.
    """

    def __init__(
        self, arrays: Mapping[str, object], source: str, labels: Mapping[str, str] | None = None
    ):
        """Takes the contents of `source`; `labels` has the names in the file of renamed blobs."""
        self.source, self._labels = source, dict(labels or {})
        self.arrays: dict[str, np.ndarray] = {}
        self.used: dict[str, list[str]] = collections.defaultdict(list)
        self.ignored: dict[str, str] = {}
        for name, value in arrays.items():
            if isinstance(value, np.ndarray):
                self.arrays[name] = value
            else:
                self.ignored[name] = "no array"

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a blob; UserError without it."""
        if name not in self.arrays:
            raise UserError(f"{self.source} has no {self.label(name)}, which this model needs.")
        return self.arrays[name].shape

    def label(self, name: str) -> str:
        """The blob's name in the file."""
        return self._labels.get(name, name)

    def swap(self, one: str, other: str) -> None:
        """Exchanges two arrays; each keeps its name in the file."""
        self.arrays[one], self.arrays[other] = self.arrays[other], self.arrays[one]
        self._labels[one], self._labels[other] = self.label(other), self.label(one)

    def ignore(self, names: Iterable[str], reason: str) -> None:
        """Marks blobs as left out on purpose."""
        self.ignored.update(dict.fromkeys(names, reason))

    @property
    def unexpected(self) -> list[str]:
        """Names of blobs that nothing asked for."""
        return [name for name in self.arrays if name not in self.used and name not in self.ignored]

    def apply(self, rule: Rule, variable: str, shape: tuple[int, ...]) -> np.ndarray:
        """The value float32 of a variable of the given shape; UserError where it does not fit."""
        blobs = [self.arrays[name] for name in rule.names]
        for name, blob in zip(rule.names, blobs, strict=True):
            if not np.issubdtype(blob.dtype, np.floating) or not np.all(np.isfinite(blob)):
                raise UserError(
                    f"{self.source}: {self.label(name)} ({blob.dtype}) holds values that are "
                    "not finite; the file is damaged or not a weight file."
                )
        try:
            value = np.asarray(rule.make(*blobs), np.float32)
        except (ValueError, IndexError):
            value = None
        if value is None or value.shape != shape:
            found = ", ".join(f"{self.label(n)} {self.arrays[n].shape}" for n in rule.names)
            raise UserError(
                f"{self.source}: {found} does not fit {variable} {shape} of the architecture that "
                "its other blobs tell; this kind of model is not supported, or the file is damaged."
            )
        for name in rule.names:
            self.used[name].append(variable)
        return value

    def table(self) -> str:
        """One line for each blob: what became of it, its name in the file, shape, where or why."""
        lines = []
        for name, array in self.arrays.items():
            if name in self.used:
                state, note = "used", ", ".join(self.used[name])
            elif name in self.ignored:
                state, note = "ignored", self.ignored[name]
            else:
                state, note = "unexpected", ""
            lines.append(f"{state}\t{self.label(name)}\t{array.shape}\t{note}".rstrip())
        lines += [f"ignored\t{name}\t\t{self.ignored[name]}" for name in self.ignored
                  if name not in self.arrays]  # fmt: skip
        return "\n".join(lines) + "\n"

    def summary(self) -> str:
        """A few lines for the console."""
        head = f"{len(self.used)} blobs used, {len(self.ignored)} ignored on purpose"
        lines = [f"{head}, {len(self.unexpected)} unexpected, none missing."]
        for reason, count in collections.Counter(self.ignored.values()).items():
            lines.append(f"  ignored: {count} {reason}")
        if self.unexpected:
            names = sorted(map(self.label, self.unexpected))
            lines.append(f"  unexpected, not used: {first_of(names)}")
        return "\n".join(lines)


def assign(variables: Mapping[str, tf.Variable], rules: Mapping[str, Rule], blobs: Blobs) -> None:
    """Sets variables by their rules, all of them or, with an error, none.

    Args:
      variables: name -> variable; all of them must have a rule.
      rules: name -> rule.
      blobs: keeps account of what is used.

    Raises:
      UserError: blobs are missing, have values that are not numbers, or shapes that do not fit.
    """
    missing = {name for rule in rules.values() for name in rule.names if name not in blobs}
    if missing:
        names = sorted(map(blobs.label, missing))
        raise UserError(
            f"{blobs.source} lacks {len(names)} blobs of this architecture: {first_of(names)}. "
            "The file is incomplete or of a kind of model that is not supported."
        )
    values = {
        name: blobs.apply(rules[name], name, tuple(variable.shape))
        for name, variable in variables.items()
    }
    for name, variable in variables.items():
        variable.assign(values[name])
