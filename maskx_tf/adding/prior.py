"""Which row a class should have, judged by how its objects look beside those of known classes."""

from __future__ import annotations

import numpy as np

from maskx_tf.adding.known import ClassMeans

_FEW = 3  # objects of a class, below which their mean says little
_RIDGE = 0.03  # 0.01 to 0.1 are alike on Shapes, see docs/adding_classes.md


def mix_of(known: ClassMeans, new: np.ndarray) -> np.ndarray:
    """The combinations of the known classes' rows that new classes probably have.

    Rows follow from looks nearly linearly: training on features that lie closer to those of one
    class gives a row closer to its row. The mean features of a new class are therefore written as
    the mean of the known classes' plus a combination of their deviations from it, by ridge
    regression, and the same combination is taken of their rows.

    Args:
      known: of K classes. Those with fewer than three objects have no part.
      new: float [M, D], mean features of the new classes.

    Returns:
      float [M, K]: coefficients of the deviations of the known rows from the mean of all rows.
    """
    seen = np.flatnonzero(known.counts >= _FEW)
    mix = np.zeros([len(new), len(known.counts)])
    if not len(seen):
        return mix
    centre = known.features[seen].mean(axis=0)
    deviations = known.features[seen] - centre  # [S, D]
    gram = deviations @ deviations.T
    gram += _RIDGE * np.trace(gram) / len(seen) * np.eye(len(seen))
    found = np.linalg.lstsq(gram, deviations @ (new - centre).T)[0].T  # [M, S]
    mix[:, seen] = found - found.mean(axis=1, keepdims=True)  # deviations from the mean of the seen
    return mix
