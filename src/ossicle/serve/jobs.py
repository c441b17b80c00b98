"""Define the jobs that requests give to the engine, and the events that they get back, between threads."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ossicle.models.conversation import Message
from ossicle.models.text_stream import TextStream


@dataclass(frozen=True)
class Piece:
    """The next piece of an answer's text."""

    text: str


@dataclass(frozen=True)
class Done:
    """The end of an answer, or the result of a `Call`."""

    text: str = ""
    end: str = "stop"
    """``stop`` if the answer is complete, ``length`` if it was cut."""
    prompt_tokens: int = 0
    tokens: int = 0
    value: Any = None


class Job:
    """A part of a request. The event loop creates it and reads its events; the thread of the engine sends them.

    Args:
        deadline_s: Time of `time.monotonic` at which it is given up.
    """

    def __init__(self, deadline_s: float) -> None:
        self.deadline_s = deadline_s
        self.cancelled = False
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Piece | Done | BaseException] = asyncio.Queue()

    @property
    def is_over(self) -> bool:
        """True if nobody waits for the job any more."""
        return self.cancelled or time.monotonic() > self.deadline_s

    def cancel(self) -> None:
        """Let the engine drop the job at its next step."""
        self.cancelled = True

    def send(self, event: Piece | Done | BaseException) -> None:
        """Send an event from the engine's thread."""
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)
        except RuntimeError:  # the loop was closed, so that nobody waits
            self.cancelled = True

    async def events(self) -> AsyncGenerator[Piece | Done, None]:
        """Yield the events up to and with `Done`. Whoever stops early cancels the job.

        Raises the error of the job, and `TimeoutError` after its deadline.
        """
        try:
            while True:
                async with asyncio.timeout(max(0.0, self.deadline_s - time.monotonic())):
                    event = await self._events.get()
                if isinstance(event, BaseException):
                    raise event
                yield event
                if isinstance(event, Done):
                    return
        finally:
            self.cancel()

    async def result(self) -> Done:
        """Wait for the end. Raises as `events`."""
        done = Done()
        async for event in self.events():
            if isinstance(event, Done):
                done = event
        return done


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How an answer is decoded."""

    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of `LLM.generate`."""
    seed: int | None = None
    stop: Sequence[str] = ()
    streamed: bool = False
    """Send `Piece` events. Without them only the end is sent."""


class Answer(Job):
    """The answer to a conversation of one or more messages."""

    def __init__(self, conversation: Sequence[Message], decoding: Decoding, deadline_s: float) -> None:
        super().__init__(deadline_s)
        self.conversation, self.decoding = conversation, decoding
        self.text: TextStream | None = None
        self.prompt_tokens = 0

    @property
    def turn(self) -> tuple[Any, str] | None:
        """The waveform (S,) and the instruction of a conversation that is one turn as in training, else None."""
        parts = self.conversation[0].parts
        if len(self.conversation) > 1 or len(parts) != 2:
            return None
        first, second = parts
        return (first.waveform, second.text) if first.waveform is not None and second.waveform is None else None


class Call(Job):
    """The result of a function that needs the model, and therefore runs in the engine's thread."""

    def __init__(self, function: Callable[[], Any], deadline_s: float) -> None:
        super().__init__(deadline_s)
        self.function = function
