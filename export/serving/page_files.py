"""The page at the local server's root: a picture in, its objects over it, json and PNG out.

It is plain HTML, CSS and JavaScript modules, in `page/`: nothing is built, and nothing comes from
the network.
"""

from __future__ import annotations

import html
import importlib.resources

_CONTENT_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
}


def render_index(model_name: str) -> bytes:
    """The page itself, for `/`, talking to the model that is served under this name."""
    template = files()["index.html"][0].decode()
    return template.replace("{{MODEL_NAME}}", html.escape(model_name)).encode()


def files() -> dict[str, tuple[bytes, str]]:
    """The page's files, for `/page/<name>`: {name: (bytes, content type)}."""
    found = {}
    for entry in (importlib.resources.files("export.serving") / "page").iterdir():
        suffix = f".{entry.name.rpartition('.')[2]}"
        if suffix in _CONTENT_TYPES:
            found[entry.name] = entry.read_bytes(), _CONTENT_TYPES[suffix]
    return found
