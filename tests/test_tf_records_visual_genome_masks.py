"""COCO's records read with the classes of Visual Genome: stage 2 trains T on COCO's masks."""

import json

import numpy as np
import pytest

from maskx_tf.config import Config
from maskx_tf.data.classes import Vocabulary, load_mask_classes, named_classes
from maskx_tf.data.pipeline import make_dataset
from maskx_tf.data.records import manifest as manifest_lib
from maskx_tf.data.records.schema import read_records
from tests import harness
from tests.visual_genome_data import convert, vg_entry, vg_image, vg_object, write
from tf_records import coco
from tf_records.output import Output

CONFIG = Config(
    image_min_side=64, image_max_side=64, batch_size=1, max_objects=100, mask_crop_size=14
)
NAMES = named_classes("coco")


@pytest.fixture(scope="module")
def coco_records(tmp_path_factory):
    """One image with an object of each of COCO's classes, ids with gaps as in COCO."""
    directory = tmp_path_factory.mktemp("coco")
    boxes = [(7 * (i % 8), 4 * (i // 8), 6 - i % 2, 3) for i in range(80)]
    items = [harness.annotation(1, list(box), category_id=2 * i + 1) for i, box in enumerate(boxes)]
    categories = [{"id": 2 * i + 1, "name": name} for i, name in enumerate(NAMES)]
    path, images = harness.write_coco(directory, items, categories=categories)
    coco.convert(path, images, Output(str(directory / "records"), "coco", workers=1))
    return str(directory / "records")


@pytest.fixture(scope="module")
def vg_directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("vg")
    objects = [vg_object(synset, (1, 1, 9, 9), index) for index, synset in enumerate(
        ["person.n.01", "bag.n.01", "bag.n.04", "zoo.n.01", "tree.n.01"])]  # fmt: skip
    paths = write(directory / "vg", [vg_entry(1, *objects)], [vg_image(1)])
    convert(paths, directory / "records")
    return directory / "records"


def labels_of(records, vocabulary, mask_class_ids):
    dataset = make_dataset([records], CONFIG, vocabulary, mask_class_ids, training=False, seed=0)
    ((_, labels),) = dataset.as_numpy_iterator()
    return {key: value[0] for key, value in labels.items()}


def test_coco_records_have_the_ids_of_the_vocabulary_and_all_masks(coco_records, vg_directory):
    vocabulary = Vocabulary.load(vg_directory / "vocabulary.json")
    set_a = load_mask_classes("coco", vocabulary)
    assert (vocabulary.num_classes, set_a) == (83, tuple(range(1, 81)))
    labels = labels_of(coco_records, vocabulary, set_a)
    assert labels["classes"].tolist() == [*range(1, 81), *[0] * 20]
    assert labels["has_mask"].tolist() == [True] * 80 + [False] * 20
    assert labels["masks"][:80].all()
    own = labels_of(coco_records, Vocabulary.from_names(NAMES), set_a)
    for key, value in own.items():  # as read with COCO's own classes
        np.testing.assert_array_equal(labels[key], value)


def test_order_and_ids_of_the_vocabulary_do_not_matter(coco_records, tmp_path):
    names = ["zoo.n.01", *NAMES[::-1], "bag.n.01"]
    path = tmp_path / "v.json"
    path.write_text(json.dumps([{"id": 7 * i, "name": name} for i, name in enumerate(names)]))
    vocabulary = Vocabulary.load(path)
    labels = labels_of(coco_records, vocabulary, load_mask_classes("coco", vocabulary))
    assert labels["classes"][:80].tolist() == [*range(81, 1, -1)]
    assert labels["has_mask"][:80].all()


@pytest.mark.parametrize("spec", ["voc", "E2_A30B50", "file"])
def test_set_a_may_be_some_of_them(coco_records, vg_directory, tmp_path, spec):
    names = ["zebra", "person"] if spec == "file" else named_classes(spec)
    if spec == "file":
        spec = str(tmp_path / "a.txt")
        (tmp_path / "a.txt").write_text("\n".join(names))
    vocabulary = Vocabulary.load(vg_directory / "vocabulary.json")
    labels = labels_of(coco_records, vocabulary, load_mask_classes(spec, vocabulary))
    assert (labels["classes"] > 0).sum() == 80  # every box is there
    with_mask = [NAMES[number - 1] for number in labels["classes"][labels["has_mask"]]]
    assert sorted(with_mask) == sorted(names)


def test_visual_genome_and_coco_meet_in_one_class(coco_records, vg_directory):
    vocabulary = manifest_lib.vocabulary_of([str(vg_directory / "train"), coco_records])
    assert vocabulary.num_classes == 83
    labels = labels_of(str(vg_directory / "train"), vocabulary, range(1, 84))
    names = [vocabulary.names[number - 1] for number in labels["classes"][:5]]
    assert names == ["person", "bag.n.01", "handbag", "zoo.n.01", "tree.n.01"]
    assert not labels["has_mask"].any()


def test_coco_excerpt_loses_nothing(vg_directory, tmp_path):
    path, images = harness.coco_mini("val")
    coco.convert(path, images, Output(str(tmp_path / "r"), "val", workers=1))
    vocabulary = Vocabulary.load(vg_directory / "vocabulary.json")
    set_a = load_mask_classes("coco", vocabulary)
    dataset = make_dataset([str(tmp_path / "r")], CONFIG, vocabulary, set_a, training=False, seed=0)
    found = {int(features["image_id"][0]): labels for features, labels in dataset}
    records = list(read_records(manifest_lib.find_shards([str(tmp_path / "r")])))
    assert len(found) == len(records) == 79
    for record in records:
        labels = found[record.image_id]
        wanted = [(vocabulary.id_of(item.class_name), item.mask is not None and not item.is_crowd)
                  for item in record.objects]  # fmt: skip
        classes, masks = labels["classes"][0].numpy(), labels["has_mask"][0].numpy()
        kept = classes > 0
        assert sorted(zip(classes[kept].tolist(), masks[kept].tolist(), strict=True)) == sorted(
            wanted
        )
