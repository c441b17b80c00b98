"""Answer requests: as a stream of server-sent events, or whole, and in both cases only while the client listens."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from ossicle.serve.errors import as_request_error
from ossicle.serve.service import Service

HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
"""Tell caches and proxies to pass each event on at once."""
T = TypeVar("T")
Events = AsyncGenerator[dict[str, Any] | str, None]


class ClientLeft(Exception):
    """The client has closed the connection, so that nobody reads the answer."""


class EventStream(StreamingResponse):
    """A response that sends events, dictionaries as JSON, and cleans up when it ends, however it ends."""

    def __init__(self, body: AsyncGenerator[str, None], cleanup: AsyncExitStack) -> None:
        super().__init__(body, media_type="text/event-stream", headers=HEADERS)
        self.cleanup = cleanup

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        async with self.cleanup:
            await super().__call__(scope, receive, send)


async def stream(service: Service, request: Request, events: Events) -> EventStream:
    """Return a response that sends ``events``.

    The request counts as accepted until its stream ends. It ends early when the client leaves. The first event is
    awaited before the status is sent, so that an error before it has a status of its own; a later one is an event.
    """
    async with AsyncExitStack() as stack:
        stack.enter_context(service.engine.admit())
        stack.push_async_callback(events.aclose)
        first = await while_connected(service, request, anext(events, None))

        async def body() -> AsyncGenerator[str, None]:
            event = first
            try:
                while event is not None:
                    yield f"data: {event if isinstance(event, str) else json.dumps(event, ensure_ascii=False)}\n\n"
                    event = await while_connected(service, request, anext(events, None))
            except ClientLeft:
                return
            except asyncio.CancelledError:  # the server has found out before we have
                service.metrics.cancelled.inc()
                raise
            except Exception as error:
                yield f"data: {json.dumps(as_request_error(error).body)}\n\n"

        return EventStream(body(), stack.pop_all())


async def whole(service: Service, request: Request, work: Callable[[], Awaitable[T]]) -> T:
    """Return the result of ``work`` for an accepted request. Raises as `while_connected` and `Engine.admit`."""
    with service.engine.admit():
        return await while_connected(service, request, work())


async def while_connected(service: Service, request: Request, work: Awaitable[T]) -> T:
    """Return the result of ``work``. When the client leaves it is cancelled and `ClientLeft` is raised."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        service.metrics.cancelled.inc()
        raise ClientLeft
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _left(request: Request) -> None:
    """Wait until the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
