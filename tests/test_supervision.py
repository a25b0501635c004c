"""Masks that a run means to train with and the records do not hold are named."""

import dataclasses
import pathlib

import pytest

from maskx_tf.data import supervision
from maskx_tf.data.classes import Vocabulary
from maskx_tf.data.records.manifest import find_records
from maskx_tf.errors import UserError
from tests import harness
from tf_records import coco
from tf_records.output import Output

PETS = Vocabulary.from_names(("cat", "dog", "bird"))


@pytest.fixture
def records(tmp_path):
    """Cats have a mask, dogs boxes only, birds nothing."""
    annotations = [
        harness.annotation(1, [5, 5, 30, 20], category_id=1),
        harness.annotation(1, [5, 5, 30, 20], category_id=2, segmentation=[]),
    ]
    made = harness.write_coco(tmp_path / "coco", annotations)
    coco.convert(*made, Output(str(tmp_path / "records"), "x", workers=1))
    return str(tmp_path / "records")


def test_classes_of_set_a_that_have_boxes_only_are_named(records):
    found = find_records([records])
    assert supervision.check(found, PETS, (1, 3)) == ""
    warning = supervision.check(found, PETS, (1, 2, 3))
    assert warning.startswith(
        "warning: 1 of the 3 classes of set A have boxes in --train_records but no mask: dog."
    )


def test_masks_may_be_in_other_records(records):
    found = find_records([records])
    (directory, manifest), *_ = found.manifests.items()
    other = dataclasses.replace(manifest, class_counts={"dog": (1, 1)})
    manifests = {directory: manifest, pathlib.Path("other"): other}
    assert supervision.check(found._replace(manifests=manifests), PETS, (1, 2)) == ""


def test_records_without_any_mask_of_set_a_are_refused(records):
    with pytest.raises(UserError, match="No object of the 2 classes of --mask_classes has a mask"):
        supervision.check(find_records([records]), PETS, (2, 3))
    with pytest.raises(UserError, match="--mask_classes=none leaves the mask head untrained"):
        supervision.check(find_records([records]), PETS, ())


@pytest.mark.parametrize("weight", [1, 0.5])
def test_weights_are_seen_with_and_without_a_manifest(tmp_path, weight):
    annotations = [harness.annotation(1, [5, 5, 30, 20], mask_weight=weight)]
    made = harness.write_coco(tmp_path / "coco", annotations)
    coco.convert(*made, Output(str(tmp_path / "records"), "x", workers=1))
    assert supervision.has_weights(find_records([str(tmp_path / "records")])) == (weight != 1)
    (tmp_path / "records" / "manifest.json").unlink()
    (tmp_path / "records" / "empty.tfrecord").touch()
    files = find_records([str(tmp_path / "records" / "*.tfrecord")])
    assert supervision.has_weights(files) == (weight != 1)


def test_files_without_a_manifest_may_hold_any_mask(records):
    pathlib.Path(records, "manifest.json").unlink()
    assert supervision.check(find_records([f"{records}/*.tfrecord"]), PETS, (2,)) == ""
