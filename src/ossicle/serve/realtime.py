"""Live transcription over a WebSocket, ``/v1/realtime``, with the events of OpenAI's transcription sessions."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import uuid
from contextlib import aclosing, suppress
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import soxr
import torch
from fastapi import APIRouter, WebSocket, WebSocketDisconnect
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ossicle.audio import SAMPLE_RATE_HZ
from ossicle.listen.wording import instruction_for
from ossicle.serve.errors import RequestError, as_request_error
from ossicle.serve.service import Service
from ossicle.serve.turns import Started, Stopped, Turns

MOST_WAITING = 8
"""Utterances of one connection that may wait to be transcribed."""
SUBPROTOCOL = "realtime"
FULL_SCALE = 2**15
ITEM = "conversation.item.input_audio_transcription"


class _Closed(BaseModel):
    model_config = ConfigDict(extra="ignore")


class AudioFormat(_Closed):
    """Form of the audio in ``input_audio_buffer.append``: 16-bit samples, little-endian, mono."""

    type: Literal["audio/pcm"] = "audio/pcm"
    rate: int = Field(default=24_000, ge=8_000, le=48_000)


class Transcription(_Closed):
    """Settings of a transcription session."""

    model: str | None = None
    language: str | None = None
    prompt: str | None = None


class TurnDetection(_Closed):
    """Settings of the voice activity detection."""

    type: Literal["server_vad"] = "server_vad"
    threshold: float = Field(default=0.5, ge=0, le=1)
    prefix_padding_ms: int = Field(default=300, ge=0, le=5_000)
    silence_duration_ms: int = Field(default=500, ge=50, le=10_000)


class AudioInput(_Closed):
    """Settings of the audio that the client sends."""

    format: AudioFormat = AudioFormat()
    transcription: Transcription = Transcription()
    turn_detection: TurnDetection | None = TurnDetection()


class Audio(_Closed):
    """Settings of audio."""

    input: AudioInput = AudioInput()


class SessionSettings(_Closed):
    """Settings of a session, as ``session.update`` sends them."""

    type: Literal["transcription"] = "transcription"
    audio: Audio = Audio()


def router(service: Service) -> APIRouter:
    """Return the endpoint."""
    routes = APIRouter()

    @routes.websocket("/v1/realtime")
    async def realtime(socket: WebSocket) -> None:
        """Transcribe the audio that a client sends."""
        model = socket.query_params.get("model")
        offered = socket.headers.get("sec-websocket-protocol", "")
        protocol = SUBPROTOCOL if SUBPROTOCOL in [name.strip() for name in offered.split(",")] else None
        if service.sockets >= service.settings.max_sockets:
            raise RequestError("too many connections are open: try again later", 429)
        service.check_model(None if socket.query_params.get("intent") == "transcription" and not model else model)
        service.sockets += 1  # before the next await, so that two that connect at once cannot both take the last place
        try:
            await socket.accept(subprotocol=protocol)
            with service.metrics.sockets.track_inprogress():
                await Session(service, socket).run()
        finally:
            service.sockets -= 1

    return routes


class Session:
    """One connection."""

    def __init__(self, service: Service, socket: WebSocket) -> None:
        self.service, self.socket = service, socket
        self.id = _name("sess")
        self.settings = SessionSettings()
        self.last_item: str | None = None
        self.item = _name("item")  # the item that the next audio becomes
        self._utterances: asyncio.Queue[tuple[str, npt.NDArray[np.float32]]] = asyncio.Queue(MOST_WAITING)
        self._apply()

    def _apply(self) -> None:
        """Begin a new buffer with the present settings."""
        vad = self.settings.audio.input.turn_detection
        self.turns = Turns(vad.silence_duration_ms / 1000, vad.prefix_padding_ms / 1000) if vad else Turns()
        self._new_resampler()

    def _new_resampler(self) -> None:
        self.resampler = soxr.ResampleStream(
            self.settings.audio.input.format.rate, SAMPLE_RATE_HZ, 1, dtype="float32", quality="HQ"
        )

    async def run(self) -> None:
        """Answer the client's events until it leaves."""
        await self._send("session.created", session=self._session())
        transcribing = asyncio.create_task(self._transcribe_all())
        try:
            while True:
                await self._handle(await self.socket.receive_text())
        except (WebSocketDisconnect, KeyError, RuntimeError):  # KeyError: the client sent bytes
            pass
        finally:
            transcribing.cancel()
            await asyncio.gather(transcribing, return_exceptions=True)
            with suppress(RuntimeError, WebSocketDisconnect):
                await self.socket.close()

    async def _handle(self, text: str) -> None:
        event_id = None
        try:
            try:
                event = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise RequestError("the event is not JSON") from error
            if not isinstance(event, dict):
                raise RequestError("the event is not an object")
            event_id = event.get("event_id")
            match event.get("type"):
                case "session.update":
                    await self._update(event.get("session"))
                case "input_audio_buffer.append":
                    await self._append(event.get("audio"))
                case "input_audio_buffer.commit":
                    await self._commit_by_client()
                case "input_audio_buffer.clear":
                    self._apply()
                    await self._send("input_audio_buffer.cleared")
                case kind:
                    raise RequestError(f"there is no event of the type {str(kind)[:100]!r}", param="type")
        except (WebSocketDisconnect, RuntimeError):
            raise
        except Exception as error:
            await self._send("error", error={**as_request_error(error).body["error"], "event_id": event_id})

    async def _update(self, session: Any) -> None:
        if not isinstance(session, dict):
            raise RequestError("session.update needs 'session'", param="session")
        merged = _merged(self.settings.model_dump(), session)
        try:
            settings = SessionSettings.model_validate(merged)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(["session", *map(str, first["loc"])])
            raise RequestError(f"{place}: {first['msg']}", param=place, code="invalid_value") from error
        self.service.check_model(settings.audio.input.transcription.model)
        self.settings = settings
        self._apply()
        await self._send("session.updated", session=self._session())

    async def _append(self, audio: Any) -> None:
        try:
            content = base64.b64decode(audio, validate=True)
        except (binascii.Error, ValueError, TypeError) as error:
            raise RequestError("audio: is not base64", param="audio") from error
        if len(content) % 2:
            raise RequestError("audio: has half a sample of 16 bits at its end", param="audio")
        samples = np.frombuffer(content, "<i2").astype(np.float32) / FULL_SCALE
        self.turns.add(self.resampler.resample_chunk(samples))
        if self.settings.audio.input.turn_detection is None:
            if self.turns.end_s > self.service.settings.max_audio_s:
                self._apply()
                raise RequestError("the buffer is full and was cleared: commit earlier", code="input_audio_too_long")
            return
        for change in await asyncio.to_thread(self.turns.check):
            if isinstance(change, Started):
                milliseconds = round(1000 * change.start_s)
                await self._send("input_audio_buffer.speech_started", audio_start_ms=milliseconds, item_id=self.item)
            elif isinstance(change, Stopped):
                milliseconds = round(1000 * change.end_s)
                await self._send("input_audio_buffer.speech_stopped", audio_end_ms=milliseconds, item_id=self.item)
                await self._commit(change.waveform)

    async def _commit_by_client(self) -> None:
        self.turns.add(self.resampler.resample_chunk(np.empty(0, np.float32), last=True))
        self._new_resampler()
        waveform = self.turns.take()
        if not len(waveform):
            raise RequestError("the buffer is empty: append audio first", code="input_audio_buffer_commit_empty")
        await self._commit(waveform)

    async def _commit(self, waveform: npt.NDArray[np.float32]) -> None:
        """Make an item of audio (S,) and let it be transcribed."""
        item, self.item = self.item, _name("item")
        await self._send("input_audio_buffer.committed", previous_item_id=self.last_item, item_id=item)
        self.last_item = item
        try:
            self._utterances.put_nowait((item, waveform))
        except asyncio.QueueFull:
            await self._fail(item, RequestError("too many utterances wait: send audio more slowly", 429))

    async def _transcribe_all(self) -> None:
        """Transcribe the utterances one after another."""
        while True:
            item, waveform = await self._utterances.get()
            try:
                await self._transcribe(item, waveform)
            except (WebSocketDisconnect, RuntimeError):
                return
            except Exception as error:
                await self._fail(item, as_request_error(error))

    async def _transcribe(self, item: str, waveform: npt.NDArray[np.float32]) -> None:
        service, text = self.service, ""
        instruction = instruction_for(service.model, "asr")
        decoding = service.decoding(streamed=True)
        with service.engine.admit():
            heard = service.transcribe(torch.from_numpy(waveform), instruction, decoding, service.deadline())
            async with aclosing(heard) as found:
                async for one in found:
                    if one.delta:
                        text += one.delta
                        await self._send(f"{ITEM}.delta", item_id=item, content_index=0, delta=one.delta)
        seconds = round(len(waveform) / SAMPLE_RATE_HZ, 3)
        service.metrics.audio_s.inc(seconds)
        usage = {"type": "duration", "seconds": seconds}
        await self._send(f"{ITEM}.completed", item_id=item, content_index=0, transcript=text, usage=usage)

    async def _fail(self, item: str, error: RequestError) -> None:
        await self._send(f"{ITEM}.failed", item_id=item, content_index=0, error=error.body["error"])

    async def _send(self, kind: str, **fields: Any) -> None:
        await self.socket.send_text(
            json.dumps({"type": kind, "event_id": _name("event"), **fields}, ensure_ascii=False)
        )

    def _session(self) -> dict[str, Any]:
        settings = self.settings.model_dump()
        settings["audio"]["input"]["transcription"]["model"] = self.service.settings.name
        return {"id": self.id, "object": "realtime.transcription_session", **settings}


def _merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Return ``old`` with the values of ``new``, level by level."""
    merged = dict(old)
    for name, value in new.items():
        both = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = _merged(merged[name], value) if both else value
    return merged


def _name(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex[:20]}"
