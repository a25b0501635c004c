"""The annotations of a COCO json while it is read: their text and ids, new ids for doubles."""

from __future__ import annotations

import array
import json
from typing import Any

import numpy as np

from maskx_tf.data.coco.json_stream import Entry
from maskx_tf.data.coco.values import whole_number

_INT64 = 2**63
_LONGEST_COMPACTED = 1 << 20  # characters


class Annotations:
    """All annotations in the order of the file: their text, and the ids in it.

    Args:
      exact: keep texts to the byte; else they may be written shorter.
    """

    def __init__(self, exact: bool = False) -> None:
        self._exact = exact
        self.texts: list[bytes] = []
        # id, image_id and category_id of each; 0 where it is no int64, which `_absent` says.
        self.ids, self._images, self._categories = (array.array("q") for _ in range(3))
        self._absent: set[tuple[int, str]] = set()

    def __len__(self) -> int:
        return len(self.texts)

    def append(self, entry: Entry) -> None:
        """Takes the next annotation, of any type."""
        fields = entry.value if isinstance(entry.value, dict) else {}
        columns = (("id", self.ids), ("image_id", self._images), ("category_id", self._categories))
        for key, column in columns:
            number = whole_number(fields.get(key))
            if number is None:
                self._absent.add((len(self), key))
            column.append(number or 0)
        text = entry.text
        is_indented = "\n" in text and len(text) <= _LONGEST_COMPACTED  # most of it is space
        if is_indented and not self._exact:
            text = json.dumps(entry.value, separators=(",", ":"))
        self.texts.append(text.encode("utf-8", "surrogatepass"))

    def value(self, index: int) -> Any:
        """The annotation as `json` gives it."""
        return json.loads(self.texts[index])

    def number(self, index: int) -> int | None:
        """Its id; None if there is no int64."""
        return None if (index, "id") in self._absent else self.ids[index]

    def image_id(self, index: int) -> int | None:
        """Its image_id; None if there is no int64."""
        return None if (index, "image_id") in self._absent else self._images[index]

    def category_id(self, index: int) -> int | None:
        """Its category_id; None if there is no int64."""
        return None if (index, "category_id") in self._absent else self._categories[index]

    def categories_in_use(self) -> set[int]:
        """The category ids that annotations have."""
        return set(self._categories)

    def numbers(self) -> np.ndarray:
        """int64 [n], the ids that are there."""
        present = np.ones(len(self), bool)
        present[[index for index, key in self._absent if key == "id"]] = False
        return np.frombuffer(self.ids, np.int64)[present] if len(self) else np.zeros(0, np.int64)


class AnnotationIds:
    """Makes annotation ids unique integers."""

    def __init__(self, annotations: Annotations) -> None:
        self._annotations = annotations
        numbers, counts = np.unique(annotations.numbers(), return_counts=True)
        largest = int(numbers[-1]) if len(numbers) else 0
        far = largest >= _INT64 // 2  # ids after it might not fit 64 bits
        self._taken = set(numbers.tolist()) if far else set()
        self._next = 1 if far else max(largest, 0) + 1
        self._shared = set(numbers[counts > 1].tolist())
        self._first: dict[int, int] = {}  # id that several have -> index of its first

    def assign(self, index: int, number: int | None) -> tuple[int, str | None]:
        """The id of an annotation, and the reason (of `issues`) if something was wrong with it."""
        if number is not None and (number not in self._shared or number not in self._first):
            if number in self._shared:
                self._first[number] = index
            return number, None
        if number is None:
            reason = "annotation_id_missing"
        elif _same(self._annotations.value(index), self._annotations.value(self._first[number])):
            return number, "annotation_repeated"  # is dropped, and needs no id of its own
        else:
            reason = "annotation_id_duplicate"
        while self._next in self._taken:
            self._next += 1
        self._next += 1
        return self._next - 1, reason


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    try:
        return all(one.get(key) == other.get(key) for key in ("image_id", "category_id", "bbox"))
    except RecursionError:  # boxes nested as deep as json may
        return False
