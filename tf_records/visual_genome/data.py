"""Reads all jsons of Visual Genome and decides on classes, splits and objects: `read`."""

from __future__ import annotations

import collections
import hashlib
import pathlib
from typing import Any, NamedTuple

from maskx_tf.data.coco.issues import Issue
from tf_records.visual_genome import classes as classes_lib
from tf_records.visual_genome import images as images_lib
from tf_records.visual_genome import items as items_lib
from tf_records.visual_genome import objects as objects_lib
from tf_records.visual_genome import splits as splits_lib


class Options(NamedTuple):
    """How records are made.

    Attributes:
      num_classes: of the most frequent synsets.
      vocabulary: path of a class list to use instead; empty: none.
      splits: those to write, of train, val and test.
      test_images: number of images in test.
      keep_coco_val: go without a COCO json, so that images of its val2017 may be in train.
      drop_duplicates: drop objects with the class and box of an earlier one of the image.
      skip_bad_images: drop and list missing or corrupt images, instead of an error.
    """

    num_classes: int = 3000
    vocabulary: str = ""
    splits: tuple[str, ...] = splits_lib.SPLITS
    test_images: int = 5000
    keep_coco_val: bool = False
    drop_duplicates: bool = False
    skip_bad_images: bool = False


class Data(NamedTuple):
    """What the jsons hold.

    Attributes:
      images: all images, and what was wrong with their entries.
      splits: split -> indices of its images; a split without any is absent.
      classes: of the records.
      table: objects of these classes, by image.
      issues: everything that was dropped or repaired so far.
      source: fingerprints and settings, for the manifest.
      notes: what is to be known, a line each.
    """

    images: images_lib.Images
    splits: dict[str, list[int]]
    classes: classes_lib.Classes
    table: items_lib.Table
    issues: list[Issue]
    source: dict[str, Any]
    notes: list[str]

    def issues_by_split(self, default: str) -> dict[str, list[Issue]]:
        """The issues of each split; those of unknown images are with `default`."""
        owner = {
            self.images.images[index].image_id: split
            for split, indices in self.splits.items()
            for index in indices
        }
        found: dict[str, list[Issue]] = collections.defaultdict(list)
        for issue in self.issues:
            known = None if issue.image_id is None else owner.get(issue.image_id)
            found[known or default].append(issue)
        return found


def read(objects: str, image_data: str, coco_annotations: str, options: Options) -> Data:
    """Reads the files, see `visual_genome.convert`; UserError if one is unusable."""
    coco = splits_lib.read_coco(coco_annotations) if coco_annotations else splits_lib.NO_COCO
    images = images_lib.read(image_data)
    assigned = splits_lib.assign(images.images, coco, options.test_images)
    splits: dict[str, list[int]] = collections.defaultdict(list)
    for index, split in enumerate(assigned):
        splits[split].append(index)
    found = objects_lib.read(objects, images.images)
    counts = found.counts
    if options.vocabulary:
        classes = classes_lib.load(options.vocabulary, counts)
    else:
        classes = classes_lib.choose(counts, options.num_classes)
    table = items_lib.make_table(found, classes, len(images.images))
    source = {
        "objects": pathlib.Path(objects).name,
        "objects_sha256": found.sha256,
        "image_data_sha256": images.sha256,
        "coco_annotations_sha256": coco.sha256,
        "classes_sha256": hashlib.sha256(repr(tuple(classes)).encode()).hexdigest(),
        "test_images": options.test_images,
        "drop_duplicates": options.drop_duplicates,
        "skip_bad_images": options.skip_bad_images,
    }
    number = None if options.vocabulary else options.num_classes
    notes = classes_lib.notes(classes, counts, number) + splits_lib.notes(images.images, coco)
    issues = images.issues + found.issues + table.issues
    return Data(images, dict(splits), classes, table, issues, source, notes)
