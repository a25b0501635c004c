"""What `--help` of a command prints: what it does, and its options."""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
from collections.abc import Iterator

from absl import flags

from maskx_tf.system import verbs

_PACKAGES = ("maskx_tf", "tf_records", "export", "benchmarks")
_MARGIN = 28  # where the meaning of an option begins
_FLAGFILE = (
    "Read options from FILE, one a line, and from those that it includes. configs/ has those of "
    "the published runs. Of an option that is given twice, the last counts."
)
_KINDS = {"int": "N", "float": "X", "comma separated list of strings": "A,B,…"}


def program() -> str:
    """How the running command was called, for a person to repeat."""
    spec = sys.modules["__main__"].__spec__
    return verbs.command(spec.name.removesuffix(".__main__")) if spec else "python " + sys.argv[0]


def text(values: flags.FlagValues = flags.FLAGS) -> str:
    """The help of the running command: its module's docstring, and its options."""
    width = min(max(shutil.get_terminal_size().columns, 60), 100)
    about = sys.modules["__main__"].__doc__ or ""
    lines = [f"usage: {program()} [--option=value ...]", "", about.strip()]
    groups: dict[str, list[flags.Flag]] = {"Options": [], "Options of a run": []}
    for module, flag in listed(values):
        groups["Options of a run" if module == "maskx_tf.config" else "Options"].append(flag)
    for title, group in groups.items():
        if group:
            lines += ["", f"{title}:", *(_describe(flag, width) for flag in group)]
    lines += ["", "Options from a file:", _row("--flagfile=FILE", _FLAGFILE, width)]
    return "\n".join(lines)


def listed(values: flags.FlagValues = flags.FLAGS) -> Iterator[tuple[str, flags.Flag]]:
    """The flags of the command, those of libraries left out: (module, flag), as defined.

    Those of the module that runs, which goes by its path, come first.
    """
    by_module = values.flags_by_module_dict()
    ours = [module for module in by_module if module.split(".")[0] in _PACKAGES]
    for module in [sys.argv[0], *ours]:
        yield from ((module, flag) for flag in by_module.get(module, ()))


def _describe(flag: flags.Flag, width: int) -> str:
    meaning, choices = meaning_of(flag), choices_of(flag)
    if choices:
        meaning += f" One of {', '.join(choices)}."
    if is_required(flag):
        meaning += " (required)"
    elif default := _default(flag):
        meaning += f" (default: {default})"
    if flag.boolean:
        return _row(f"--[no]{flag.name}", meaning, width)
    kind = "CHOICE" if choices else _KINDS.get(flag.flag_type(), "TEXT")
    return _row(f"--{flag.name}={kind}", meaning, width)


def meaning_of(flag: flags.Flag) -> str:
    """Its help text, without the choices that absl puts before it."""
    return re.sub(r"^<[^>]*>: ", "", " ".join((flag.help or "").split()))


def choices_of(flag: flags.Flag) -> list[str] | None:
    """Its values, where there are only some."""
    return getattr(flag.parser, "enum_values", None)


def _default(flag: flags.Flag) -> str:
    if flag.boolean:
        return "yes" if flag.default else ""
    return "" if flag.default is None else flag.default_as_str.strip("'")


def is_required(flag: flags.Flag) -> bool:
    """Whether the command does not begin without it."""
    return flag.default is None and any("other than None" in v.message for v in flag.validators)


def _row(option: str, meaning: str, width: int) -> str:
    """The option, and beside it, or below where it is long, its meaning."""
    indent = " " * _MARGIN
    block = textwrap.fill(meaning, width, initial_indent=indent, subsequent_indent=indent)
    head = f"  {option}"
    if len(head) + 2 > _MARGIN:
        return f"{head}\n{block}"
    return head.ljust(_MARGIN) + block[_MARGIN:]
