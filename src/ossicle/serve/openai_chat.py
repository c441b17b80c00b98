"""The endpoint ``/v1/chat/completions`` of OpenAI's API, with recordings in the messages."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from contextlib import aclosing
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from ossicle.models.conversation import Message, Part
from ossicle.models.recordings import is_text
from ossicle.serve.errors import RequestError
from ossicle.serve.jobs import Decoding, Done, Piece
from ossicle.serve.service import Service
from ossicle.serve.sse import Events, stream, whole

FORMATS = ("wav", "mp3", "flac", "ogg", "opus", "m4a", "mp4", "webm", "aac")
"""Names of formats in ``input_audio``. What a recording really is, is read from its bytes."""
UNSUPPORTED = (
    "tools", "functions", "tool_choice", "function_call", "logprobs", "top_logprobs", "logit_bias", "audio",
    "frequency_penalty", "presence_penalty", "web_search_options", "prediction",
)  # fmt: skip
"""Options that would change the answer and that this server does not have. Null, 0 and empty values are accepted."""
MOST_STOPS = 4


class InputAudio(BaseModel):
    """A recording in base64."""

    data: str
    format: str = "wav"


class ContentPart(BaseModel):
    """A text or a recording in a message."""

    model_config = ConfigDict(extra="allow")
    type: str
    text: str | None = None
    input_audio: InputAudio | None = None


class ChatMessage(BaseModel):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[ContentPart]


class StreamOptions(BaseModel):
    """Options of a stream."""

    include_usage: bool = False


class ChatRequest(BaseModel):
    """A conversation to be answered."""

    model_config = ConfigDict(extra="allow")
    model: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=0.0, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None
    n: int | None = None
    modalities: list[str] | None = None
    response_format: dict[str, Any] | None = None


RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer, or a stream of its pieces.",
        "content": {
            "application/json": {"schema": {"type": "object", "required": ["id", "object", "choices"]}},
            "text/event-stream": {"schema": {"type": "string"}},
        },
    }
}


def router(service: Service) -> APIRouter:
    """Return the endpoint."""
    routes = APIRouter(prefix="/v1", tags=["chat"])

    @routes.post("/chat/completions", responses=RESPONSES, response_class=Response)
    async def completions(request: Request, asked: ChatRequest) -> Response:
        """Answer a conversation, whose last message is of the user."""
        service.engine.check_room()
        service.check_model(asked.model)
        _check(asked)
        conversation = await _conversation(service, asked.messages)
        stops = [asked.stop] if isinstance(asked.stop, str) else asked.stop or []
        decoding = service.decoding(
            max_tokens=asked.max_completion_tokens or asked.max_tokens,
            streamed=asked.stream,
            temperature=asked.temperature,
            top_p=asked.top_p,
            top_k=asked.top_k,
            seed=None if asked.seed is None else asked.seed % 2**63,
            stop=stops,
        )
        if asked.stream:
            usage = asked.stream_options is not None and asked.stream_options.include_usage
            return await stream(service, request, _chunks(service, conversation, decoding, usage=usage))
        done = await whole(service, request, lambda: _answer(service, conversation, decoding))
        return JSONResponse(_completion(service, done))

    return routes


def _check(asked: ChatRequest) -> None:
    """Raise `RequestError` for options that this server does not have."""
    if asked.n not in (None, 1):
        raise RequestError("n: one answer is given per request; leave it out", param="n", code="unsupported_value")
    if asked.modalities not in (None, ["text"]):
        raise RequestError("modalities: the answer is text", param="modalities", code="unsupported_value")
    if asked.response_format not in (None, {"type": "text"}):
        raise RequestError("response_format: the answer is text", param="response_format", code="unsupported_value")
    given = asked.model_extra or {}
    for name in UNSUPPORTED:
        if given.get(name) and given[name] not in ("none", "auto"):
            raise RequestError(f"{name} is not supported: leave it out", param=name, code="unsupported_parameter")
    stops = [asked.stop] if isinstance(asked.stop, str) else asked.stop or []
    if len(stops) > MOST_STOPS or not all(map(is_text, stops)):
        raise RequestError(f"stop: give up to {MOST_STOPS} texts", param="stop")


async def _conversation(service: Service, messages: Sequence[ChatMessage]) -> list[Message]:
    """Return a conversation with its recordings read. Raises `RequestError`, which names the message."""
    found = []
    for number, message in enumerate(messages):
        where = f"messages[{number}].content"
        content = message.content
        given = [ContentPart(type="text", text=content)] if isinstance(content, str) else content
        parts = [await _part(service, part, f"{where}[{k}]") for k, part in enumerate(given)]
        if not parts:
            raise RequestError(f"{where} is empty: write a text, or send a recording", param=where)
        role = "system" if message.role == "developer" else message.role
        if role != "user" and any(part.waveform is not None for part in parts):
            raise RequestError(f"{where}: only messages of the user have recordings", param=where)
        found.append(Message(role, parts))
    if found[-1].role != "user":
        raise RequestError("messages: the last message must be of the user, for it is answered", param="messages")
    return found


async def _part(service: Service, part: ContentPart, where: str) -> Part:
    if part.type == "text" and part.text is not None:
        if not is_text(part.text):
            raise RequestError(f"{where}: is no text of Unicode characters", param=where)
        return Part(part.text)
    if part.type == "input_audio" and part.input_audio is not None:
        if part.input_audio.format not in FORMATS:
            raise RequestError(f"{where}: the format is not one of {', '.join(FORMATS)}", param=where)
        return Part(waveform=await service.uploads.read_base64(part.input_audio.data, where))
    raise RequestError(
        f"{where}: send {{'type': 'text', 'text': ...}} or {{'type': 'input_audio', 'input_audio': "
        "{'data': BASE64, 'format': 'wav'}}; addresses and other kinds of parts are not read",
        param=where,
        code="unsupported_value",
    )


async def _answer(service: Service, conversation: Sequence[Message], decoding: Decoding) -> Done:
    done = Done()
    async with aclosing(service.begin(conversation, decoding, service.deadline()).events()) as events:
        async for event in events:
            if isinstance(event, Done):
                done = event
    return done


def _completion(service: Service, done: Done) -> dict[str, Any]:
    message = {"role": "assistant", "content": done.text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": done.end}
    return {**_head(service, "chat.completion"), "choices": [choice], "usage": _usage(done)}


def _head(service: Service, kind: str) -> dict[str, Any]:
    created = int(time.time())
    return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": created, "model": service.settings.name}


def _usage(done: Done) -> dict[str, int]:
    return {
        "prompt_tokens": done.prompt_tokens,
        "completion_tokens": done.tokens,
        "total_tokens": done.prompt_tokens + done.tokens,
    }


async def _chunks(service: Service, conversation: Sequence[Message], decoding: Decoding, *, usage: bool) -> Events:
    """Yield the events of OpenAI's stream of an answer."""
    head = _head(service, "chat.completion.chunk")
    extra: dict[str, Any] = {"usage": None} if usage else {}

    def chunk(delta: dict[str, Any], end: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": end}
        return {**head, "choices": [choice], **extra}

    begun = False
    async with aclosing(service.begin(conversation, decoding, service.deadline()).events()) as events:
        async for event in events:
            if not begun:
                yield chunk({"role": "assistant", "content": ""})
                begun = True
            if isinstance(event, Piece):
                yield chunk({"content": event.text})
            else:
                yield chunk({}, event.end)
                if usage:
                    yield {**head, "choices": [], "usage": _usage(event)}
    yield "[DONE]"
