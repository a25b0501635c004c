"""The classes of Visual Genome: frequency, ties, COCO's 80, class lists as files."""

import json

import pytest

from maskx_tf.data.classes import Vocabulary, named_classes
from maskx_tf.errors import UserError
from tests import harness
from tf_records.visual_genome import classes as classes_lib

# COCO class -> synset, for all 80: 62 by name, 18 otherwise.
COCO_TO_SYNSET = """
person person.n.01, bicycle bicycle.n.01, car car.n.01, motorcycle motorcycle.n.01,
airplane airplane.n.01, bus bus.n.01, train train.n.01, truck truck.n.01, boat boat.n.01,
traffic_light traffic_light.n.01, fire_hydrant water_faucet.n.01, stop_sign sign.n.02,
parking_meter parking_meter.n.01, bench bench.n.01, bird bird.n.01, cat cat.n.01, dog dog.n.01,
horse horse.n.01, sheep sheep.n.01, cow cow.n.01, elephant elephant.n.01, bear bear.n.01,
zebra zebra.n.01, giraffe giraffe.n.01, backpack backpack.n.01, umbrella umbrella.n.01,
handbag bag.n.04, tie tie.n.01, suitcase bag.n.06, frisbee frisbee.n.01, skis ski.n.01,
snowboard snowboard.n.01, sports_ball ball.n.01, kite kite.n.01, baseball_bat baseball_bat.n.01,
baseball_glove baseball_glove.n.01, skateboard skateboard.n.01, surfboard surfboard.n.01,
tennis_racket tennis_racket.n.01, bottle bottle.n.01, wine_glass wineglass.n.01, cup cup.n.01,
fork fork.n.01, knife knife.n.01, spoon spoon.n.01, bowl bowl.n.01, banana banana.n.01,
apple apple.n.01, sandwich sandwich.n.01, orange orange.n.01, broccoli broccoli.n.01,
carrot carrot.n.01, hot_dog hotdog.n.01, pizza pizza.n.01, donut doughnut.n.02, cake cake.n.01,
chair chair.n.01, couch sofa.n.01, potted_plant plant.n.01, bed bed.n.01,
dining_table dinner_table.n.01, toilet toilet.n.01, tv television.n.01, laptop laptop.n.01,
mouse mouse.n.01, remote remote_control.n.01, keyboard keyboard.n.01,
cell_phone cellular_telephone.n.01, microwave microwave.n.01, oven oven.n.01, toaster toaster.n.01,
sink sink.n.01, refrigerator refrigerator.n.01, book book.n.01, clock clock.n.01, vase vase.n.01,
scissors scissors.n.01, teddy_bear teddy.n.01, hair_drier hand_blower.n.01,
toothbrush toothbrush.n.01
"""
EXPECTED = {
    name.replace("_", " "): synset
    for name, synset in (pair.split() for pair in COCO_TO_SYNSET.split(","))
}
# Each COCO class with a synset of its name, which is not always the one that is meant.
COUNTS = {f"{name.replace(' ', '_')}.n.01": 10 for name in EXPECTED}
COUNTS |= dict.fromkeys(EXPECTED.values(), 10)


def test_all_80_classes_of_coco():
    found = classes_lib.choose(COUNTS | {"tree.n.01": 5}, 1000)
    assert dict(zip(found.names[:80], found.synsets[:80], strict=True)) == EXPECTED
    assert list(found.names[:80]) == list(EXPECTED) == named_classes("coco")
    by_name = [n for n, s in EXPECTED.items() if classes_lib.COCO_SYNSETS.get(n) is None]
    assert (len(by_name), len(classes_lib.COCO_SYNSETS)) == (62, 18)
    # What is left has the name of its synset, by alphabet: also those of a COCO name unused.
    rest = sorted((COUNTS.keys() | {"tree.n.01"}) - set(EXPECTED.values()))
    assert found.names[80:] == found.synsets[80:] == tuple(rest)
    assert "fire_hydrant.n.01" in rest


def test_of_several_synsets_of_a_name_the_most_frequent_is_taken():
    counts = COUNTS | {"mouse.n.01": 3, "mouse.n.04": 7, "mouse.n.02": 7}
    found = dict(zip(*classes_lib.choose(counts, 1000), strict=True))
    assert found["mouse"] == "mouse.n.02"  # as frequent as .04, first by alphabet
    assert found["mouse.n.04"] == "mouse.n.04"


def test_ties_are_broken_by_alphabet_whatever_the_order():
    counts = {"d.n.01": 1, "b.n.01": 1, "z.n.01": 2, "c.n.01": 1, "a.n.02": 1}
    for items in (list(counts.items()), list(counts.items())[::-1]):
        assert classes_lib.choose(dict(items), 3).names[80:] == ("a.n.02", "b.n.01", "z.n.01")


def test_class_of_coco_outside_of_the_frequent_ones_is_kept_and_reported():
    """With the real data 79 of the 80 synsets are among the 3,000 and there are 3,001 classes."""
    counts = COUNTS | {"hand_blower.n.01": 2} | {f"x{i}.n.01": 5 for i in range(50)}
    number = len(counts) - 1
    found = classes_lib.choose(counts, number)
    assert len(found.names) == number + 1
    assert found.synsets[found.names.index("hair drier")] == "hand_blower.n.01"
    assert classes_lib.notes(found, counts, number) == [
        f"{number + 1} classes, 80 of them of COCO.",
        f"'hair drier' is kept though 'hand_blower.n.01' is not among the {number} most frequent "
        "(named 2 times).",
    ]


def test_class_of_coco_that_no_synset_names():
    counts = {synset: 1 for synset in EXPECTED.values() if synset != "toaster.n.01"}
    found = classes_lib.choose(counts, 1000)
    assert len(found.names) == 80
    assert found.synsets[found.names.index("toaster")] is None
    (_, note) = classes_lib.notes(found, counts, 1000)
    assert note == "No synset has the name of 'toaster': the class has no boxes."


def test_a_class_list_is_a_vocabulary_and_comes_back(tmp_path):
    counts = {synset: 1 for synset in EXPECTED.values() if synset != "toaster.n.01"}
    found = classes_lib.choose(counts | {"tree.n.01": 1}, 1000)
    path = tmp_path / "vocabulary.json"
    found.save(path)
    assert Vocabulary.load(path) == found.vocabulary
    # Other counts would give `mouse` another synset; the file decides.
    assert classes_lib.load(str(path), {"mouse.n.09": 5, "toaster.n.02": 1}) == found
    assert json.loads(path.read_text())[28] == {"id": 29, "name": "suitcase", "synset": "bag.n.06"}
    assert (
        path.read_text().splitlines()[1] == '{"id": 1, "name": "person", "synset": "person.n.01"},'
    )


def test_lists_of_ones_own(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("# mine\ntree.n.01\nhandbag\nperson\n")
    found = classes_lib.load(str(path), {"person.n.02": 3, "person.n.01": 2})
    assert found.names == ("tree.n.01", "handbag", "person")
    assert found.synsets == ("tree.n.01", "bag.n.04", "person.n.02")
    path = tmp_path / "mine.json"
    categories = [{"id": 3, "name": "oak", "synset": "tree.n.01"}, {"id": 9, "name": "cup"}]
    path.write_text(json.dumps({"categories": categories}))
    assert classes_lib.load(str(path), {}) == (("oak", "cup"), ("tree.n.01", None))


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        ([{"id": 1, "name": "oak"}], "class 'oak' is neither a synset like 'bag.n.01'"),
        ([{"id": 1, "name": "oak", "synset": "x"}], "class 'oak' has synset 'x'"),
        ([{"id": 1, "name": "oak", "synset": 5}], "class 'oak' has synset 5"),
        (
            [{"id": 1, "name": "couch"}, {"id": 2, "name": "sofa.n.01"}],
            "classes 'couch' and 'sofa.n.01' both have the synset 'sofa.n.01'",
        ),
        ([], "holds no list of categories"),
    ],
)
def test_lists_that_cannot_be_used(tmp_path, categories, message):
    path = tmp_path / "v.json"
    path.write_text(json.dumps(categories))
    with pytest.raises(UserError, match=message) as error:
        classes_lib.load(str(path), {})
    assert str(path) in str(error.value)


def test_the_names_of_coco_are_those_of_its_json():
    assert named_classes("coco") == list(Vocabulary.load(harness.coco_mini("val")[0]).names)
