"""Put the server together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ossicle import __version__
from ossicle.serve import openai_audio, openai_chat, ossicle_api, page_files, realtime
from ossicle.serve.auth import Guard
from ossicle.serve.engine import Engine
from ossicle.serve.errors import ErrorBody, add_error_handlers
from ossicle.serve.llm_url import RemoteLLM
from ossicle.serve.metrics import Metrics
from ossicle.serve.service import Service
from ossicle.serve.settings import ServeSettings
from ossicle.serve.sse import ClientLeft

OPEN_PATHS = ("/health", "/openapi.json")
"""Addresses without a key, besides the page."""
CLIENT_LEFT = 499
"""Status in the counters for requests whose client left before there was an answer."""
ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorBody, "description": "The request is invalid, or the server is busy."},
    "5XX": {"model": ErrorBody, "description": "The server failed, or stops."},
}


def create_app(engine: Engine, settings: ServeSettings, remote: RemoteLLM | None = None) -> FastAPI:
    """Return the application that serves the model of ``engine``, which it starts and stops.

    Args:
        engine: The engine, not started.
        settings: Names, limits and keys.
        remote: The engine of the LLM if it is not this one.
    """
    service = Service(engine, settings, remote)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
        engine.start()
        try:
            yield
        finally:  # uvicorn has waited for the requests that it accepted
            await asyncio.to_thread(engine.stop)
            if remote is not None:
                await remote.close()

    app = FastAPI(
        title="Ossicle",
        version=__version__,
        description="Speech for a frozen LLM, with the interface of OpenAI's API.",
        docs_url=None,  # those pages load scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
        responses=ERRORS,
    )
    app.state.service = service
    files = page_files.page_files()
    for routes in (openai_audio.router(service), openai_chat.router(service), ossicle_api.router(service)):
        app.include_router(routes)
    app.include_router(realtime.router(service))
    app.include_router(page_files.router(files))
    add_error_handlers(app)
    app.add_exception_handler(ClientLeft, lambda request, error: Response(status_code=CLIENT_LEFT))
    app.add_middleware(Guard, settings=settings, open_paths=(*OPEN_PATHS, *files))
    app.add_middleware(Counted, metrics=engine.metrics, paths=app.openapi()["paths"])
    return app


class Counted:
    """Middleware that counts requests by address and status, and measures their time."""

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: Iterable[str]) -> None:
        self.app, self.metrics, self.paths = app, metrics, frozenset(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started_s, status = time.monotonic(), str(CLIENT_LEFT)

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        try:
            await self.app(scope, receive, watched)
        finally:
            endpoint = scope["path"] if scope["path"] in self.paths else "other"
            self.metrics.requests.labels(endpoint, status).inc()
            self.metrics.seconds.observe(time.monotonic() - started_s)
