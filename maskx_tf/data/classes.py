"""Class vocabularies (names in order) and set A, the classes whose masks may be used."""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from maskx_tf.errors import UserError
from maskx_tf.system.files import write_atomically

COCO = "coco"  # names the vocabulary, and the set of classes, that come with this package
_COCO_FILE = pathlib.Path(__file__).parent / "coco.json"
_SPLITS = pathlib.Path(__file__).parent / "splits"


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The classes of a data set or model; class c in 1..K has `names[c - 1]`, 0 is background.

    `external_ids[c - 1]` is the class's id in the source data set (COCO: 1..90, with gaps).
    """

    names: tuple[str, ...]
    external_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.names) != len(self.external_ids):
            raise ValueError(f"{len(self.names)} names but {len(self.external_ids)} external ids.")
        for what, values in (("class name", self.names), ("category id", self.external_ids)):
            if twice := _duplicates(values):
                raise UserError(f"Duplicate {what} in the vocabulary: {_listed(twice)}.")

    @classmethod
    def from_names(cls, names: Iterable[str]) -> Vocabulary:
        """A vocabulary whose external ids are 1..K."""
        names = tuple(names)
        return cls(names, tuple(range(1, len(names) + 1)))

    @classmethod
    def from_categories(cls, categories: Any, source: str) -> Vocabulary:
        """From a COCO `categories` list; `source` names the file in error messages."""
        if not isinstance(categories, list) or not categories:
            raise UserError(f"{source} holds no list of categories.")
        for entry in categories:
            if not isinstance(entry, dict) or not _is_category(entry):
                raise UserError(
                    f'{source}: category {entry!r} must be like {{"id": 1, "name": "person"}}.'
                )
        try:
            return cls(
                tuple(entry["name"].strip() for entry in categories),
                tuple(entry["id"] for entry in categories),
            )
        except UserError as error:
            raise UserError(f"{source}: {error}") from None

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Vocabulary:
        """Reads a class list.

        Args:
          path: a .txt with one name a line, what `save` wrote, a COCO json for its categories, or
            `coco` for the 80 classes of COCO.

        Raises:
          UserError: there is no such file, or it holds no class list.
        """
        path = _COCO_FILE if str(path) == COCO else pathlib.Path(path)
        if path.suffix == ".txt":
            names = read_names(path)
            if not names:
                raise UserError(f"{path} holds no class names; write one per line.")
            try:
                return cls.from_names(names)
            except UserError as error:
                raise UserError(f"{path}: {error}") from None
        try:
            content = json.loads(_read_text(path))
        except ValueError as error:
            raise UserError(f"{path} is neither a .txt list of names nor json: {error}.") from None
        categories = content.get("categories") if isinstance(content, dict) else content
        return cls.from_categories(categories, str(path))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the COCO `categories` list, atomically; `load` gives the same vocabulary back."""
        lines = ",\n".join(json.dumps(category) for category in self.categories())
        write_atomically(path, f"[\n{lines}\n]\n")

    def categories(self) -> list[dict[str, Any]]:
        """The COCO `categories` list: [{"id": external id, "name": name}, ...] in order."""
        pairs = zip(self.external_ids, self.names, strict=True)
        return [{"id": external_id, "name": name} for external_id, name in pairs]

    @property
    def num_classes(self) -> int:
        """K, without the background."""
        return len(self.names)

    def id_of(self, name: str) -> int:
        """The id in 1..K of a class name; UserError with the closest names when unknown."""
        try:
            return self.names.index(name) + 1
        except ValueError:
            raise UserError(f"Unknown class {name!r}.{self._hint(name)}") from None

    def ids_of(self, names: Iterable[str]) -> tuple[int, ...]:
        """The ids of several names, in their order."""
        ids = {name: index for index, name in enumerate(self.names, start=1)}
        return tuple(ids[name] if name in ids else self.id_of(name) for name in names)

    def names_of(self, class_ids: Iterable[int]) -> list[str]:
        """The names of several ids, in their order."""
        return [self.names[class_id - 1] for class_id in class_ids]

    def _hint(self, name: str) -> str:
        close = difflib.get_close_matches(name, self.names, n=3, cutoff=0.6)
        if close:
            return f" Did you mean: {_listed(close)}?"
        shown = _listed(self.names[:5]) + (", ..." if self.num_classes > 5 else "")
        return f" The {self.num_classes} classes are: {shown}."


def load_mask_classes(spec: str, vocabulary: Vocabulary) -> tuple[int, ...]:
    """Set A as ascending class ids.

    Args:
      spec: `all`, `none`, a named set (see `named_classes`), or the path of a .txt file with one
        class name a line.
      vocabulary: the classes to find the names in.

    Raises:
      UserError: a name is unknown or given twice, or there is no such file or no name in it.
    """
    if spec == "all":
        return tuple(range(1, vocabulary.num_classes + 1))
    if spec == "none":
        return ()
    path = pathlib.Path(spec)
    if spec in _known_sets():
        names = named_classes(spec)
    elif path.suffix == ".txt":
        names = read_names(path)
        if not names:
            raise UserError(
                f"--mask_classes={spec} names no class: write one per line into the file, or give "
                "none to use no masks."
            )
    else:
        raise UserError(
            f"--mask_classes={spec} is none of all, none, coco, voc, nonvoc, E1_A20B60 to "
            "E5_A60B20 (A20B60, A30B50, A40B40, A50B30, A60B20 each), nor the path of a .txt file "
            "with one class name per line."
        )
    if twice := _duplicates(names):
        raise UserError(f"{path} names a class twice: {_listed(twice)}.")
    try:
        return tuple(sorted(vocabulary.ids_of(names)))
    except UserError as error:
        raise UserError(f"--mask_classes={spec}: {error}") from None


def named_classes(name: str) -> list[str]:
    """The class names of a set that comes with this package.

    They are `coco` (all 80 classes), `voc` and `nonvoc` (the 20 / 60 of them that PASCAL VOC has /
    has not), and the random splits of the paper's figure 3, `E1_A20B60` to `E5_A60B20`: trial 1
    to 5, number of classes in A and B.

    Raises:
      UserError: there is no such set.
    """
    if name == COCO:
        return list(Vocabulary.load(COCO).names)
    if name not in _known_sets():
        raise UserError(
            f"There is no set of classes {name!r}; there are {', '.join(_known_sets())}."
        )
    return read_names(_SPLITS / f"{name}.txt")


def _known_sets() -> list[str]:
    return [COCO, *sorted(path.stem for path in _SPLITS.glob("*.txt"))]


def read_names(path: str | os.PathLike[str]) -> list[str]:
    """The lines of a text file without blank lines and `#` comments; UserError if unreadable."""
    lines = (line.strip() for line in _read_text(pathlib.Path(path)).splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _read_text(path: pathlib.Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # some editors begin a file with a mark
    except FileNotFoundError:
        raise UserError(f"There is no file {path}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from None


def _is_category(entry: dict[str, Any]) -> bool:
    name, number = entry.get("name"), entry.get("id")
    is_int = isinstance(number, int) and not isinstance(number, bool)
    return is_int and isinstance(name, str) and bool(name.strip())


def _duplicates(values: Sequence[Any]) -> list[Any]:
    if len(set(values)) == len(values):
        return []
    return [value for value in dict.fromkeys(values) if values.count(value) > 1]


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(repr(value) for value in values)


def random_names(names: Sequence[str], size: int, random: np.random.RandomState) -> list[str]:
    """`size` of the names, in their order.

    NumPy's legacy generator never changes, so that a seed means the same set for good; the
    published splits of COCO (figure 3 of the paper) were drawn with it as well.
    """
    if not 0 < size <= len(names):
        raise UserError(f"--size={size} must be between 1 and the {len(names)} classes.")
    chosen = random.choice(len(names), size, replace=False)
    return [names[index] for index in sorted(chosen)]
