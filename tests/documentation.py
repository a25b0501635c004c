"""What the documents say: their commands, flags and links."""

from __future__ import annotations

import pathlib
import re
import shlex
from collections.abc import Iterator

from maskx_tf.system import verbs
from tests.harness import REPOSITORY

DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "configs/**/*.md")
    for path in REPOSITORY.glob(pattern)
)
_FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_FLAG = re.compile(r"(?:^| )--(\w+)")


def commands(path: pathlib.Path) -> Iterator[list[str]]:
    """The module and the other words of each command in a document's blocks."""
    for kind, block in _FENCE.findall(path.read_text()):
        if kind == "bash":
            yield from commands_in(block)


def commands_in(text: str) -> Iterator[list[str]]:
    """The same for the lines of a text, written `python -m MODULE …` or `maskx VERB …`."""
    for line in re.sub(r"\\\n", " ", text).splitlines():
        if found := re.search(r"python -m (.+)", line):
            yield shlex.split(found[1], comments=True)
        elif found := re.match(r"\s*(?:\$ )?maskx (.+)", line):
            verb, words = verbs.split(shlex.split(found[1], comments=True))
            if words[:1] != ["completion"]:
                yield [verbs.VERBS[verb].module, *words]  # KeyError: there is no such verb


def flags_by_module() -> dict[str, set[str]]:
    """Flags that the documents' commands pass to each module."""
    found: dict[str, set[str]] = {}
    for path in DOCUMENTS:
        for module, *arguments in commands(path):
            names = (_FLAG.match(word) for word in arguments)
            found.setdefault(module, set()).update(name[1] for name in names if name)
    return found


def links(path: pathlib.Path) -> Iterator[str]:
    """Targets of the links and pictures of a document, those on the web left out."""
    text = _FENCE.sub("", path.read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:", target):
            yield target


def anchors(path: pathlib.Path) -> set[str]:
    """Names of a document's headings in links, as GitHub makes them."""
    text = _FENCE.sub("", path.read_text())
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def inline_verbs(path: pathlib.Path) -> Iterator[list[str]]:
    """The words after `maskx` of the code spans of a document's text."""
    for span in re.findall(r"`maskx ([^`\n]+)`", _FENCE.sub("", path.read_text())):
        yield span.split()


def inline_flags(path: pathlib.Path) -> set[str]:
    """Names of flags in the code spans of a document's text."""
    spans = re.findall(r"`([^`\n]+)`", _FENCE.sub("", path.read_text()))
    return {name for span in spans for name in _FLAG.findall(span)}
