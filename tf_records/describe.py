"""Counts what a record directory holds, and draws a sheet of samples.

Example:
  maskx records describe records/mine/train --output_dir=described
"""

from __future__ import annotations

import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags

from maskx_tf import visualize
from maskx_tf.data.coco import issues as issues_lib
from maskx_tf.data.records.manifest import HUMAN, Manifest
from maskx_tf.errors import UserError
from maskx_tf.system import cli
from maskx_tf.system.files import write_atomically
from tf_records import directories
from tf_records.describe_sheet import draw_sheet
from tf_records.describe_statistics import Statistics, gather, per_class

_FEW_BOXES = 10
_SMALL_PX, _MEDIUM_PX = 32, 96  # COCO's limits of small and medium objects
_TINY_BOX_PX = 2
_IMAGE_SIDES_PX = (32, 4_096)  # smaller and larger ones are unusual
_LISTED = 8  # names in a warning


def summarize(manifest: Manifest, statistics: Statistics) -> dict[str, Any]:
    """Everything that `format_text` prints, as what goes into describe.json."""
    is_object = ~statistics.is_crowd
    objects = np.bincount(statistics.image[is_object], minlength=len(statistics.image_sizes))
    side = statistics.side[is_object]
    sides = np.searchsorted([_SMALL_PX, _MEDIUM_PX], side, side="right")
    classes = per_class(statistics, manifest.vocabulary.names)
    return {
        "name": manifest.name,
        "images": len(statistics.image_sizes),
        "boxes": len(side),
        "masks": int(statistics.has_mask[is_object].sum()),
        "mask_sources": dict(manifest.mask_sources),
        **_weights(statistics.mask_weight[is_object & statistics.has_mask]),
        "crowd": int(statistics.is_crowd.sum()),
        "shards": len(manifest.shards),
        "bytes": sum(shard.bytes for shard in manifest.shards),
        "image_height_px": _spread(statistics.image_sizes[:, 0]),
        "image_width_px": _spread(statistics.image_sizes[:, 1]),
        "objects_per_image": _spread(objects),
        "boxes_small_medium_large": np.bincount(sides, minlength=3).tolist(),
        "classes": classes,
        "warnings": [*manifest.warnings, *_warnings(statistics, classes, objects)],
        "dropped_or_repaired": {
            reason: {"effect": entry["effect"], "count": entry["count"]}
            for reason, entry in manifest.issues.items()
        },
    }


def _weights(weights: np.ndarray) -> dict[str, Any]:
    """Of masks' weights, unless all are 1."""
    if (weights == 1).all():
        return {}
    counts = {"below_1": int((weights < 1).sum()), "zero": int((weights == 0).sum())}
    return {"mask_weights": {**counts, "mean": round(float(weights.mean()), 4)}}


def _spread(values: np.ndarray) -> dict[str, int]:
    if not len(values):
        return {"smallest": 0, "median": 0, "largest": 0}
    found = (values.min(), np.median(values), values.max())
    return dict(zip(("smallest", "median", "largest"), map(int, found), strict=True))


def _warnings(
    statistics: Statistics, classes: Sequence[dict[str, Any]], objects: np.ndarray
) -> list[str]:
    full = [f"{row['name']} {row['full_masks']}" for row in classes if row["full_masks"]]
    few = [f"{row['name']} {row['boxes']}" for row in classes if 0 < row["boxes"] < _FEW_BOXES]
    none = [row["name"] for row in classes if not row["boxes"] and not row["crowd"]]
    crowds = [f"{row['name']} {row['crowd']}" for row in classes if row["crowd"] > row["boxes"]]
    shortest, longest = statistics.image_sizes.min(axis=1), statistics.image_sizes.max(axis=1)
    counts = {
        "images without objects": (objects == 0).sum(),
        f"images with a side below {_IMAGE_SIDES_PX[0]} px": (shortest < _IMAGE_SIDES_PX[0]).sum(),
        f"images with a side above {_IMAGE_SIDES_PX[1]} px": (longest > _IMAGE_SIDES_PX[1]).sum(),
        f"boxes below {_TINY_BOX_PX} px": (
            (statistics.side < _TINY_BOX_PX) & ~statistics.is_crowd
        ).sum(),
    }
    found = [
        (sum(row["full_masks"] for row in classes), "masks that are just their box", full),
        (len(crowds), "classes of more crowds than objects, not trained on", crowds),
        (len(few), f"classes with fewer than {_FEW_BOXES} boxes", few),
        (len(none), "classes without boxes", none),
        *((int(count), what, []) for what, count in counts.items()),
    ]
    return [f"{what}: {count}{_listed(names)}" for count, what, names in found if count]


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")
    return f" ({shown})" if names else ""


def format_text(summary: dict[str, Any], manifest: Manifest) -> str:
    """Totals, the table of classes, warnings, and what was dropped or repaired."""
    parts = [_totals(summary), _class_table(summary["classes"])]
    if summary["warnings"]:
        parts.append("\n".join(["Warnings:", *(f"  {line}" for line in summary["warnings"])]))
    if found := issues_lib.summary(manifest.issues, manifest.num_objects):
        parts.append(f"Dropped, repaired or odd when the records were written:\n{found}")
    return "\n\n".join(parts)


def _totals(summary: dict[str, Any]) -> str:
    small, medium, large = summary["boxes_small_medium_large"]
    lines = [
        f"{summary['name']}: {summary['images']} images, {summary['boxes']} boxes, "
        f"{summary['masks']} masks{_sources(summary['mask_sources'])}, {summary['crowd']} crowd; "
        f"{len(summary['classes'])} classes, {summary['shards']} shards, "
        f"{summary['bytes'] / 1e6:.1f} MB",
        *_weight_line(summary),
        "",
        f"{'':<20}{'smallest':>9}{'median':>9}{'largest':>9}",
    ]
    for key in ("image_height_px", "image_width_px", "objects_per_image"):
        values = "".join(f"{value:>9}" for value in summary[key].values())
        lines.append(f"{key.replace('_', ' '):<20}{values}")
    total = max(summary["boxes"], 1)
    lines.append(
        f"box sides (root of the area): below {_SMALL_PX} px {small / total:.0%}, "
        f"to {_MEDIUM_PX} px {medium / total:.0%}, above {large / total:.0%}"
    )
    return "\n".join(lines)


def _weight_line(summary: dict[str, Any]) -> list[str]:
    if "mask_weights" not in summary:
        return []
    below, zero, mean = summary["mask_weights"].values()
    return [f"weights of masks: mean {mean:.2f}, {below} below 1, of which {zero} are 0: no mask"]


def _sources(counts: dict[str, int]) -> str:
    """Where the masks are from, unless all are the annotations' own."""
    if set(counts) <= {HUMAN}:
        return ""
    return f" ({', '.join(f'{name} {count}' for name, count in counts.items())})"


def _class_table(classes: Sequence[dict[str, Any]]) -> str:
    """One row a class that has boxes, the most frequent first."""
    rows = [row for row in classes if row["boxes"] or row["crowd"]]
    rows.sort(key=lambda row: -row["boxes"])
    width = max([len(row["name"]) for row in rows] + [5])
    counts = ("images", "boxes", "masks", "crowd")
    sides = ("median", "smallest", "largest")
    head = "".join(f"{name:>8}" for name in counts) + "".join(f"{name:>10}" for name in sides)
    lines = [f"{'':<{width}}{'':>32}{'box side, px':>30}", f"{'class':<{width}}{head}"]
    for row in rows:
        numbers = "".join(f"{row[name]:>8}" for name in counts)
        pixels = "".join(f"{row[f'{name}_side_px'] or 0:>10.1f}" for name in sides)
        lines.append(f"{row['name']:<{width}}{numbers}{pixels}")
    return "\n".join(lines)


def write(
    directory: str, manifest: Manifest, output_dir: str, summary: dict[str, Any], count: int
) -> None:
    """Writes describe.json and, with `count` sample images, samples.jpg."""
    output = pathlib.Path(output_dir)
    text = json.dumps(summary, indent=1, ensure_ascii=False)
    write_atomically(output / "describe.json", f"{text}\n")
    if count and summary["images"]:
        visualize.write_picture(draw_sheet(directory, manifest, count), output / "samples.jpg")


def define_flags() -> None:
    """Defines this command's flags."""
    directories.define_flags()
    flags.DEFINE_string("output_dir", "", "Where to write describe.json and samples.jpg.")
    flags.DEFINE_integer("samples", 12, "Images on the sheet samples.jpg; 0: no sheet.")
    flags.DEFINE_integer("workers", 0, "Processes; 0: one per core.")


def main() -> None:
    """Prints the description of each directory, and writes it where asked."""
    options = flags.FLAGS
    found = directories.from_flags()
    if options.output_dir and len(found) > 1:
        raise UserError("--output_dir takes the description of one directory; name one.")
    for directory in found:
        manifest = Manifest.load(directory)
        summary = summarize(manifest, gather(directory, manifest, options.workers))
        if options.output_dir:
            write(directory, manifest, options.output_dir, summary, options.samples)
        print(format_text(summary, manifest))
        if options.output_dir:
            print(f"written: {options.output_dir}")


if __name__ == "__main__":
    define_flags()
    sys.argv = directories.to_flag(sys.argv)
    cli.run(main)
