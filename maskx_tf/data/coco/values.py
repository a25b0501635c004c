"""Values of jsons: numbers, also where a tool wrote them as text or as 5.0, and texts."""

from __future__ import annotations

import math
import re
from typing import Any

_INT64 = 2**63
_EXACT = 2**53  # beyond it floats skip whole numbers
_NUMBER = re.compile(r"\s*[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?\s*", re.ASCII)
_WHOLE = re.compile(r"\s*(-?\d{1,19})(?:\.0*)?\s*", re.ASCII)


def as_number(value: Any) -> float | None:
    """A number, also as text; None of anything else, infinity beyond float64."""
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


def whole_number(value: Any) -> int | None:
    """An int64, also as 5.0, "5" or "5.0"; None of anything else."""
    if isinstance(value, str) and (match := _WHOLE.fullmatch(value)):
        value = int(match[1])
    elif isinstance(value, float) and value.is_integer() and abs(value) <= _EXACT:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if -_INT64 <= value < _INT64 else None


def is_text(value: str) -> bool:
    """Whether UTF-8 can hold it: half a surrogate pair, which json allows, cannot be."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def short(value: Any) -> str:
    """A value of the json for a message: one line, not too long."""
    try:
        text = repr(value)
    except RecursionError:
        text = f"a {type(value).__name__} of too many levels"
    return text if len(text) <= 60 else text[:57] + "..."
