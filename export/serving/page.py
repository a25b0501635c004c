"""The page at the server's root: static files of `page/`, which may talk to this server only."""

from __future__ import annotations

import pathlib

from aiohttp import web

DIRECTORY = pathlib.Path(__file__).parent / "page"
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
        "connect-src 'self'; worker-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def add_routes(app: web.Application) -> None:
    """Serves `index.html` at `/` and the other files of `DIRECTORY` under `/page/`, if there."""
    directory = DIRECTORY
    if not (directory / "index.html").is_file():
        return

    async def index(request: web.Request) -> web.FileResponse:
        return web.FileResponse(directory / "index.html")

    async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
        if request.path == "/" or request.path.startswith("/page/"):
            response.headers.update(HEADERS)

    app.router.add_get("/", index)
    app.router.add_static("/page/", directory)
    app.on_response_prepare.append(add_headers)
