"""Inputs, weights and tensors of detectron2's Mask R-CNN, stage by stage, from files.

Layouts are detectron2's: NCHW, xyxy, the background last. Every `detectron2_*.npz` in the folder
`fixtures` of the test data is used; another one is tried by putting it there.
"""

import functools
import json

import numpy as np
import pytest

from tests import harness

YXYX = [1, 0, 3, 2]  # xyxy -> yxyx, and (dx, dy, dw, dh) -> (dy, dx, dh, dw)


def _names() -> list[str]:
    try:
        found = sorted(
            path.stem for path in harness.shared_data().glob("fixtures/detectron2_*.npz")
        )
    except pytest.skip.Exception:
        found = []
    return found or ["detectron2"]  # which is skipped, with the reason


NAMES = _names()


def path(name: str) -> str:
    """The file of a fixture; skips without it."""
    file = harness.shared_data() / "fixtures" / f"{name}.npz"
    if not file.is_file():
        pytest.skip(f"{file} is not there")
    return str(file)


@functools.cache
def load(name: str) -> dict:
    """All arrays of a fixture, and `meta` decoded."""
    arrays = dict(np.load(path(name)))
    return arrays | {"meta": json.loads(str(arrays["meta"]))}


def nhwc(array):
    """[B, C, H, W] -> [B, H, W, C]."""
    return np.moveaxis(array, 1, -1)


def relative_error(ours, theirs) -> float:
    """Largest deviation as a share of the largest value."""
    return float(np.max(np.abs(np.asarray(ours) - theirs)) / np.max(np.abs(theirs)))
