"""Serve the page: the files of the folder ``page``, which are listed once when the server starts."""

from __future__ import annotations

import mimetypes
from collections.abc import Awaitable, Callable
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse

FOLDER = Path(__file__).parent / "page"
INDEX = "index.html"
SECURITY = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; worker-src 'self'; style-src 'self'; font-src 'self'; "
        "img-src 'self' data: blob:; media-src 'self' blob:; connect-src 'self'; manifest-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}
"""Headers of the page: nothing is loaded from elsewhere, and no script or style is in the page itself."""


def page_files(folder: Path = FOLDER) -> dict[str, Path]:
    """Return the files of the page by the paths at which they are served; empty if there is no page."""
    if not (folder / INDEX).is_file():
        return {}
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".py")
    return {"/": folder / INDEX, **{f"/{path.relative_to(folder).as_posix()}": path for path in files}}


def router(files: dict[str, Path]) -> APIRouter:
    """Return one address for each of ``files``, which are not in the description of the API."""
    routes = APIRouter(include_in_schema=False)
    for address, path in files.items():
        routes.add_route(address, _sender(path), methods=["GET", "HEAD"])
    return routes


def _sender(path: Path) -> Callable[[Request], Awaitable[FileResponse]]:
    kind = "text/javascript" if path.suffix in (".js", ".mjs") else mimetypes.guess_type(path.name)[0]

    async def send(request: Request) -> FileResponse:
        return FileResponse(path, media_type=kind, headers=SECURITY)

    return send
