"""Shapes: exact masks, pairs, sets A and B, determinism."""

import itertools
import json
import pathlib
import re
import subprocess
import sys
import tomllib

import numpy as np
import pytest
from pycocotools import mask as mask_lib

from maskx_tf.data import word_vectors
from maskx_tf.data.classes import Vocabulary, load_mask_classes
from maskx_tf.data.records import manifest as manifest_lib
from maskx_tf.data.records.schema import read_records
from maskx_tf.errors import UserError
from maskx_tf.evaluation.factors import explained_share
from tests import harness
from tf_records.shapes import dataset as shapes
from tf_records.shapes import draw
from tf_records.shapes.objects import CLASS_NAMES, SHAPES, TEXTURE_NAMES, SceneOptions, set_a_names
from tf_records.shapes.scene import make_scene

OPTIONS = SceneOptions()
WITH_GRABCUT = {"train_images": 2, "val_images": 1, "workers": 1, "grabcut": True}


@pytest.fixture(scope="module")
def scenes():
    return [make_scene(0, 0, index, OPTIONS) for index in range(150)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("angle", [0.0, -0.2, 0.2])
def test_silhouettes_touch_all_sides_of_their_box(shape, angle):
    for height, width in ((30, 24), (50, 52), (21, 28)):
        mask = draw.silhouette(shape, height, width, angle)
        assert mask.shape == (height, width)
        assert mask[0].any()
        assert mask[-1].any()
        assert mask[:, 0].any()
        assert mask[:, -1].any()
        assert 0.2 < mask.mean() <= 1


def test_silhouettes_differ_clearly():
    masks = {shape: draw.silhouette(shape, 40, 40, 0.0) for shape in SHAPES}
    for one in masks:
        for other in masks:
            if one < other:
                union = (masks[one] | masks[other]).sum()
                assert (masks[one] & masks[other]).sum() / union < 0.83, (one, other)


def test_classes_and_the_balance_of_a_and_b():
    assert len(CLASS_NAMES) == len(set(CLASS_NAMES)) == 72
    set_a, set_b = set_a_names()
    assert len(set_a) == len(set_b) == 36
    assert sorted(set_a + set_b) == sorted(CLASS_NAMES)
    for half in (set_a, set_b):  # each half has each shape 3 times and each texture 6 times
        adjectives, nouns = zip(*(name.split() for name in half), strict=True)
        assert {nouns.count(noun) for noun in nouns} == {3}
        assert {adjectives.count(adjective) for adjective in adjectives} == {6}
        # … and any two textures under some shape
        together = {
            frozenset(pair)
            for noun in set(nouns)
            for pair in itertools.combinations(
                [a for a, n in zip(adjectives, nouns, strict=True) if n == noun], 2
            )
        }
        assert len(together) == 15


def test_images_are_the_same_for_a_seed_and_differ_otherwise():
    image, objects = make_scene(0, 0, 5, OPTIONS)
    again, same = make_scene(0, 0, 5, OPTIONS)
    np.testing.assert_array_equal(image, again)
    assert [item.box_yxyx for item in objects] == [item.box_yxyx for item in same]
    for other in ((1, 0, 5), (0, 1, 5), (0, 0, 6)):
        assert (make_scene(*other, OPTIONS)[0] != image).any()


def test_masks_are_exact_and_do_not_overlap(scenes):
    for image, objects in scenes:
        assert image.shape == (96, 96, 3)
        assert objects
        assert sum(item.visible.astype(int) for item in objects).max() <= 1
        for item in objects:
            y1, x1, y2, x2 = item.box_yxyx
            assert 0 <= y1 < y2 <= 96
            assert 0 <= x1 < x2 <= 96
            assert item.visible_share >= OPTIONS.min_visible
            inside = item.visible[y1:y2, x1:x2]
            assert inside.sum() == item.visible.sum()
            assert not (inside & ~item.silhouette).any()


def test_plain_objects_have_one_colour_under_the_noise():
    quiet = SceneOptions(image_noise=0.0)
    found = 0
    for index in range(20):
        image, objects = make_scene(0, 0, index, quiet)
        for item in objects:
            if item.texture == "plain":
                assert (np.ptp(image[item.visible].astype(int), axis=0) == 0).all()
                found += 1
    assert found


def test_objects_come_in_pairs_of_nearly_the_same_box(scenes):
    pairs = total = 0
    for _, objects in scenes:
        total += len(objects)
        for lower, upper in itertools.pairwise(objects):
            if not upper.is_upper:
                continue
            pairs += 1
            assert lower.shape == upper.shape
            assert lower.texture != upper.texture
            sides, lower_sides = (
                np.subtract(item.box_yxyx[2:], item.box_yxyx[:2]) for item in (upper, lower)
            )
            assert (sides >= OPTIONS.upper_scale[0] * lower_sides - 0.5).all()
            assert (sides <= lower_sides).all()
            assert (np.array(upper.box_yxyx[:2]) >= lower.box_yxyx[:2]).all()
            assert (np.array(upper.box_yxyx[2:]) <= lower.box_yxyx[2:]).all()
            share = upper.kept.sum() / upper.silhouette.sum()
            low, high = OPTIONS.torn_share
            assert low - 0.02 <= share <= high + 0.02
    assert 2 * pairs / total == pytest.approx(OPTIONS.pair_share, abs=0.08)


def test_files_records_and_masks_agree(tmp_path):
    manifests = shapes.generate(str(tmp_path), train_images=6, val_images=3, workers=1)
    assert {name: item.num_images for name, item in manifests.items()} == {"train": 6, "val": 3}
    assert manifests["train"].issues == {}
    content = json.loads((tmp_path / "instances_train.json").read_text())
    assert Vocabulary.load(tmp_path / "instances_train.json").names == CLASS_NAMES
    shards = manifest_lib.find_shards([str(tmp_path / "records" / "train")])
    items = [(record, item) for record in read_records(shards) for item in record.objects]
    assert len(items) == len(content["annotations"]) > 6
    for annotation, (record, item) in zip(content["annotations"], items, strict=True):
        assert record.encoded == (tmp_path / "train" / record.file_name).read_bytes()
        assert annotation["image_id"] == record.image_id
        assert CLASS_NAMES[annotation["category_id"] - 1] == item.class_name
        x, y, width, height = annotation["bbox"]
        np.testing.assert_allclose(item.box_yxyx, [y, x, y + height, x + width], atol=1e-4)
        full = mask_lib.decode(annotation["segmentation"])
        np.testing.assert_array_equal(item.mask, full[y : y + height, x : x + width])
    vocabulary = manifests["train"].vocabulary
    set_a = load_mask_classes(str(tmp_path / "set_a.txt"), vocabulary)
    set_b = load_mask_classes(str(tmp_path / "set_b.txt"), vocabulary)
    assert sorted(set_a + set_b) == list(range(1, 73))
    assert manifests["val"].set_a == tuple(vocabulary.names[index - 1] for index in set_a)


def test_word_vectors_say_how_words_are_used(tmp_path):
    shapes.generate(str(tmp_path), train_images=1, val_images=0, seed=3, workers=1)
    words = {*SHAPES, *TEXTURE_NAMES}
    vectors = word_vectors.read_text(str(tmp_path / "word_vectors.txt"), words)
    assert set(vectors) == words
    assert {vector.shape for vector in vectors.values()} == {(50,)}

    def cosine(one, other):
        one, other = vectors[one], vectors[other]
        return one @ other / np.linalg.norm(one) / np.linalg.norm(other)

    assert cosine("striped", "barred") > 0.5 > abs(cosine("striped", "star"))
    classes = word_vectors.class_vectors(str(tmp_path / "word_vectors.txt"), CLASS_NAMES).vectors
    assert len(np.unique(classes, axis=0)) == 72
    factors = np.array([name.split() for name in CLASS_NAMES])
    assert explained_share(classes, factors) == pytest.approx(1)
    alone = word_vectors.class_vectors("randn_class", CLASS_NAMES).vectors
    assert explained_share(alone, factors) < 0.5


def test_records_with_masks_by_grabcut(tmp_path):
    made = shapes.generate(str(tmp_path), train_images=3, val_images=1, workers=1, grabcut=True)
    assert set(made) == {"train", "train_grabcut", "val"}
    boxes = made["train"].num_objects
    assert made["train"].mask_sources == {"human": boxes}
    assert made["train_grabcut"].mask_sources == {"grabcut": boxes}
    again = shapes.generate(
        str(tmp_path), train_images=3, val_images=1, workers=1, grabcut=True, reuse=True
    )
    assert again == made


def all_files(root):
    paths = [path for path in sorted(pathlib.Path(root).rglob("*")) if path.is_file()]
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


@pytest.mark.thorough
def test_files_do_not_depend_on_the_number_of_processes(tmp_path):
    shapes.generate(str(tmp_path / "1"), train_images=6, val_images=0, seed=7, workers=1)
    # As a command: what its processes are sent must be found by them too.
    options = [f"--output_dir={tmp_path / '2'}", "--workers=2", "--seed=7"]
    command = [sys.executable, "-m", "tf_records.shapes", *options]
    counts = ["--train_images=6", "--val_images=0"]
    subprocess.run([*command, *counts], cwd=harness.REPOSITORY, check=True)
    assert all_files(tmp_path / "1") == all_files(tmp_path / "2")


class Stopped(Exception):
    """What ends a run."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The files of a run that nothing stopped."""
    root = tmp_path_factory.mktemp("whole")
    shapes.generate(str(root), **WITH_GRABCUT)
    return all_files(root)


@pytest.mark.parametrize("step", range(10))
def test_a_run_that_stops_anywhere_goes_on(tmp_path, monkeypatch, whole, step):
    """Until its end, the file is absent by which a study knows finished data."""
    calls = itertools.count()

    def stopping(function):
        def run(*arguments, **options):
            if next(calls) == step:
                raise Stopped
            return function(*arguments, **options)

        return run

    with monkeypatch.context() as patch:
        patch.setattr(shapes, "write_split", stopping(shapes.write_split))
        patch.setattr(shapes, "write_atomically", stopping(shapes.write_atomically))
        patch.setattr(shapes.coco, "convert", stopping(shapes.coco.convert))
        with pytest.raises(Stopped):
            shapes.generate(str(tmp_path), **WITH_GRABCUT)
    study = tomllib.loads((harness.REPOSITORY / "configs/shapes/study.toml").read_text())
    (prepare,) = study["prepare"]
    (output_dir,) = re.findall(r"--output_dir=(\S+)", prepare["command"])
    last = str(pathlib.PurePath(prepare["creates"]).relative_to(output_dir))
    assert last in whole and not (tmp_path / last).exists()
    shapes.generate(str(tmp_path), **WITH_GRABCUT)
    assert all_files(tmp_path) == whole


def test_data_that_are_there(tmp_path):
    def generate(**options):
        options = {"train_images": 2, "val_images": 1, "workers": 1} | options
        return shapes.generate(str(tmp_path), **options)

    first = generate()
    before = all_files(tmp_path)
    with pytest.raises(UserError, match="holds finished records; add --reuse"):
        generate()
    assert generate(reuse=True) == first
    with pytest.raises(UserError, match="another source or other settings"):
        generate(reuse=True, seed=1)
    assert all_files(tmp_path) == before
    assert generate(overwrite=True, seed=1) != first
    with pytest.raises(UserError, match="--val_images=-1"):
        generate(val_images=-1, overwrite=True)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_share_of_pairs_reaches_scenes(share):
    """At the ends of the dial every object is alone, or every second one lies on the one below."""
    options = SceneOptions(pair_share=share)
    objects = [item for i in range(20) for item in make_scene(0, 1, i, options)[1]]
    assert sum(item.is_upper for item in objects) == share * len(objects) / 2
