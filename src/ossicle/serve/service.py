"""Answer conversations and transcribe recordings: what all endpoints share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from ossicle.listen import long
from ossicle.listen.inputs import Recording
from ossicle.listen.long import Segment, Stitcher, window_s
from ossicle.models.conversation import Message, Part
from ossicle.models.joint import asks_transcript
from ossicle.serve.audio_uploads import Uploads
from ossicle.serve.engine import Engine
from ossicle.serve.errors import RequestError
from ossicle.serve.jobs import Answer, Call, Decoding, Done, Piece
from ossicle.serve.llm_url import RemoteLLM
from ossicle.serve.prompts import is_long
from ossicle.serve.settings import ServeSettings

AHEAD = 4
"""Windows of one recording that are decoded at a time; more would leave little room to other requests."""


class Begun(Protocol):
    """An answer that has been asked for."""

    def events(self) -> AsyncGenerator[Piece | Done, None]:
        """Yield the events of the answer; see `ossicle.serve.jobs.Job.events`."""

    def cancel(self) -> None:
        """Give the answer up."""


@dataclass(frozen=True)
class Heard:
    """The next piece of a transcript, or the end of a segment."""

    delta: str = ""
    segment: Segment | None = None
    tokens: int = 0


class Service:
    """One model with its engine, and what requests may ask of it."""

    def __init__(self, engine: Engine, settings: ServeSettings, remote: RemoteLLM | None = None) -> None:
        self.engine, self.settings, self.remote = engine, settings, remote
        self.metrics, self.model = engine.metrics, engine.model
        self.uploads = Uploads(settings, self.metrics)
        engine.encoding.reading = lambda: self.uploads.reading
        self.created = int(time.time())
        self.sockets = 0

    def check_model(self, name: str | None) -> None:
        """Raise `RequestError` with the status 404 if a request asks for another model."""
        if name and name not in (self.settings.name, *self.settings.aliases):
            raise RequestError(
                f"there is no model {name[:100]!r}: this server has {self.settings.name!r}",
                404,
                param="model",
                code="model_not_found",
            )

    def deadline(self) -> float:
        """Return the time of `time.monotonic` until which a request that begins now must be complete."""
        return time.monotonic() + self.settings.request_timeout_s

    def decoding(self, *, max_tokens: int | None = None, streamed: bool = False, **given: Any) -> Decoding:
        """Return how an answer is decoded, with the limits of the server; settings that are None have their default."""
        own = {name: value for name in ("seed", "stop") if (value := given.pop(name, None)) is not None}
        settings = {name: value for name, value in given.items() if value is not None}
        settings["max_new_tokens"] = min(max_tokens or self.settings.default_tokens, self.settings.max_tokens)
        settings["max_time"] = self.settings.max_decode_s
        return Decoding(settings=settings, streamed=streamed, **own)

    def begin(self, conversation: Sequence[Message], decoding: Decoding, deadline_s: float) -> Begun:
        """Ask for the answer to a conversation. Its decoding begins even if nobody reads the events yet."""
        answer = Answer(conversation, decoding, deadline_s)
        if self.remote is not None:
            return _RemoteAnswer(self, self.remote, answer)
        turn = answer.turn
        if turn and is_long(self.model, turn[0]) and asks_transcript(self.model, turn[1], **decoding.settings):
            return _LongTranscript(self, turn, decoding, deadline_s)
        self.engine.submit(answer)
        return answer

    async def call(self, function: Callable[[], Any], deadline_s: float) -> Any:
        """Return what ``function`` returns in the thread that owns the model."""
        job = Call(function, deadline_s)
        self.engine.submit(job)
        return (await job.result()).value

    async def transcribe(
        self, waveform: Tensor, instruction: str, decoding: Decoding, deadline_s: float
    ) -> AsyncGenerator[Heard, None]:
        """Yield what is said in a recording (S,), or its translation, window by window.

        Windows without speech are left out. Joined, the deltas are the text of all segments with spaces between them.
        """
        recording = Recording(waveform.numpy())
        pieces = await asyncio.to_thread(lambda: [*long.pieces(recording, most_s=window_s(self.model))])
        begun: dict[int, Begun] = {}
        stitcher, said = Stitcher(), ""
        try:
            for k, piece in enumerate(pieces):
                for n in range(k, min(k + AHEAD, len(pieces))):
                    if n not in begun:
                        parts = [Part(waveform=recording_part(pieces[n].waveform)), Part(instruction)]
                        begun[n] = self.begin([Message("user", parts)], decoding, deadline_s)
                sent, before, text = said, f"{said} " if said else "", ""
                async with aclosing(begun[k].events()) as events:
                    async for event in events:
                        if isinstance(event, Done):
                            segment = stitcher.segment(piece, event.text)
                            if segment is not None:
                                said = before + segment.text
                            yield Heard(said[len(sent) :], segment, event.tokens)
                        elif not piece.overlaps:  # an overlapping window may repeat words of the one before it
                            text = f"{text}{event.text}" if text else before + event.text
                            yield Heard(text[len(sent) :])
                            sent = text
        finally:
            for one in begun.values():
                one.cancel()


def recording_part(waveform: Any) -> Tensor:
    """Return a window of a recording (S,) as a tensor of its own."""
    return Tensor(waveform.copy())


class _RemoteAnswer:
    """An answer that another engine decodes."""

    def __init__(self, service: Service, remote: RemoteLLM, answer: Answer) -> None:
        self.service, self.remote, self.answer = service, remote, answer

    def cancel(self) -> None:
        """Do nothing: the connection is closed with `events`."""

    async def events(self) -> AsyncGenerator[Piece | Done, None]:
        """Yield the events of the answer."""
        answer, model = self.answer, self.service.model
        messages = await self.service.call(lambda: self.remote.messages(model, answer.conversation), answer.deadline_s)
        body = self.remote.request(messages, answer.decoding, model.llm.end_ids)
        async with asyncio.timeout(max(0.0, answer.deadline_s - time.monotonic())):
            async with aclosing(self.remote.events(body, streamed=answer.decoding.streamed)) as events:
                async for event in events:
                    yield event


class _LongTranscript:
    """The transcript of a recording that does not fit into one window, as an answer."""

    def __init__(self, service: Service, turn: tuple[Tensor, str], decoding: Decoding, deadline_s: float) -> None:
        self._heard = service.transcribe(*turn, decoding, deadline_s)

    def cancel(self) -> None:
        """Do nothing: what was begun ends with `events`."""

    async def events(self) -> AsyncGenerator[Piece | Done, None]:
        """Yield the events of the answer."""
        text, tokens = "", 0
        async with aclosing(self._heard) as found:
            async for heard in found:
                text, tokens = text + heard.delta, tokens + heard.tokens
                if heard.delta:
                    yield Piece(heard.delta)
        yield Done(text, tokens=tokens)
