"""Options as fields of a frozen dataclass: their checks, their absl flags, their text.

Each is declared once, by `option`; `config.Config` declares those of a run.
"""

import csv
import dataclasses
import io
import numbers
import os
import re
import typing
from collections.abc import Callable, Collection
from typing import Any, Literal, NamedTuple, TypeVar

from absl import flags

from maskx_tf.errors import UserError

T = TypeVar("T")


class Check(NamedTuple):
    """A condition on a value, and how a message says it: "--NAME=VALUE must …"."""

    holds: Callable[[Any], bool]
    must: str


POSITIVE = Check(lambda v: v > 0, "be positive")
NOT_NEGATIVE = Check(lambda v: v >= 0, "not be negative")
FRACTION = Check(lambda v: 0 <= v <= 1, "lie in [0, 1]")


def option(
    scope: str,
    default: Any,
    help_text: str,
    check: Check | None = None,
    *,
    choices: tuple[str, ...] = (),
    on_resume: Literal["same", "may_change", "by_content"] = "same",
    at_test: Literal["as_trained", "data", "detections"] = "as_trained",
    scales: Literal["no", "steps", "rate", "decay"] = "no",
    is_later: bool = False,
) -> Any:
    """A field of an options class.

    Args:
      scope: what it is about, so what depends on it.
      default: its default.
      help_text: its meaning, for --help.
      check: what holds of its values.
      choices: its values, where there are only some.
      on_resume: whether a resumed run may have another value; `by_content`: another that names the
        same classes. Of bookkeeping anything may change.
      at_test: whether evaluation may have another value: of which `data` it sees, or of the
        `detections` that the same weights give.
      scales: what becomes of it with another batch size (`training.scaling`).
      is_later: feature caches are older: those that do not know it were made with its default.
    """
    roles = {"scope": scope, "on_resume": on_resume, "at_test": at_test, "scales": scales}
    metadata = {"help": help_text, "check": check, "choices": choices, "is_later": is_later}
    return dataclasses.field(default=default, metadata=metadata | roles)


# Type of an option: what its values may be instances of, and what a message calls that.
_TYPES: dict[type, tuple[Any, str]] = {
    bool: (bool, "True or False"),
    int: (numbers.Integral, "a whole number"),
    float: (numbers.Real, "a number"),
    str: ((str, os.PathLike), "text or a path"),
}


def typed(field: dataclasses.Field, value: Any) -> Any:
    """A value given in Python as the option's own type: of a list, one item may do for all."""
    element, *is_tuple = typing.get_args(field.type) or (field.type,)  # tuple[element, ...]
    accepted, called = _TYPES[element]
    items = value if is_tuple and isinstance(value, list | tuple) else [value]
    for item in items:
        if not isinstance(item, accepted) or isinstance(item, bool) is not (element is bool):
            listed = " (or a list of such)" if is_tuple else ""
            raise UserError(f"{field.name}={value!r} must be {called}{listed}.")
    convert = _text if element is str else element
    typed = tuple(convert(item) for item in items)
    return typed if is_tuple else typed[0]


def _text(item: Any) -> str:
    """Text, or a path as text, that of the home directory in full."""
    text = os.fspath(item)
    return os.path.expanduser(text) if text.startswith("~/") else text


def check(field: dataclasses.Field, value: Any) -> None:
    """Raises a UserError, which names the option as Python does, unless the value is allowed."""
    choices, condition = field.metadata["choices"], field.metadata["check"]
    if choices and value not in choices:
        raise UserError(f"{field.name}={value} is not one of: {', '.join(choices)}.")
    if condition and not condition.holds(value):
        raise UserError(f"{field.name}={text_of(value)} must {condition.must}.")


def names(cls: type, **roles: str) -> tuple[str, ...]:
    """The options with the given roles, in the order of the class: `scope="mask_head"`."""
    return tuple(f.name for f in dataclasses.fields(cls) if roles.items() <= f.metadata.items())


def _to_tuple(field: dataclasses.Field, items: list[str]) -> tuple:
    element = typing.get_args(field.type)[0]  # tuple[element, ...]
    try:
        return tuple(element(item) for item in items)
    except ValueError:
        raise UserError(
            f"--{field.name}={','.join(items)} must be a comma-separated list of "
            f"{element.__name__} values."
        ) from None


def define_flags(
    cls: type,
    flag_values: flags.FlagValues = flags.FLAGS,
    shown: Collection[str] | None = None,
) -> None:
    """Defines one absl flag for each option. Call once, in an entry point, before parsing.

    Args:
      cls: whose options.
      flag_values: where.
      shown: the options that --help lists, where others have no effect; --helpfull lists all.
    """
    define = {
        bool: flags.DEFINE_bool,
        int: flags.DEFINE_integer,
        float: flags.DEFINE_float,
        str: flags.DEFINE_string,
    }
    for field in dataclasses.fields(cls):
        name, meaning, choices = field.name, field.metadata["help"], field.metadata["choices"]
        default: Any = field.default
        is_shown = shown is None or name in shown
        module = cls.__module__ if is_shown else "options without effect here"
        where: dict[str, Any] = {"flag_values": flag_values, "module_name": module}
        if choices:
            flags.DEFINE_enum(name, default, choices, meaning, **where)
        elif field.type in define:
            define[field.type](name, default, meaning, **where)
        else:
            flags.DEFINE_list(name, [str(item) for item in default], meaning, **where)


def from_flags(
    cls: Callable[..., T],
    values: flags.FlagValues = flags.FLAGS,
    create: Callable[..., T] | None = None,
) -> T:
    """The options that the parsed flags spell; UserError where a value is out of range.

    Args:
      cls: whose options.
      values: the flags.
      create: makes them of all values, by name; None: `cls`.
    """
    options: dict[str, Any] = {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        value = getattr(values, field.name)
        options[field.name] = _to_tuple(field, value) if isinstance(value, list) else value
    try:
        return (create or cls)(**options)
    except UserError as error:
        raise UserError(re.sub(rf"\b({'|'.join(options)})(?==)", r"--\1", str(error))) from None


def to_text(options: Any) -> str:
    """Options as a flagfile, one option a line, in the order of the class."""
    lines = []
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if isinstance(value, bool):
            lines.append(f"--{'' if value else 'no'}{field.name}")
        else:
            lines.append(f"--{field.name}={text_of(value)}")
    return "\n".join(lines) + "\n"


def text_of(value: Any) -> str:
    """A value as its flag takes it; in a list, an item with a comma of its own is quoted."""
    if not isinstance(value, tuple):
        return str(value)
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(value)
    return text.getvalue()
