"""Errors of requests in the shape of OpenAI's API, without anything about the inside of the server."""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from ossicle.errors import ConfigError, DataError

log = logging.getLogger(__name__)
KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
"""Type of an error by its status. Others are ``invalid_request_error``, and ``server_error`` from 500 on."""
STATUSES = {
    404: "there is no such address",
    405: "this address does not take this method",
}
_PLACE = re.compile(r"(?<![\w.])~?/(?:[\w.@+ -]+/)+([\w.@+-]*)")


class ErrorDetail(BaseModel):
    """An error that a request caused."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """Body of every answer with a status from 400 on."""

    error: ErrorDetail


class RequestError(Exception):
    """An error that a client is told.

    Args:
        message: What is wrong and what to do.
        status: Status of the answer.
        param: Name of the field in the request.
        code: A word for programs, such as ``model_not_found``.
        headers: Further headers of the answer.
    """

    def __init__(
        self,
        message: str,
        status: int = 400,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.param, self.code, self.headers = message, status, param, code, headers

    @property
    def body(self) -> dict[str, Any]:
        """The error as OpenAI's API writes it."""
        kind = KINDS.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """Return the answer to the request."""
        return JSONResponse(self.body, self.status, headers=self.headers)


def as_request_error(error: BaseException) -> RequestError:
    """Return what the client is told about ``error``.

    Errors in data and settings keep their message, without paths of this machine. Anything else is a fault of the
    server. Its traceback goes to the log, and the client gets a number by which it can be found there.
    """
    if isinstance(error, RequestError):
        return error
    if isinstance(error, DataError | ConfigError):
        return RequestError(without_places(str(error)))
    if isinstance(error, TimeoutError):
        return RequestError("the request took too long and was given up: send less audio", 504, code="timeout")
    number = uuid.uuid4().hex[:12]
    log.error("error %s", number, exc_info=error)
    return RequestError(f"the server failed; its log has the reason under the number {number}", 500, code=number)


def without_places(message: str) -> str:
    """Return ``message`` with only the last part of each path."""
    return _PLACE.sub(lambda match: match[1] or "...", message)


def add_error_handlers(app: FastAPI) -> None:
    """Answer invalid requests and errors in the shape of OpenAI's API."""

    @app.exception_handler(RequestError)
    async def known(request: Request, error: RequestError) -> JSONResponse:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = [str(part) for part in first["loc"] if part not in ("body", "query", "path", "header")]
        message = f"{'.'.join(place) or 'the body'}: {first['msg']}"
        return RequestError(message, param=place[0] if place else None, code="invalid_value").response()

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> JSONResponse:
        if isinstance(error.__cause__, RequestError):  # the body was refused while FastAPI read it
            return error.__cause__.response()
        message = STATUSES.get(error.status_code, str(error.detail))
        return RequestError(message, error.status_code, headers=error.headers).response()

    for kind in (DataError, ConfigError, TimeoutError):

        @app.exception_handler(kind)
        async def told(request: Request, error: Exception) -> JSONResponse:
            return as_request_error(error).response()
