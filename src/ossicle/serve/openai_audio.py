"""The endpoints ``/v1/audio/transcriptions`` and ``/v1/audio/translations`` of OpenAI's API."""

from __future__ import annotations

import json
from contextlib import aclosing
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Form, Request, UploadFile
from fastapi.responses import Response
from pydantic import BaseModel, Field
from torch import Tensor

from ossicle.audio import SAMPLE_RATE_HZ
from ossicle.languages import canonical_tag, is_known
from ossicle.listen.forms import render
from ossicle.listen.long import Segment
from ossicle.listen.wording import instruction_for
from ossicle.models.recordings import is_text
from ossicle.serve.errors import RequestError
from ossicle.serve.service import Service
from ossicle.serve.sse import Events, stream, whole

MEDIA_TYPES = {
    "json": "application/json",
    "verbose_json": "application/json",
    "text": "text/plain; charset=utf-8",
    "srt": "text/plain; charset=utf-8",
    "vtt": "text/vtt; charset=utf-8",
}
STREAMED = ("json", "text", "verbose_json")
IGNORED_HEADER = "X-Ossicle-Ignored"
"""Header that names the hints in a request that this model cannot use."""
HINTS = ("prompt", "keywords", "languages")
_TEXT = {"schema": {"type": "string"}}
RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The transcript in the form that `response_format` names, or a stream of events.",
        "content": {
            "application/json": {"schema": {"type": "object", "required": ["text"]}},
            "text/plain": _TEXT,
            "text/vtt": _TEXT,
            "text/event-stream": _TEXT,
        },
    }
}


class SpeechForm(BaseModel):
    """Fields of both endpoints."""

    file: UploadFile
    model: str | None = None
    prompt: str | None = None
    response_format: str = "json"
    temperature: float = Field(default=0.0, ge=0, le=2)
    stream: bool = False
    seed: int | None = Field(default=None, ge=0, lt=2**63)


class TranscriptionForm(SpeechForm):
    """Fields of a transcription. Hints that the model cannot use are accepted and named in a header of the answer."""

    language: str | None = None
    keywords: list[str] = Field(default=[], alias="keywords[]")
    languages: list[str] = Field(default=[], alias="languages[]")
    timestamp_granularities: list[str] = Field(default=[], alias="timestamp_granularities[]")
    include: list[str] = Field(default=[], alias="include[]")
    chunking_strategy: str | None = None
    chunking_kind: str | None = Field(default=None, alias="chunking_strategy[type]")
    known_speaker_names: list[str] = Field(default=[], alias="known_speaker_names[]")
    known_speaker_references: list[str] = Field(default=[], alias="known_speaker_references[]")


class TranslationForm(SpeechForm):
    """Fields of a translation, with the target language as an addition to OpenAI's."""

    to_language: str = "en"


def router(service: Service) -> APIRouter:
    """Return the endpoints."""
    routes = APIRouter(prefix="/v1/audio", tags=["audio"])

    @routes.post("/transcriptions", responses=RESPONSES, response_class=Response)
    async def transcriptions(
        request: Request, form: Annotated[TranscriptionForm, Form(media_type="multipart/form-data")]
    ) -> Response:
        """Transcribe a recording."""
        service.check_model(form.model)
        _check(form)
        languages = [_language(tag, "languages") for tag in form.languages]
        language = _language(form.language, "language") if form.language else languages[0] if languages else None
        return await _respond(service, request, form, "transcribe", language)

    @routes.post("/translations", responses=RESPONSES, response_class=Response)
    async def translations(
        request: Request, form: Annotated[TranslationForm, Form(media_type="multipart/form-data")]
    ) -> Response:
        """Translate the speech of a recording, to English if the request names no other language."""
        service.check_model(form.model)
        return await _respond(service, request, form, "translate", _language(form.to_language, "to_language"))

    return routes


def _check(form: TranscriptionForm) -> None:
    """Raise `RequestError` for options that a client would rely on and that this server does not have."""
    if "logprobs" in form.include or form.include:
        raise _unsupported("include[]", "probabilities of tokens are not returned")
    if form.known_speaker_names or form.known_speaker_references:
        raise _unsupported("known_speaker_names[]", "speakers are not told apart")
    if "word" in form.timestamp_granularities:
        raise _unsupported("timestamp_granularities[]", "there are no times of words; ask for segments")
    if unknown := set(form.timestamp_granularities) - {"segment"}:
        raise RequestError(
            f"timestamp_granularities[]: {unknown.pop()[:50]!r} is not 'segment'", param="timestamp_granularities[]"
        )
    if form.timestamp_granularities and form.response_format != "verbose_json":
        raise RequestError(
            "timestamp_granularities[] needs response_format=verbose_json", param="timestamp_granularities[]"
        )
    if form.chunking_strategy not in (None, "", "auto") or form.chunking_kind not in (None, "server_vad"):
        raise RequestError("chunking_strategy is 'auto' or {'type': 'server_vad'}", param="chunking_strategy")


def _unsupported(param: str, reason: str) -> RequestError:
    return RequestError(f"{param} is not supported by this model: {reason}", param=param, code="unsupported_value")


def _language(tag: str, param: str) -> str:
    if not is_known(tag):
        raise RequestError(
            f"{param}: {tag[:50]!r} is no language code, such as 'en'", param=param, code="invalid_value"
        )
    return canonical_tag(tag)


async def _respond(
    service: Service, request: Request, form: SpeechForm, task: Literal["transcribe", "translate"], language: str | None
) -> Response:
    """Read the recording and answer with its transcript or translation."""
    service.engine.check_room()
    if form.response_format not in MEDIA_TYPES:
        raise RequestError(
            f"response_format: {form.response_format[:50]!r} is not one of {', '.join(MEDIA_TYPES)}",
            param="response_format",
            code="unsupported_value",
        )
    if form.stream and form.response_format not in STREAMED:
        raise RequestError(f"response_format: stream=true has the forms {', '.join(STREAMED)}", param="response_format")
    if form.prompt is not None and not is_text(form.prompt):
        raise RequestError("prompt: is no text of Unicode characters", param="prompt")
    waveform = await service.uploads.read(await form.file.read(), "file")
    instruction = instruction_for(service.model, "asr" if task == "transcribe" else "st", language)
    events = _events(service, form, waveform, instruction)
    if form.stream:
        response: Response = await stream(service, request, events)
    else:
        segments = await whole(service, request, lambda: _segments(events))
        duration_s = len(waveform) / SAMPLE_RATE_HZ
        text = render(form.response_format, segments, duration_s=duration_s, language=language, task=task)
        if form.response_format in ("json", "verbose_json"):
            usage = {"type": "duration", "seconds": round(duration_s, 3)}
            text = json.dumps({**json.loads(text), "usage": usage}, ensure_ascii=False)
        response = Response(
            text + "\n" * (form.response_format != "json"), media_type=MEDIA_TYPES[form.response_format]
        )
    if ignored := [name for name in HINTS if getattr(form, name, None)]:
        response.headers[IGNORED_HEADER] = ", ".join(ignored)
    return response


async def _segments(events: Events) -> list[Segment]:
    found = []
    async for event in events:
        if isinstance(event, dict) and event["type"] == "transcript.text.segment":
            found.append(Segment(event["start"], event["end"], event["text"]))
    return found


async def _events(service: Service, form: SpeechForm, waveform: Tensor, instruction: str) -> Events:
    """Yield the events of OpenAI's stream of a transcript."""
    decoding = service.decoding(streamed=form.stream, temperature=form.temperature, seed=form.seed)
    text, tokens, number = "", 0, 0
    async with aclosing(service.transcribe(waveform, instruction, decoding, service.deadline())) as found:
        async for heard in found:
            tokens += heard.tokens
            if heard.delta:
                text += heard.delta
                yield {"type": "transcript.text.delta", "delta": heard.delta}
            if (segment := heard.segment) is not None:
                times = {"start": round(segment.start_s, 3), "end": round(segment.end_s, 3)}
                yield {"type": "transcript.text.segment", "id": f"seg_{number}", **times, "text": segment.text}
                number += 1
    speech = round(len(waveform) / SAMPLE_RATE_HZ * service.model.token_rate_hz)
    usage = {"type": "tokens", "input_tokens": speech, "output_tokens": tokens, "total_tokens": speech + tokens}
    yield {"type": "transcript.text.done", "text": text, "usage": usage}
