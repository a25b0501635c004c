"""Writes the records of a folder as labelling tools and other trainers have it.

Read are YOLO and Roboflow folders (data.yaml), Pascal VOC, CVAT for images 1.1, Label Studio's
json, and COCO and LVIS jsons. The command says what it took the folder for. Each split gets its
records, and annotations.json beside them: the same as a COCO json, for evaluate, label and
add-classes.

Example:
  maskx records data/mine --output_dir=records/mine
"""

from __future__ import annotations

import collections
import hashlib
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from maskx_tf.data.coco.issues import REASONS, Issue
from maskx_tf.data.records import manifest as manifest_lib
from maskx_tf.errors import UserError
from maskx_tf.system import cli
from maskx_tf.system.files import write_atomically
from tf_records import coco, writer
from tf_records import output as output_lib
from tf_records.folders import coco as coco_folder
from tf_records.folders import cvat, label_studio, labels, voc, yolo

READERS = {
    "coco": coco_folder,
    "yolo": yolo,
    "voc": voc,
    "cvat": cvat,
    "label-studio": label_studio,
}
ANNOTATIONS = "annotations.json"
_EXPLAINED = 5  # objects and losses of a split


def recognise(folder: str, named: str = "") -> str:
    """The format of a folder, one of `READERS`, which is said on stdout.

    Args:
      folder: to look into.
      named: the format if the user gave it; "" otherwise.

    Raises:
      UserError: it is of none, or of several.
    """
    path = pathlib.Path(folder)
    if not path.is_dir():
        raise UserError(f"{folder} is not a directory.")
    evidence = {name: text for name, reader in READERS.items() if (text := reader.recognise(path))}
    if named:
        evidence = {name: text for name, text in evidence.items() if name == named}
    if len(evidence) > 1:
        listed = "; ".join(f"{name}: {text}" for name, text in evidence.items())
        raise UserError(f"{folder} may be of several formats ({listed}): choose with --format=…")
    if not evidence:
        raise UserError(
            f"{folder} holds no labels of {named or 'any known format'}: looked for were data.yaml "
            "(YOLO, Roboflow), *.xml (VOC, CVAT for images) and *.json (COCO, Label Studio) in it, "
            "in Annotations/, annotations/, train/, valid/ and test/."
        )
    ((name, text),) = evidence.items()
    print(f"{folder}: {name} ({text})")
    return name


def read(folder: str, name: str, images: str | None) -> labels.Folder:
    """Reads a folder of any format but COCO's, and says what it chose."""
    content = READERS[name].read(pathlib.Path(folder), images)
    if not content.names:
        raise UserError(f"{folder} has no labelled object of any class.")
    for note in content.notes:
        print(f"note: {note}")
    return content


def with_validation(folder: labels.Folder, share: float, where: str) -> labels.Folder:
    """A folder of one split as two: a share of the images becomes `val`.

    Each image's part follows from its name, so that it stays where it is when others are added.

    Raises:
      UserError: the folder has several splits, or too few images for two.
    """
    if len(folder.splits) > 1:
        raise UserError(f"--val_share={share}: {where} is split already: {list(folder.splits)}.")
    (whole,) = folder.splits.values()
    parts: dict[str, labels.Split] = {
        "train": labels.Split(whole.images, [], whole.losses),
        "val": labels.Split(whole.images, []),
    }
    for item in whole.items:
        digest = hashlib.blake2b(item.file_name.encode(), digest_size=8).digest()
        is_val = int.from_bytes(digest, "big") < share * 2**64
        parts["val" if is_val else "train"].items.append(item)
    if not all(part.items for part in parts.values()):
        raise UserError(f"--val_share={share} of {len(whole.items)} images leaves a part empty.")
    print(
        f"note: {len(parts['val'].items)} of {len(whole.items)} images become val, by their names"
    )
    return folder._replace(splits=parts)


def explain(name: str, content: dict[str, Any]) -> None:
    """Prints what a split holds, its first objects and its first losses."""
    counts = (len(content["images"]), len(content["annotations"]))
    masks = sum(bool(one["segmentation"]) for one in content["annotations"])
    print(f"{name or 'all'}: {counts[0]} images, {counts[1]} objects, {masks} with mask")
    names = {one["id"]: one["name"] for one in content["categories"]}
    for one in content["annotations"][:_EXPLAINED]:
        shape = one["segmentation"]
        kind = (
            "a mask" if isinstance(shape, dict) else f"{len(shape)} polygons" if shape else "a box"
        )
        print(f"  {one['place']}: {names[one['category_id']]}, bbox {one['bbox']}, {kind}")
    for loss in content["losses"][:_EXPLAINED]:
        print(f"  lost: {loss['place']}: {REASONS[loss['reason']].meaning} ({loss['reason']})")


def write(
    split: str,
    content: dict[str, Any],
    issues: Sequence[Issue],
    images: pathlib.Path,
    output_dir: pathlib.Path,
    settings: dict[str, Any],
) -> manifest_lib.Manifest:
    """Writes a split's annotations.json and records.

    Raises:
      UserError: too much cannot be used, or other records are there.
    """
    output = output_lib.from_flags(str(output_dir), split or "all")
    path = output_dir / ANNOTATIONS
    text = json.dumps(content)
    is_finished = (output_dir / manifest_lib.FILE_NAME).exists()
    if output.overwrite or not is_finished:
        write_atomically(path, text)
    elif not path.is_file() or path.read_text() != text:
        raise UserError(
            f"{output_dir} holds records of another source or other settings; add --overwrite to "
            "replace them or name another directory."
        )
    return coco.convert(str(path), str(images), output, issues=issues, **settings)


def print_losses(content: dict[str, Any]) -> None:
    """For each reason how often labels were lost, and the first place."""
    counts = collections.Counter(loss["reason"] for loss in content["losses"])
    for reason, count in sorted(counts.items()):
        first = next(loss["place"] for loss in content["losses"] if loss["reason"] == reason)
        print(f"  {count:>7} {reason}, the first: {first}")


def define_flags() -> None:
    """Defines this command's flags."""
    flags.DEFINE_string("folder", "", "The labelled folder; --folder= may be left out.")
    flags.DEFINE_string(
        "output_dir", "", "Directory to write records to, one in it for each split."
    )
    flags.DEFINE_string("images", None, "Directory of the image files, if it is not in the folder.")
    flags.DEFINE_enum("format", "", ["", *READERS], "What the folder is; default: looked for.")
    flags.DEFINE_float(
        "val_share",
        0.0,
        "Share of the images that becomes the split val, by their names, if the folder is not "
        "split; 0: none. Photos of one scene should be in the same part: split them yourself.",
        lower_bound=0.0,
        upper_bound=0.9,
    )
    flags.DEFINE_bool("explain", False, "Print the first objects as they were read; write nothing.")
    coco.define_settings()
    output_lib.define_flags()


def main() -> None:
    """Recognises, reads, and writes the records of every split."""
    options = flags.FLAGS
    if not options.folder:
        raise UserError("Name the labelled folder: maskx records FOLDER --output_dir=…")
    if not options.output_dir and not options.explain:
        raise UserError("--output_dir=… is needed; or --explain, which writes nothing.")
    name = recognise(options.folder, options.format)
    output_dir = pathlib.Path(options.output_dir)
    settings = coco.settings_from_flags()
    if name == "coco":
        if options.val_share:
            raise UserError("--val_share= is for other formats: split the json (own_data.md).")
        for split, (path, images) in coco_folder.find(
            pathlib.Path(options.folder), options.images
        ).items():
            if options.explain:
                print(f"{split or 'all'}: --annotations={path} --images={images}")
                continue
            output = output_lib.from_flags(str(output_dir / split), split or "all")
            print(writer.describe(coco.convert(path, images, output, **settings), output.directory))
        return
    folder = read(options.folder, name, options.images)
    if options.val_share:
        folder = with_validation(folder, options.val_share, options.folder)
    for split, each in folder.splits.items():
        content, issues = labels.to_coco(each, folder.names)
        if options.explain:
            explain(split, content)
            continue
        directory = output_dir / split
        manifest = write(split, content, issues, each.images, directory, settings)
        print(writer.describe(manifest, str(directory)))
        print_losses(content)


if __name__ == "__main__":
    define_flags()
    sys.argv = cli.first_to_flag(sys.argv, "folder")
    cli.run(main)
