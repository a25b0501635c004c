"""The page at the server's root: static files of `page/`, which may talk to this server only."""

from __future__ import annotations

import html
import pathlib

from aiohttp import web

DIRECTORY = pathlib.Path(__file__).parent / "page"
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
_MODEL_NAME = "{{MODEL_NAME}}"  # in index.html


def add_routes(app: web.Application, model_name: str) -> None:
    """Serves `index.html` at `/`, for a model, and the other files of `DIRECTORY` under `/page/`.

    Does nothing where there is no page.
    """
    directory = DIRECTORY
    if not (directory / "index.html").is_file():
        return
    template = (directory / "index.html").read_text(encoding="utf-8")
    text = template.replace(_MODEL_NAME, html.escape(model_name))

    async def index(request: web.Request) -> web.Response:
        return web.Response(text=text, content_type="text/html")

    async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
        if request.path == "/" or request.path.startswith("/page/"):
            response.headers.update(HEADERS)

    app.router.add_get("/", index)
    app.router.add_static("/page/", directory)
    app.on_response_prepare.append(add_headers)
