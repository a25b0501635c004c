"""Whether the records hold the objects and masks that a run means to train with."""

from __future__ import annotations

import mmap
import pathlib
from collections import Counter
from collections.abc import Iterable, Sequence

from maskx_tf.data.classes import Vocabulary
from maskx_tf.data.records.manifest import Found
from maskx_tf.data.records.schema import WEIGHT_KEY, read_records
from maskx_tf.errors import UserError, first_of


def require_set_a(mask_class_ids: Sequence[int]) -> None:
    """UserError where set A is empty, so that nothing would train the mask head."""
    if not mask_class_ids:
        raise UserError(
            "--mask_classes=none leaves the mask head untrained; train boxes alone with "
            "--mode=stage1_boxes, or masks from boxes with --loss_projection and --loss_pairwise."
        )


def require_objects(files: Found) -> None:
    """UserError where the training records, as far as they are known, hold no object but crowds.

    Manifests of before count crowds as objects: their files are read up to the first other object.
    """
    if any(path not in files.shards for path in files.paths):
        return
    manifests = files.manifests.values()
    if any(m.num_objects for m in manifests if m.crowd_counts is not None) or _has_objects(
        directory / shard.file
        for directory, manifest in files.manifests.items()
        if manifest.crowd_counts is None
        for shard in manifest.shards
    ):
        return
    crowds = sum(m.num_objects if m.crowd_counts is None else m.num_crowds for m in manifests)
    raise UserError(
        f"--train_records hold no object to train on, {crowds} crowds and "
        f"{sum(manifest.num_images for manifest in manifests)} images. maskx records describe "
        "DIRECTORY says what they hold and what was dropped."
    )


def _has_objects(paths: Iterable[pathlib.Path]) -> bool:
    try:
        records = read_records(paths)
        return any(not item.is_crowd for record in records for item in record.objects)
    except UserError:  # damage, which training names or leaves out
        return True


def has_weights(files: Found) -> bool:
    """Whether a mask may have a weight other than 1: files without a manifest are searched."""
    if any(manifest.weighted_masks for manifest in files.manifests.values()):
        return True
    return any(map(_has_weights, set(files.paths).difference(files.shards)))


def _has_weights(path: pathlib.Path) -> bool:
    if not path.stat().st_size:
        return False
    with (
        open(path, "rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        return content.find(WEIGHT_KEY.encode()) >= 0


def check(
    files: Found,
    vocabulary: Vocabulary,
    mask_class_ids: Sequence[int],
    from_boxes: bool = False,
) -> str:
    """A warning of the classes of set A that have boxes but no mask; empty if there are none.

    What files without a manifest hold is not known.

    Args:
      files: the training records.
      vocabulary: classes of the model.
      mask_class_ids: set A.
      from_boxes: whether masks are learned from boxes too: then none is needed.

    Raises:
      UserError: no class of set A has a mask, so that the mask head would stay as it was drawn.
    """
    if not from_boxes:
        require_set_a(mask_class_ids)
    shards = files.shards
    if any(path not in shards for path in files.paths):
        return ""
    boxes, masks = Counter[str](), Counter[str]()
    for manifest in files.manifests.values():
        for name, (objects, with_mask) in manifest.class_counts.items():
            boxes[name] += objects
            masks[name] += with_mask
    set_a = vocabulary.names_of(mask_class_ids)
    if not from_boxes and not any(masks[name] for name in set_a):
        raise UserError(
            f"No object of the {len(set_a)} classes of --mask_classes has a mask in "
            "--train_records, so that the mask head would stay untrained; train boxes alone with "
            "--mode=stage1_boxes."
        )
    bare = [name for name in set_a if boxes[name] and not masks[name]]
    if not bare:
        return ""
    return (
        f"warning: {len(bare)} of the {len(set_a)} classes of set A have boxes in --train_records "
        f"but no mask: {first_of(bare)}. Evaluation and pictures would count them among the "
        "classes that masks were seen of; list only those with masks, one per line, in a .txt file "
        "for --mask_classes."
    )
