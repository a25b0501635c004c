"""The classes of a COCO json, out of its `categories`."""

from __future__ import annotations

import unicodedata
from typing import Any

from absl import logging

from maskx_tf.data.classes import Vocabulary
from maskx_tf.data.coco.annotations import Annotations
from maskx_tf.data.coco.values import is_text, short, whole_number
from maskx_tf.errors import UserError

_CLASS_ATTRIBUTES = ("frequency", "synset")  # of LVIS's categories


def read_vocabulary(categories: list[Any], annotations: Annotations, path: str) -> Vocabulary:
    """The classes, ids read as numbers; of two of one name the one without annotations goes."""
    try:
        entries = [_category(entry, path) for entry in categories]
        entries = _without_unused_doubles(entries, annotations, path)
        vocabulary = Vocabulary.from_categories(entries, path)
    except RecursionError:
        raise UserError(f"{path}: a category is nested too deep to be one.") from None
    for number, name in zip(vocabulary.external_ids, vocabulary.names, strict=True):
        if not is_text(name) or any(unicodedata.category(char) == "Cc" for char in name):
            category = short({"id": number, "name": name})
            raise UserError(
                f"{path}: category {category} needs a name of valid characters, none of control."
            )
    _warn_of_similar(vocabulary, path)
    return vocabulary


def _category(entry: Any, path: str) -> dict[str, Any]:
    """An entry with its id as a number."""
    number = whole_number(entry.get("id")) if isinstance(entry, dict) else None
    if number is None:
        raise UserError(
            f'{path}: category {short(entry)} must be like {{"id": 1, "name": "person"}}, with an '
            "id of at most 64 bits."
        )
    return {"id": number, "name": entry.get("name")}


def class_attributes(entries: list[Any], vocabulary: Vocabulary) -> dict[str, dict[str, str]]:
    """What LVIS says of its classes beyond their names."""
    names = dict(zip(vocabulary.external_ids, vocabulary.names, strict=True))
    attributes = {}
    for entry in entries:
        texts = {
            key: entry[key]
            for key in _CLASS_ATTRIBUTES
            if isinstance(entry.get(key), str) and is_text(entry[key])
        }
        number = whole_number(entry["id"])
        name = "" if number is None else names.get(number)
        if texts and name:
            attributes[name] = texts
    return attributes


def _without_unused_doubles(
    entries: list[dict[str, Any]], annotations: Annotations, path: str
) -> list[dict[str, Any]]:
    """Roboflow, for one, adds a root category that may have the name of a class."""
    by_name: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        if isinstance(entry["name"], str):
            by_name.setdefault(entry["name"].strip(), []).append(entry)
    doubles = {name: same for name, same in by_name.items() if len(same) > 1}
    if not doubles:
        return entries
    used = annotations.categories_in_use()
    unused = []
    for name, same in doubles.items():
        ids = [entry["id"] for entry in same]
        spare = [entry for entry in same if entry["id"] not in used] if len(set(ids)) > 1 else []
        spare = spare[: len(same) - 1]
        if len(same) - len(spare) > 1:
            raise UserError(
                f"{path}: the categories {', '.join(map(short, ids))} are all named {short(name)}; "
                "give them different names, or one id to all of their annotations."
            )
        unused += [id(entry) for entry in spare]
        numbers = ", ".join(short(entry["id"]) for entry in spare)
        logging.warning(
            "%s: category %s of the name %r has no annotations and is left out: another one has "
            "this name.", path, numbers, name,
        )  # fmt: skip
    return [entry for entry in entries if id(entry) not in unused]


def spelling(name: str) -> str:
    """What a name and others that are equal but for case, blanks and the like have in common."""
    return "".join(char for char in name.casefold() if char.isalnum()) or name


def _warn_of_similar(vocabulary: Vocabulary, path: str) -> None:
    """Names that are equal but for case, blanks and the like are usually one class."""
    groups: dict[str, list[str]] = {}
    for name in vocabulary.names:
        groups.setdefault(spelling(name), []).append(name)
    for names in groups.values():
        if len(names) > 1:
            logging.warning(
                "%s: the categories %s are different classes; if they are meant to be one, give "
                "them one name and id.", path, ", ".join(map(repr, names)),
            )  # fmt: skip
