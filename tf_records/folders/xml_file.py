"""XML files of labels, read without what XML can do harm with: no DTD, so no entity is expanded."""

from __future__ import annotations

from xml.etree import ElementTree
from xml.parsers import expat


class BadXmlError(ValueError):
    """The file is not XML, or has a DTD."""


def parse(data: bytes) -> ElementTree.Element:
    """The element at the top of an XML file; BadXmlError, which says where, if there is none."""
    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = _refuse
    try:
        parser.Parse(data, True)
        return builder.close()
    except (expat.ExpatError, ValueError, LookupError) as error:  # LookupError: of its encoding
        raise BadXmlError(" ".join(str(error).split())[:200]) from None


def text(element: ElementTree.Element | None, tag: str) -> str:
    """The text of a child, without space around it; empty if there is none."""
    child = None if element is None else element.find(tag)
    return "" if child is None or child.text is None else child.text.strip()


def _refuse(*_: object) -> None:
    raise BadXmlError("it has a DTD, which no tool of labels writes")
