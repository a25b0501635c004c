"""Named sets A, the published random splits, and new random ones."""

import re

import numpy as np
import pytest

from maskx_tf.data.classes import (
    Vocabulary,
    load_mask_classes,
    named_classes,
    random_names,
    read_names,
)
from maskx_tf.errors import UserError

COCO = Vocabulary.from_names(named_classes("coco"))
# Some of the published splits, as class ids 1..80.
PUBLISHED = {
    "E1_A20B60": "7 9 10 13 14 28 35 36 46 48 51 55 56 58 60 62 64 67 74 78",
    "E3_A30B50": "1 4 5 6 7 10 17 19 20 24 30 32 35 36 37 38 42 43 47 48 51 53 57 59 61 65 69 70 "
    "76 77",
    "E5_A20B60": "1 2 5 9 14 16 18 19 22 23 27 28 30 31 43 48 49 62 63 70",
    "E5_A40B40": "3 7 10 11 12 13 14 15 18 19 20 21 22 25 29 30 31 32 33 34 35 36 39 40 41 45 46 "
    "49 56 58 64 65 71 72 73 74 75 77 78 80",
}
SIZES = (20, 30, 40, 50, 60)
SPLITS = [f"E{trial}_A{size}B{80 - size}" for trial in range(1, 6) for size in SIZES]


def test_the_files_are_the_draws_of_one_generator():
    """Seeded once with 3, drawn trial by trial, size by size; NumPy's legacy stream is frozen."""
    random = np.random.RandomState(3)
    for name in SPLITS:
        size = int(re.search(r"_A(\d+)B", name)[1])
        assert named_classes(name) == random_names(COCO.names, size, random), name


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_ids(name):
    assert load_mask_classes(name, COCO) == tuple(map(int, PUBLISHED[name].split()))


def test_coco_is_all_of_coco():
    assert load_mask_classes("coco", COCO) == tuple(range(1, 81))
    more = Vocabulary.from_names(["bag.n.01", *COCO.names])
    assert load_mask_classes("coco", more) == tuple(range(2, 82))
    with pytest.raises(UserError, match="--mask_classes=coco: Unknown class 'person'"):
        load_mask_classes("coco", Vocabulary.from_names(["cat"]))


@pytest.mark.parametrize("name", ["E6_A20B60", "E1_A20B61", "../splits/voc", "coco.txt", ""])
def test_other_names_are_no_sets(name):
    with pytest.raises(UserError, match=r"There is no set of classes .*coco, E1_A20B60, .*voc"):
        named_classes(name)


def test_command_line(run_command, tmp_path):
    path = tmp_path / "a.txt"
    command = "tf_records.splits", f"--output={path}", "--vocabulary=coco"
    done = run_command(*command, "--size=20", "--seed=7")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{path}: 20 of the 80 classes of coco.\n"
    first = path.read_bytes()
    names = read_names(path)
    assert len(set(names)) == 20
    assert load_mask_classes(str(path), COCO) == COCO.ids_of(names)  # in the vocabulary's order
    assert first.startswith(b"# 20 of 80 classes, drawn with seed 7.\n")
    assert names == random_names(COCO.names, 20, np.random.RandomState(7))
    wrong = run_command(*command, "--size=81")
    assert (wrong.returncode, path.read_bytes()) == (2, first)
    assert wrong.stderr == "error: --size=81 must be between 1 and the 80 classes.\n"


def test_seeds_differ_and_are_stable():
    draws = [random_names(COCO.names, 5, np.random.RandomState(seed)) for seed in (7, 8)]
    assert draws[0] != draws[1]
    assert draws[0] == ["horse", "skateboard", "cup", "dining table", "tv"]
    with pytest.raises(UserError, match="--size=0"):
        random_names(COCO.names, 0, np.random.RandomState(0))
