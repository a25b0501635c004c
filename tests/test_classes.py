"""Vocabularies and set A."""

import json

import pytest

from maskx_tf.data.classes import Vocabulary, load_mask_classes
from maskx_tf.errors import UserError
from tests.harness import coco_mini

PETS = Vocabulary(("cat", "dog", "goldfish"), (7, 3, 90))


def test_ids_count_from_one_in_the_order_of_the_file():
    assert PETS.num_classes == 3
    assert [PETS.id_of(name) for name in PETS.names] == [1, 2, 3]
    assert PETS.ids_of(["goldfish", "cat"]) == (3, 1)
    assert PETS.names_of([3, 1]) == ["goldfish", "cat"]


def test_save_and_load_give_the_same_vocabulary(tmp_path):
    PETS.save(tmp_path / "v.json")
    assert Vocabulary.load(tmp_path / "v.json") == PETS
    assert json.loads((tmp_path / "v.json").read_text())[1] == {"id": 3, "name": "dog"}
    assert [path.name for path in tmp_path.iterdir()] == ["v.json"]  # nothing temporary is left


def test_text_file_has_one_name_a_line(tmp_path):
    path = tmp_path / "v.txt"
    path.write_text("# animals\ncat\n\n  hot dog  \n")
    assert Vocabulary.load(path) == Vocabulary(("cat", "hot dog"), (1, 2))


def test_full_coco_json_is_read_for_its_categories(tmp_path):
    path = tmp_path / "coco.json"
    path.write_text(json.dumps({"images": [], "categories": PETS.categories()}))
    assert Vocabulary.load(path) == PETS


def test_unknown_name_is_answered_with_the_closest():
    with pytest.raises(UserError, match=r"Unknown class 'gold fish'\. Did you mean: 'goldfish'\?"):
        PETS.id_of("gold fish")
    with pytest.raises(UserError, match="The 3 classes are: 'cat', 'dog', 'goldfish'"):
        PETS.ids_of(["cat", "zzz"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("v.txt", "cat\ncat\n", "Duplicate class name in the vocabulary: 'cat'"),
        ("v.txt", "# nothing\n", "holds no class names"),
        ("v.json", "{", "neither a .txt list of names nor json"),
        ("v.json", "{}", "holds no list of categories"),
        ("v.json", "[]", "holds no list of categories"),
        ("v.json", '[{"id": 1}]', "must be like"),
        ("v.json", '[{"id": true, "name": "x"}]', "must be like"),
        ("v.json", '[{"id": 1, "name": "x"}, {"id": 1, "name": "y"}]', "Duplicate category id"),
        ("v.json", '[{"id": 1, "name": "x"}, {"id": 2, "name": "x "}]', "Duplicate class name"),
        ("v.txt", b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_bad_files_are_user_errors_that_name_the_file(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as error:
        Vocabulary.load(path)
    assert str(path) in str(error.value)


def test_absent_file_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=r"There is no file .*v\.json"):
        Vocabulary.load(tmp_path / "v.json")


def test_mask_classes(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("\ufeffgoldfish\ncat\n", encoding="utf-8")  # as editors on Windows do
    assert load_mask_classes("all", PETS) == (1, 2, 3)
    assert load_mask_classes("none", PETS) == ()
    assert load_mask_classes(str(path), PETS) == (1, 3)


def test_mask_classes_of_the_wrong_kind(tmp_path):
    twice = tmp_path / "twice.txt"
    twice.write_text("cat\ncat\n")
    with pytest.raises(UserError, match="names a class twice: 'cat'"):
        load_mask_classes(str(twice), PETS)
    with pytest.raises(UserError, match="=vocs is none of all, none, coco, voc, nonvoc, E1_"):
        load_mask_classes("vocs", PETS)
    with pytest.raises(UserError, match="--mask_classes=voc: Unknown class 'person'"):
        load_mask_classes("voc", PETS)
    with pytest.raises(UserError, match="There is no file"):
        load_mask_classes(str(tmp_path / "b.txt"), PETS)
    empty = tmp_path / "empty.txt"
    for content in ("", "\n# cat\n"):
        empty.write_text(content)
        with pytest.raises(
            UserError, match=r"--mask_classes=.*empty\.txt names no class: write one"
        ):
            load_mask_classes(str(empty), PETS)


def test_voc_and_nonvoc_split_coco():
    coco = Vocabulary.load(coco_mini("val")[0])
    voc, nonvoc = (load_mask_classes(name, coco) for name in ("voc", "nonvoc"))
    assert voc == (*range(1, 8), 9, *range(15, 21), 40, 57, 58, 59, 61, 63)
    external = [coco.external_ids[index - 1] for index in voc]
    assert external == [*range(1, 8), 9, *range(16, 22), 44, 62, 63, 64, 67, 72]
    assert sorted(voc + nonvoc) == list(range(1, 81))
