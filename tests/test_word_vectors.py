"""Vectors of class names: GloVe's text format, random vectors, .npy; the authors' matrix."""

import numpy as np
import pytest

from maskx_tf.data.classes import Vocabulary, named_classes
from maskx_tf.data.word_vectors import class_vectors, read_text, words_of
from maskx_tf.errors import UserError
from maskx_tf.training import run
from tests import batches, harness

LINES = "the 0.5 1 -2\nbear 1 2 3\nteddy 3 -2 1\nbear 9 9 9\nhot 1e-1 0 0\n"


@pytest.fixture
def glove(tmp_path):
    def write(text: str) -> str:
        path = tmp_path / "vectors.txt"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("bear", ["bear"]),
        ("Teddy  bear", ["teddy", "bear"]),
        ("fire_hydrant.n.01", ["fire", "hydrant"]),
        ("t-shirt.n.12", ["t", "shirt"]),
        (" St. Bernard", ["st.", "bernard"]),
        ("naïve", ["naïve"]),
    ],
)
def test_words_of_names_and_synsets(name, words):
    assert words_of(name) == words


def test_names_are_means_of_their_words(glove):
    found = class_vectors(glove(LINES), ["teddy bear", "Bear", "bear.n.01"])
    np.testing.assert_allclose(found.vectors, [[2, 0, 2], [1, 2, 3], [1, 2, 3]])
    assert found.vectors.dtype == np.float32
    assert "\n" not in found.report


def test_missing_words_are_counted_and_listed(glove):
    found = class_vectors(glove(LINES), ["hot dog", "dog", "teddy bear", "polar_bear"])
    np.testing.assert_allclose(found.vectors, [[0.1, 0, 0], [0, 0, 0], [2, 0, 2], [1, 2, 3]])
    lines = found.report.splitlines()
    assert lines[1].endswith("left out of the mean (2): dog, polar")
    assert "WARNING" in lines[2] and lines[2].endswith("(1): dog")


def test_a_word2vec_head_and_words_of_several_parts_are_passed_over(glove):
    text = f"4 3\nthe 0 0 0\nbear . bear 7 7 7\n{LINES}"
    np.testing.assert_array_equal(read_text(glove(text), ["bear"])["bear"], [1, 2, 3])


def test_other_lines_are_not_parsed_and_reading_ends_with_the_last_word(glove):
    text = "a 1 2\nb no numbers\nc 3 4\nc\nd 5\n"
    assert list(read_text(glove(text), ["a", "c"])) == ["a", "c"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("bear 1 2\n", "line 2: 2 numbers, the first line has 3"),
        ("bear 1 2 three\n", "line 2: .* is not a word and its numbers"),
        ("bear 1 2 nan\n", "line 2: a number is not finite"),
        ("Bear 1 2 3\n", "no vector for any word of the 1 classes"),
    ],
)
def test_unusable_files_are_user_errors(glove, line, message):
    with pytest.raises(UserError, match=message):
        class_vectors(glove(f"the 1 2 3\n{line}"), ["bear"])


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"No such file.*randn, randn_class, a \.npy or a text"):
        class_vectors(str(tmp_path / "glove"), ["bear"])
    (tmp_path / "rows.npy").write_text("glove")
    with pytest.raises(UserError, match="transfer_embeddings"):
        class_vectors(str(tmp_path / "rows.npy"), ["bear"])
    (tmp_path / "rows.npy").write_bytes(b"")
    with pytest.raises(UserError, match=r"rows\.npy: No data left in file"):
        class_vectors(str(tmp_path / "rows.npy"), ["bear"])


def test_rows_of_a_npy_are_taken_in_order(tmp_path):
    rows = np.random.default_rng(0).normal(size=(2, 4))
    np.save(tmp_path / "rows.npy", rows)
    found = class_vectors(str(tmp_path / "rows.npy"), ["bear", "dog"])
    np.testing.assert_allclose(found.vectors, rows, rtol=1e-6)
    with pytest.raises(UserError, match=r"shape \(2, 4\); .* each of the 3 classes"):
        class_vectors(str(tmp_path / "rows.npy"), ["bear", "dog", "cat"])


def test_randn_is_a_vector_of_variance_one_300th_for_each_word():
    names = [f"word{i}" for i in range(200)]
    found = class_vectors("randn", [*names, "word3 word7", "word3.n.01"], seed=4).vectors
    assert found.shape == (202, 300)
    assert found[:200].std() == pytest.approx(300**-0.5, rel=0.02)
    assert np.abs(np.corrcoef(found[:200]) - np.eye(200)).max() < 0.3
    np.testing.assert_allclose(found[200], (found[3] + found[7]) / 2, atol=1e-7)
    np.testing.assert_array_equal(found[201], found[3])


@pytest.mark.parametrize("spec", ["randn", "randn_class"])
def test_random_vectors_are_a_function_of_seed_and_name(spec):
    names = ["red star", "red disc", "blue star"]
    first = class_vectors(spec, names, seed=1).vectors
    np.testing.assert_array_equal(class_vectors(spec, names[::-1], seed=1).vectors, first[::-1])
    assert not np.allclose(class_vectors(spec, names, seed=2).vectors, first)


def test_randn_class_shares_nothing_between_names():
    names = [f"{a} {b}" for a in ("red", "blue") for b in ("star", "disc", "ring")]
    shared = class_vectors("randn", names).vectors
    alone = class_vectors("randn_class", names).vectors
    assert np.corrcoef(shared)[0, 1] > 0.3  # red star, red disc
    assert np.abs(np.corrcoef(alone) - np.eye(6)).max() < 0.25


def test_the_authors_matrix_is_in_the_order_of_our_vocabulary(tmp_path, glove):
    """Two-word rows are means: each word's vector is a row or twice a row minus another."""
    rows = np.load(harness.shared_data() / "coco_glove_300d.npy")
    names = named_classes("coco")
    found = class_vectors(str(harness.shared_data() / "coco_glove_300d.npy"), names).vectors
    np.testing.assert_array_equal(found, rows)
    by_name = dict(zip(names, rows, strict=True))
    words = {word: by_name[word] for word in ("bear", "dog", "cat", "person", "kite")}
    words |= {"teddy": 2 * by_name["teddy bear"] - words["bear"]}
    words |= {"hot": 2 * by_name["hot dog"] - words["dog"]}
    lines = (f"{word} {' '.join(str(x) for x in vector)}" for word, vector in words.items())
    known = ["bear", "dog", "cat", "person", "kite", "teddy bear", "hot dog"]
    again = class_vectors(glove("\n".join(lines)), known).vectors
    np.testing.assert_allclose(again, [by_name[name] for name in known], atol=1e-5)
    assert np.linalg.norm(words["teddy"]) < 12  # a word's vector, not noise blown up


def test_training_says_what_t_takes(glove, capsys):
    config = batches.tiny_config(
        transfer_input="embedding", transfer_embeddings=glove(LINES), seed=3
    )
    rows = run._class_vectors(config, Vocabulary.from_names(["teddy bear", "dog"]), ())
    np.testing.assert_allclose(rows, [[2, 0, 2], [0, 0, 0]])
    assert "WARNING: classes without any known word" in capsys.readouterr().err
    assert run._class_vectors(batches.tiny_config(), Vocabulary.from_names(["dog"]), ()) is None
