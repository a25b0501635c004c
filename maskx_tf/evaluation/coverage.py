"""How far classes with masks cover another class: what T can know of it before any mask exists.

T is a smooth function of the class weights w_det, known at the classes of A. Taken as a Gaussian
process with an affine kernel, it is known at another class up to a posterior variance that depends
on the class weights alone: 0 in the affine span of A, and as large as the variance between classes
where a class has nothing in common with A. Outlining a class lowers the variance of all that
resemble it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

# Variance of what T sees of a class and cannot carry over, relative to the mean between classes.
NOISE = 0.1
_IOU_NOISE = 1.0  # variance of a class's IoU that its weights do not tell, on the same scale
_COVER_POWER = 0.25
_OFFSET = 100.0  # prior variance of what all classes have in common: unknown before the first


class Choice(NamedTuple):
    """A class that is worth outlining next.

    Attributes:
      row: of the class in the weights.
      covered_before: how far the classes before cover it, 0..1.
      mean_after: mean cover of all classes that are not in A, counting itself, once it is.
    """

    row: int
    covered_before: float
    mean_after: float


class Coverage:
    """Cover of K classes by those with masks; classes are added one by one.

    Args:
      weights: float [K, D], w_det of every class.
      known: rows of the classes that have masks.
      noise: see `NOISE`.
    """

    def __init__(self, weights: np.ndarray, known: Iterable[int] = (), noise: float = NOISE):
        covariance = _covariance(weights)
        self._prior = np.maximum(covariance.diagonal(), 1e-9)  # [K], without the offset
        self._posterior = covariance + _OFFSET  # [K, K]
        self._noise = noise
        self.known: list[int] = []
        for index in known:
            self.add(index)

    @property
    def covered(self) -> np.ndarray:
        """Share of each class's variance that the classes with masks explain, float [K]."""
        return np.clip(1.0 - self._posterior.diagonal() / self._prior, 0.0, 1.0)

    def add(self, index: int) -> None:
        """Counts a class among those with masks."""
        row = self._posterior[index].copy()
        self._posterior -= np.outer(row, row) / (row[index] + self._noise)
        self.known.append(index)

    def choose(self, count: int) -> list[Choice]:
        """The classes that cover the others most, each after those before it (greedy).

        Args:
          count: how many, at most; there are fewer if no more classes are left.
        """
        targets = np.setdiff1d(np.arange(len(self._prior)), self.known)
        choices = []
        for _ in range(min(count, len(targets))):
            left = np.setdiff1d(targets, self.known)
            gains = (self._posterior[np.ix_(targets, left)] ** 2 / self._prior[targets, None]).sum(
                axis=0
            ) / (self._posterior.diagonal()[left] + self._noise)
            best = int(left[np.argmax(gains)])
            before = float(self.covered[best])
            self.add(best)
            choices.append(Choice(best, before, float(self.covered[targets].mean())))
        return choices


def expected_iou(weights: np.ndarray, ious: dict[int, float]) -> np.ndarray:
    """Mean IoU of masks that each class can be expected to have while A stays as it is.

    Classes alike are about as hard to outline: the IoUs of A are carried over to the others by
    regression on their class weights, and lowered by what A leaves uncovered. Found on one seed of
    Shapes; docs/advise.md says how far it holds on others.

    Args:
      weights: as of `Coverage`.
      ious: mean IoU on validation images of the classes of A, by their rows.

    Returns:
      float [K].
    """
    known, values = np.array(list(ious)), np.array(list(ious.values()))
    covariance = _covariance(weights)
    of_known = covariance[np.ix_(known, known)] + _IOU_NOISE * np.eye(len(known))
    differences = np.linalg.solve(of_known, values - values.mean())
    rest = np.setdiff1d(np.arange(len(weights)), known)
    cover = Coverage(weights, known).covered[rest].mean() if len(rest) else 1.0
    return (values.mean() + covariance[:, known] @ differences) * cover**_COVER_POWER


def _covariance(weights: np.ndarray) -> np.ndarray:
    """Covariance of the classes [K, K], its mean variance 1."""
    centred = weights - weights.mean(axis=0)
    covariance = centred @ centred.T
    return covariance / (covariance.trace() / len(covariance) or 1.0)
