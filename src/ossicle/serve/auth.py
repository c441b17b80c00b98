"""Check the key, the host and the size of every request before anything else reads it."""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ossicle.serve.errors import RequestError, as_request_error
from ossicle.serve.settings import ServeSettings, is_loopback

KEY_PROTOCOL = "openai-insecure-api-key."
"""Subprotocol by which browsers, which cannot set headers, send their key for a WebSocket."""


class Guard:
    """Middleware that refuses requests without a valid key, from other pages, or with too large a body.

    It also answers with the status 500 where an error was not expected.

    Args:
        app: The application behind it.
        settings: Keys and limits.
        open_paths: Paths that need no key, such as the page.
    """

    def __init__(self, app: ASGIApp, settings: ServeSettings, open_paths: Iterable[str]) -> None:
        self.app, self.settings, self.open_paths = app, settings, frozenset(open_paths)
        self._keys = [key.encode() for key in settings.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with an error."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            self._check(scope, headers)
            if scope["type"] == "http":
                receive = self._limited(receive, headers)
            await self.app(scope, receive, watched)
        except Exception as error:
            told = as_request_error(error)
            if begun:
                raise
            if scope["type"] == "websocket":
                await receive()  # the request to connect
                await send({"type": "websocket.close", "code": 1008, "reason": told.message[:120]})
            else:
                await told.response()(scope, receive, send)

    def _check(self, scope: Scope, headers: Headers) -> None:
        host = urlsplit(f"//{headers.get('host', '')}")
        if not self._keys and not is_loopback(host.hostname or ""):
            # A page elsewhere may have let its own name point to this machine (DNS rebinding).
            raise RequestError("this server has no API key and answers to localhost only", 403)
        origin = headers.get("origin")
        if scope["type"] == "websocket" and origin and urlsplit(origin).netloc != host.netloc:
            raise RequestError("another page cannot use this server", 403)
        if self._keys and scope["path"] not in self.open_paths and not self._has_key(headers):
            raise RequestError(
                "the API key is missing or wrong: send it as 'Authorization: Bearer KEY'",
                401,
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    def _has_key(self, headers: Headers) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            offered = (name.strip() for name in headers.get("sec-websocket-protocol", "").split(","))
            given = next((name[len(KEY_PROTOCOL) :] for name in offered if name.startswith(KEY_PROTOCOL)), "")
        # All keys are compared, each in constant time, so that the time does not tell how much of a key is right.
        return sum([hmac.compare_digest(given.strip().encode(), key) for key in self._keys]) > 0

    def _limited(self, receive: Receive, headers: Headers) -> Receive:
        """Return ``receive`` that refuses a body beyond the limit, by its header or as soon as the limit is passed."""
        most = self.settings.max_upload_bytes
        too_large = RequestError(f"the body has more than {most} bytes: send less", 413, code="body_too_large")
        stated = headers.get("content-length", "")
        if stated.isdecimal() and int(stated) > most:
            raise too_large
        size = 0

        async def limited() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > most:
                raise too_large
            return message

        return limited
