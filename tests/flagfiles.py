"""The flagfiles under configs/ for tests: their options, their heads, the published rows."""

import functools
import pathlib
import re

from absl import flags

from maskx_tf import config as config_lib
from maskx_tf.config import Config
from maskx_tf.system.flagfiles import expand

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Options of training; a study of several runs has options of its own.
FLAGFILES = sorted(
    path.relative_to(ROOT)
    for path in (ROOT / "configs").rglob("*.flags")
    if not path.name.startswith("study")
)
EXPERIMENTS = [path for path in FLAGFILES if not path.name.startswith("base")]
ROWS = [
    path for path in EXPERIMENTS if path.parts[1] in ("coco", "vg") and path.name != "overfit.flags"
]
HEADS = [path for path in EXPERIMENTS if path.parts[1] == "heads"]
SHAPES = [path for path in EXPERIMENTS if path.parts[1] == "shapes"]
# "mask AP on B 20.2", "on non-voc 33.0": set and score
SCORE = re.compile(r"\b(?:on|and) (A|B|non-voc|voc) (\d+\.\d)")


@functools.cache
def parse(path: pathlib.Path, *arguments: str) -> Config:
    values = flags.FlagValues()
    config_lib.define_flags(values)
    values(["test", *expand([f"--flagfile={path}"]), *arguments])
    return config_lib.from_flags(values)


def head_of(path: pathlib.Path) -> str:
    lines = (ROOT / path).read_text().splitlines()
    count = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join(lines[:count])


def on_one_line(head: str) -> str:
    """The head with its continued lines joined, also those that end in a backslash."""
    return re.sub(r"( \\)?\n# {4,}", " ", head)


def commands_of(head: str) -> list[str]:
    return re.findall(r"\bmaskx \w.*|python -m .*", on_one_line(head))
