"""Directories given to a command without a flag: `maskx records verify DIR...`."""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags

from maskx_tf.errors import UserError
from maskx_tf.system import usage


def define_flags() -> None:
    """Defines `--records`, the other way to name directories."""
    flags.DEFINE_list("records", [], "Record directories; --records= may be left out.")


def to_flag(argv: Sequence[str]) -> list[str]:
    """The command line with `--records` and the arguments that belong to no flag in one flag.

    Of two `--records=...` absl would take the last.
    """
    kept, directories = list(argv[:1]), []
    rest = iter(argv[1:])
    for argument in rest:
        name, equals, value = argument.lstrip("-").partition("=")
        if not argument.startswith("-"):
            directories.append(argument)
        elif name == "records":
            directories += filter(None, (value if equals else next(rest, "")).split(","))
        else:
            kept.append(argument)
            if not equals and name in flags.FLAGS and not flags.FLAGS[name].boolean:
                kept += [value for value in [next(rest, None)] if value is not None]
    return [*kept, f"--records={','.join(directories)}"] if directories else kept


def from_flags() -> list[str]:
    """The directories named; UserError if there are none."""
    if not flags.FLAGS.records:
        raise UserError(f"Name the directories of records: {usage.program()} DIR...")
    return flags.FLAGS.records
