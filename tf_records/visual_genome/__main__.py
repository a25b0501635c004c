r"""Writes the records of Visual Genome.

Example:
  maskx records visual-genome --objects=objects.json --image_data=image_data.json \
      --images=vg --output_dir=records/vg

The rules, for classes, splits and each known defect, are in docs/visual_genome.md.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from absl import flags

from maskx_tf.data.coco.issues import Issue
from maskx_tf.data.records.manifest import FILE_NAME, Manifest
from maskx_tf.errors import UserError
from maskx_tf.system import cli
from tf_records import coco_objects, writer
from tf_records import output as output_lib
from tf_records.output import Output
from tf_records.visual_genome import classes as classes_lib
from tf_records.visual_genome import data as data_lib
from tf_records.visual_genome import items as items_lib
from tf_records.visual_genome.data import Data, Options
from tf_records.visual_genome.images import Image
from tf_records.visual_genome.splits import SPLITS

VOCABULARY = "vocabulary.json"


class Converted(NamedTuple):
    """Manifest of each split, the classes, and what is to be known, a line each."""

    manifests: dict[str, Manifest]
    classes: classes_lib.Classes
    notes: list[str]


def convert(
    objects: str,
    image_data: str,
    images: str,
    output: Output,
    *,
    coco_annotations: str = "",
    options: Options = Options(),  # noqa: B008  (immutable)
) -> Converted:
    """Writes the records of each split, then the class list beside them.

    Args:
      objects: path of objects.json.
      image_data: path of image_data.json.
      images: directory with VG_100K and VG_100K_2, or with the image files themselves.
      output: its directory gets one for each split, its name is that of the split.
      coco_annotations: path of COCO's instances_val2017.json.
      options: see there.

    Raises:
      UserError: a json or an image is unusable, or records are there.
    """
    _check(images, coco_annotations, options)
    data = data_lib.read(objects, image_data, coco_annotations, options)
    class_list = pathlib.Path(output.directory) / VOCABULARY
    _check_class_list(class_list, data.classes, output)
    written = [split for split in options.splits if data.splits.get(split)]
    if not written:
        raise UserError(f"--splits={','.join(options.splits)}: there are no images for them.")
    # Unless all that a whole run writes is there, finished splits are those of an interrupted one.
    whole = [class_list, *(class_list.parent / split / FILE_NAME for split in written)]
    reuse = output.reuse or not all(path.exists() for path in whole)
    resumed = dataclasses.replace(output, reuse=reuse)
    issues = data.issues_by_split(written[0])
    manifests = {
        split: _write(data, split, images, resumed, issues[split], options) for split in written
    }
    data.classes.save(class_list)
    empty = [f"{split} has no images and was not written." for split in options.splits
             if split not in written]  # fmt: skip
    return Converted(manifests, data.classes, data.notes + empty)


def _check(images: str, coco_annotations: str, options: Options) -> None:
    if not pathlib.Path(images).is_dir():
        raise UserError(f"--images={images} is not a directory.")
    unknown = [split for split in options.splits if split not in SPLITS]
    if unknown or not options.splits or len(set(options.splits)) < len(options.splits):
        known = ", ".join(SPLITS)
        raise UserError(f"--splits={','.join(options.splits)} must be some of {known}, each once.")
    if not coco_annotations and not options.keep_coco_val:
        raise UserError(
            "Half of Visual Genome is in COCO: give --coco_annotations=instances_val2017.json, so "
            "that no image of val2017 gets into train, or accept them with --keep_coco_val."
        )
    if coco_annotations and options.keep_coco_val:
        raise UserError("--keep_coco_val and --coco_annotations exclude each other; drop one.")


def _check_class_list(path: pathlib.Path, classes: classes_lib.Classes, output: Output) -> None:
    if not path.exists() or output.overwrite:
        return
    if classes_lib.load(str(path), {}) != classes:
        raise UserError(
            f"{path} lists other classes than these records would have; add --overwrite, give "
            f"--vocabulary={path} for more records with its classes, or name another directory."
        )


def _write(
    data: Data,
    split: str,
    images: str,
    output: Output,
    issues: Sequence[Issue],
    options: Options,
) -> Manifest:
    directory = str(pathlib.Path(output.directory) / split)
    output = dataclasses.replace(output, directory=directory, name=split)
    chosen = data.splits[split]
    source = data.source | {"split": split, "num_images": len(chosen)}
    entries = data.images.images
    if output.reusable(source, len(chosen)) is None:
        located = _locate(data, split, images, options.skip_bad_images)
        entries = [located.get(index, entry) for index, entry in enumerate(entries)]
    vocabulary = data.classes.vocabulary
    classes = {number: (number, name) for number, name in enumerate(vocabulary.names, start=1)}
    settings = items_lib.Settings(
        coco_objects.Settings(images, classes, 0, options.skip_bad_images), options.drop_duplicates
    )
    return writer.write(
        functools.partial(items_lib.encode_item, settings=settings),
        items_lib.Items(data.table, entries, chosen),
        output,
        vocabulary=vocabulary,
        source=source,
        issues=issues,
    )


def _locate(data: Data, split: str, directory: str, skip_bad_images: bool) -> Mapping[int, Image]:
    """Finds missing files before hours of work; the images whose file lies without its folder."""
    moved, missing = {}, []
    for index in data.splits[split]:
        image = data.images.images[index]
        path = os.path.join(directory, image.file_name)
        name = os.path.basename(path)
        if os.path.isfile(path):
            continue
        if os.path.isfile(os.path.join(directory, name)):
            moved[index] = image._replace(file_name=name)
        else:
            missing.append((path, image.image_id))
    if missing and not skip_bad_images:
        raise UserError(
            f"{len(missing)} of {len(data.splits[split])} image files of {split} are missing, the "
            f"first is {missing[0][0]} (image {missing[0][1]}). Check --images, or add "
            "--skip_bad_images to drop and list such images."
        )
    return moved


def define_flags() -> None:
    """Defines this command's flags."""
    flags.DEFINE_string("objects", None, "objects.json, version 1.0, 1.2 or 1.4.", required=True)
    flags.DEFINE_string("image_data", None, "image_data.json.", required=True)
    flags.DEFINE_string("images", None, "Directory with VG_100K and VG_100K_2.", required=True)
    flags.DEFINE_string(
        "output_dir", None, "Directory to write to; gets one directory per split.", required=True
    )
    flags.DEFINE_string(
        "coco_annotations", "", "COCO's instances_val2017.json: its images are val."
    )
    flags.DEFINE_bool("keep_coco_val", False, "Accept images of val2017 in train.")
    flags.DEFINE_integer("num_classes", 3000, "Number of synsets to use, the most frequent ones.")
    flags.DEFINE_string("vocabulary", "", "Class list (.json, .txt) to use instead.")
    flags.DEFINE_list("splits", list(SPLITS), "Splits to write.")
    flags.DEFINE_integer("test_images", 5000, "Number of images in test, none of them in COCO.")
    flags.DEFINE_bool(
        "drop_duplicates", False, "Drop objects with the class and box of an earlier one."
    )
    flags.DEFINE_bool("skip_bad_images", False, "Drop and list missing or corrupt images.")
    output_lib.define_flags()


def main() -> None:
    """Reads the flags and writes the records."""
    values = flags.FLAGS
    options = Options(
        num_classes=values.num_classes,
        vocabulary=values.vocabulary,
        splits=tuple(values.splits),
        test_images=values.test_images,
        keep_coco_val=values.keep_coco_val,
        drop_duplicates=values.drop_duplicates,
        skip_bad_images=values.skip_bad_images,
    )
    converted = convert(
        values.objects,
        values.image_data,
        values.images,
        output_lib.from_flags(values.output_dir, "train"),
        coco_annotations=values.coco_annotations,
        options=options,
    )
    for split, manifest in converted.manifests.items():
        print(writer.describe(manifest, str(pathlib.Path(values.output_dir) / split)))
    print("\n".join(converted.notes))


if __name__ == "__main__":
    define_flags()
    cli.run(main)
