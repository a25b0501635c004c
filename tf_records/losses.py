"""What a conversion has lost: too much to go on with, or odd in much of the data set."""

from __future__ import annotations

from collections.abc import Sequence

from maskx_tf.data.coco.issues import DROPPED, MASK_DROPPED, OF_IMAGES, REASONS, cause
from maskx_tf.data.records.manifest import Manifest

_CHOSEN = ("synset_", "box_duplicate_dropped")  # reasons of what a command was told to leave out
_CROWD, _OF_IMAGE = "crowd", "annotation_of_dropped_image"
_MUCH = 0.3  # of images or objects; what more of them have is a fault of the file
_MANY = 0.1  # of images, objects or masks; more of them are not lost by chance
# All of many boxes end in the upper left: by chance with the probability of reach ** boxes.
_REACH, _CHANCE, _LEAST_OBJECTS = 0.75, 1e-6, 20


def too_much(manifest: Manifest, most_dropped: float) -> str:
    """Why records are not worth writing, with the remedy; empty if they are.

    They are not if no object is left, or no mask though there were some, or if more than
    `most_dropped` of the images, objects or masks were dropped for one reason. 1: they always are.
    """
    if most_dropped >= 1:
        return ""
    totals = _totals(manifest)
    shares = {
        reason: entry["count"] / max(totals[_unit(reason)], 1)
        for reason, entry in manifest.issues.items()
        if _is_loss(reason)
    }
    worst = max(shares, key=lambda reason: (shares[reason], reason in OF_IMAGES), default="")
    if not manifest.num_objects:
        count = totals["objects"]
        what = f"None of {count} objects can be trained on" if count else "There is no object"
    elif not manifest.num_masks and any(_unit(reason) == "masks" for reason in shares):
        what = f"None of {totals['masks']} masks can be trained on"
        worst = max(shares, key=lambda reason: (_unit(reason) == "masks", shares[reason]))
    elif shares and shares[worst] > most_dropped:
        what = f"More than {most_dropped:.0%} of the {_unit(worst)} cannot be used"
    else:
        return ""
    if worst == _OF_IMAGE:  # for another reason
        worst = max(shares.keys() & OF_IMAGES, key=shares.__getitem__)
    if not worst:
        return f"{what}, and nothing is written. --most_dropped=1 writes the images alone."
    entry, unit = manifest.issues[worst], _unit(worst)
    how_often = f"{worst}: {entry['count']} of {totals[unit]} {unit}"
    return (
        f"{what}, and nothing is written: {cause(worst, entry, how_often)}. "
        "--most_dropped=1 writes what is left."
    )


def warnings(manifest: Manifest, reach: Sequence[float]) -> tuple[str, ...]:
    """What is odd in much of the images or objects, or lost of many.

    Args:
      manifest: of the records.
      reach: see `shards.Encoded`.
    """
    totals = _totals(manifest)
    found = []
    for reason, entry in manifest.issues.items():
        share = entry["count"] / max(totals[_unit(reason)], 1)
        limit = _MANY if _is_loss(reason) else _MUCH
        if share > limit and REASONS[reason].remedy:
            meaning, remedy = REASONS[reason].meaning, REASONS[reason].remedy
            found.append(f"{share:.0%} of the {_unit(reason)}: {meaning} ({reason}): {remedy}")
    count = manifest.num_objects
    if count >= _LEAST_OBJECTS and max(reach) <= _REACH and max(reach) ** count < _CHANCE:
        found.append(
            f"all boxes lie in the upper left {reach[0]:.0%} x {reach[1]:.0%} of their photos: are "
            "they in pixels, and the photos of the size that they were drawn on?"
        )
    return tuple(found)


def _is_loss(reason: str) -> bool:
    effect = REASONS[reason].effect
    return reason == _CROWD or (
        effect in (DROPPED, MASK_DROPPED) and not reason.startswith(_CHOSEN)
    )


def _unit(reason: str) -> str:
    if REASONS[reason].effect == MASK_DROPPED:
        return "masks"
    return "images" if reason in OF_IMAGES else "objects"


def _totals(manifest: Manifest) -> dict[str, int]:
    """How many images, objects (crowds included) and masks there were to begin with."""
    lost = {"images": 0, "objects": 0, "masks": 0}
    for reason, entry in manifest.issues.items():
        if REASONS[reason].effect in (DROPPED, MASK_DROPPED):
            lost[_unit(reason)] += entry["count"]
    return {
        "images": manifest.num_images + lost["images"],
        "objects": manifest.num_objects + manifest.num_crowds + lost["objects"],
        "masks": manifest.num_masks + lost["masks"],
    }
