"""Records that a model labels: which of their masks stay, and how many of the new ones did."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from maskx_tf.data.records.manifest import Manifest

TO_LABEL = "boxes_to_label"  # in the manifest's source: class name -> boxes without a usable mask


class Usable(NamedTuple):
    """Which masks may be trained on.

    Attributes:
      classes: names of set A.
      sources: of masks; empty: all.
      weights: of sources, 1 of those that are not named.
    """

    classes: Collection[str]
    sources: Collection[str]
    weights: Mapping[str, float]

    def __call__(self, class_name: str, source: str, weight: float) -> bool:
        """Whether the mask of an object is; an object without one has the source ""."""
        is_chosen = not self.sources or source in self.sources
        is_weighted = weight * self.weights.get(source, 1.0) > 0
        return bool(source) and class_name in self.classes and is_chosen and is_weighted


def labelled_and_kept(manifest: Manifest) -> dict[str, tuple[int, int]]:
    """Of labelled records: class name -> (boxes that had no usable mask, masks they got)."""
    counts = {}
    for name, boxes in manifest.source[TO_LABEL].items():
        objects, masks = manifest.class_counts[name]
        counts[name] = (boxes, masks - (objects - boxes))
    return counts
