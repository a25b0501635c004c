"""Vectors of class names, the input of T with `transfer_input=embedding` (paper, table 1a).

They are read from a file in GloVe's text format, drawn at random, or loaded from a .npy. The vector
of a class is the mean of its words' vectors, as in the authors' matrices.
"""

from __future__ import annotations

import hashlib
import pathlib
import re
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

from maskx_tf.errors import UserError, first_of

RANDN = "randn"  # one random vector for each word
RANDN_CLASS = "randn_class"  # one random vector for each class name
RANDOM_SIZE = 300
_SYNSET_END = re.compile(r"\.[a-z]\.\d+$")  # of `fire_hydrant.n.01`
_SEPARATORS = re.compile(r"[\s_-]+")
_LISTED = 10


class ClassVectors(NamedTuple):
    """float32 [K, D] in the order of the class names, and what is to be known, in a few lines."""

    vectors: np.ndarray
    report: str


def words_of(name: str) -> list[str]:
    """The words of a class name or synset: "Fire_hydrant.n.01" -> ["fire", "hydrant"]."""
    text = _SYNSET_END.sub("", name.strip().lower())
    return [word for word in _SEPARATORS.split(text) if word]


def class_vectors(spec: str, names: Sequence[str], seed: int = 0) -> ClassVectors:
    """The vectors that `--transfer_embeddings=spec` means.

    Args:
      spec: `randn`, one vector of N(0, 1/300) values for each word of a name; `randn_class`, one
        for each name; a .npy of K rows in the order of the names; or a text file of word vectors.
      names: of the K classes.
      seed: of the random vectors, which depend on it and on the word only.

    Raises:
      UserError: the file cannot be read, has not one row for each class, or knows no word of any
        class.
    """
    if spec == RANDN_CLASS:
        vectors = np.stack([_random(name, seed) for name in names])
        return ClassVectors(vectors, f"T takes a random vector for each of {len(names)} classes.")
    if spec.endswith(".npy"):
        return ClassVectors(_load_rows(spec, len(names)), f"T takes the rows of {spec}.")
    words = {word for name in names for word in words_of(name)}
    if spec == RANDN:
        known = {word: _random(word, seed) for word in words}
    else:
        known = read_text(spec, words)
    return _average(spec, names, known)


def _random(key: str, seed: int) -> np.ndarray:
    """float32 [300] of variance 1/300: a function of the key and the seed."""
    digest = hashlib.sha256(key.encode()).digest()
    rng = np.random.default_rng([seed % 2**32, int.from_bytes(digest[:8], "little")])
    return rng.normal(0, RANDOM_SIZE**-0.5, RANDOM_SIZE).astype(np.float32)


def _load_rows(path: str, count: int) -> np.ndarray:
    try:
        rows = np.load(path)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"--transfer_embeddings={path}: {error}") from None
    if rows.ndim != 2 or len(rows) != count or not np.issubdtype(rows.dtype, np.number):
        raise UserError(
            f"--transfer_embeddings={path} has shape {rows.shape}; it must have one row for each "
            f"of the {count} classes, in vocabulary order."
        )
    return rows.astype(np.float32)


def _average(spec: str, names: Sequence[str], known: dict[str, np.ndarray]) -> ClassVectors:
    """Means over the known words of each name; zeros where there is none."""
    if not known:
        raise UserError(
            f"--transfer_embeddings={spec} has no vector for any word of the {len(names)} classes "
            f"({', '.join(names[:3])}, …); it must be text with a word and its numbers per line."
        )
    size = len(next(iter(known.values())))
    vectors = np.zeros([len(names), size], np.float32)
    missing, without = [], []
    for row, name in zip(vectors, names, strict=True):
        words = words_of(name)
        found = [known[word] for word in words if word in known]
        missing += [word for word in words if word not in known]
        if found:
            row[:] = np.mean(found, axis=0)
        else:
            without.append(name)
    lines = [f"T takes {size} values for each of {len(names)} classes from {spec}."]
    if missing:
        lines.append(f"  words without a vector, left out of the mean{_listing(missing)}")
    if without:
        lines.append(
            f"  WARNING: classes without any known word, which share the mask kernel of a zero "
            f"vector{_listing(without)}"
        )
    return ClassVectors(vectors, "\n".join(lines))


def _listing(items: Sequence[str]) -> str:
    unique = list(dict.fromkeys(items))
    return f" ({len(unique)}): {first_of(unique, _LISTED)}"


def read_text(path: str, words: Collection[str]) -> dict[str, np.ndarray]:
    """The vectors of some words out of a file in GloVe's text format.

    A line is a word and its numbers, separated by spaces; a first line of two numbers, as word2vec
    writes it, is passed over. Only the lines wanted are parsed, and reading ends with the last word
    found, so that files of gigabytes take as long as the disk.

    Args:
      path: of the file.
      words: wanted, in lower case.

    Returns:
      float32 [D] for each word that the file has; the first of several.

    Raises:
      UserError: the file cannot be read, or the line of a wanted word is not a vector of D numbers.
    """
    wanted = {word.encode(): word for word in words}
    found: dict[str, np.ndarray] = {}
    size = None
    try:
        with pathlib.Path(path).open("rb") as file:
            for number, line in enumerate(file, start=1):
                if size is None:
                    size = _size_of(line)
                word = wanted.get(line.partition(b" ")[0])
                if word is None or word in found or size is None:
                    continue
                vector = _parse(line, size, f"{path}, line {number}")
                if vector is not None:
                    found[word] = vector
                if len(found) == len(wanted):
                    break
    except OSError as error:
        raise UserError(
            f"--transfer_embeddings={path} cannot be read: {error.strerror}. It takes "
            f"{RANDN}, {RANDN_CLASS}, a .npy or a text file of word vectors."
        ) from None
    return found


def _size_of(line: bytes) -> int | None:
    """Number of values of a line; None of a head line (two numbers) or an empty one."""
    parts = line.split()
    return len(parts) - 1 if len(parts) > 2 else None


def _parse(line: bytes, size: int, where: str) -> np.ndarray | None:
    """The numbers of a line; None if its word is of several parts, as in `at name@domain.com`."""
    values = line.split()[1:]
    if len(values) > size:
        return None
    try:
        vector = np.array([float(value) for value in values], np.float32)
    except ValueError:
        raise UserError(f"{where}: {line[:40]!r}… is not a word and its numbers.") from None
    if len(vector) != size:
        raise UserError(f"{where}: {len(vector)} numbers, the first line has {size}.")
    if not np.isfinite(vector).all():
        raise UserError(f"{where}: a number is not finite.")
    return vector
