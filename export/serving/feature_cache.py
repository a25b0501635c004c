"""Features of the images that boxes were asked of last, so that the next boxes need only theirs."""

from __future__ import annotations

import collections
import hashlib
import threading
from collections.abc import Callable, Mapping

import numpy as np

from export.serving.errors import Code, ServingError

_LONGEST_WAIT_S = 3600.0


class FeatureCache:
    """A bounded number of bytes, used by several threads and all versions of all models.

    What was not used for longest goes first. While one thread computes an image's features, others
    that want the same wait for it.

    Args:
      max_bytes: of the features; what is larger by itself is not kept.
    """

    def __init__(self, max_bytes: int):
        self._max_bytes = max_bytes
        self._features: collections.OrderedDict[tuple, Mapping[str, np.ndarray]]
        self._features = collections.OrderedDict()
        self._computing: set[tuple] = set()
        self._condition = threading.Condition()

    @property
    def num_bytes(self) -> int:
        """Size of what is kept."""
        with self._condition:
            return sum(map(_size, self._features.values()))

    def get(
        self,
        owner: object,
        image: bytes,
        compute: Callable[[], Mapping[str, np.ndarray]],
        wait_s: float = float("inf"),
    ) -> Mapping[str, np.ndarray]:
        """The features of an image.

        Args:
          owner: what computes them; others have other features.
          image: the bytes of its file.
          compute: returns them, or raises, whereupon nothing is kept.
          wait_s: longest wait for another thread that computes the same.

        Raises:
          ServingError: DEADLINE_EXCEEDED, the wait was longer.
        """
        key = (owner, hashlib.sha256(image).digest())
        with self._condition:
            if not self._condition.wait_for(
                lambda: key not in self._computing, min(wait_s, _LONGEST_WAIT_S)
            ):
                raise ServingError(Code.DEADLINE_EXCEEDED, "the deadline passed in the queue")
            if key in self._features:
                self._features.move_to_end(key)
                return self._features[key]
            self._computing.add(key)
        try:
            features = compute()
            self._keep(key, features)
            return features
        finally:
            with self._condition:
                self._computing.remove(key)
                self._condition.notify_all()

    def drop(self, owner: object) -> None:
        """Forgets all of an owner, which must not ask again."""
        with self._condition:
            for key in [key for key in self._features if key[0] is owner]:
                del self._features[key]

    def _keep(self, key: tuple, features: Mapping[str, np.ndarray]) -> None:
        if _size(features) > self._max_bytes:
            return
        with self._condition:
            self._features[key] = features
            while sum(map(_size, self._features.values())) > self._max_bytes:
                self._features.popitem(last=False)


def _size(features: Mapping[str, np.ndarray]) -> int:
    return sum(array.nbytes for array in features.values())
