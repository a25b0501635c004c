"""Records that a model labels: which of their masks stay, and which of the new ones."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from absl import flags

from maskx_tf.data.records.manifest import Manifest
from maskx_tf.inference import mask_post

MIN_AGREEMENT = 0.8  # of a mask's own box with the given one, unless told otherwise
OPTIONS = ("min_agreement", "min_quality", "mask_post", "crf_weight", "crf_color", "crf_reach")
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


def define_flags() -> None:
    """Defines `OPTIONS`, what is done to a model's masks and which are kept."""
    between = {"lower_bound": 0.0, "upper_bound": 1.0}
    flags.DEFINE_float(
        "min_agreement",
        MIN_AGREEMENT,
        "Masks are kept whose own box has at least this IoU with the given one.",
        **between,
    )
    flags.DEFINE_float(
        "min_quality", 0.0, "Masks are kept that score at least this, as mask_score.", **between
    )
    mask_post.define_flags()


def labelled_and_kept(manifest: Manifest) -> dict[str, tuple[int, int]]:
    """Of labelled records: class name -> (boxes that had no usable mask, masks they got)."""
    counts = {}
    for name, boxes in manifest.source[TO_LABEL].items():
        objects, masks = manifest.class_counts[name]
        counts[name] = (boxes, masks - (objects - boxes))
    return counts
