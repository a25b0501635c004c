"""How far class weights follow the factors that the classes are made of: it predicts transfer.

T can only carry what it learned on set A over to set B if w_det of a new combination is put
together from parts that A has shown.
"""

import numpy as np


def explained_share(weights: np.ndarray, factors: np.ndarray) -> float:
    """Share of the variance between classes that an additive model of the factors explains.

    Args:
      weights: float [K, D], one row for each class.
      factors: int [K, F], the value of each factor of each class, e.g. (shape, texture).

    Returns:
      1 when every row is a sum of one vector for each factor value; about (parameters / K) for
      rows without any structure.
    """
    indicators = np.concatenate(
        [np.equal.outer(column, np.unique(column)) for column in np.asarray(factors).T], axis=1
    ).astype(np.float64)  # [K, values of all factors]
    centred = weights - weights.mean(axis=0)
    fitted = indicators @ np.linalg.lstsq(indicators, centred, rcond=None)[0]
    return 1.0 - float(np.square(centred - fitted).sum() / np.square(centred).sum())
