"""The thread that turns conversations into prompts, so that answers that are decoded do not wait for the encoder."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ossicle.batch import Batch, Padded, Sample, pad
from ossicle.errors import DataError
from ossicle.models.joint import asks_transcript
from ossicle.serve.jobs import Answer
from ossicle.serve.prompts import is_long, prompt_of

MOST_ENCODED = 8
"""Recordings that are encoded together."""
COLLECT_S = 0.004
"""Seconds that a recording waits for the next one, because recordings are cheaper to encode together."""
READING_S = 0.1
"""Longest wait for recordings that are being read. It is not longer than the last encoding took."""


@dataclass(frozen=True)
class Prepared:
    """An answer that can be decoded."""

    job: Answer
    prompt: Padded  # (1, L, D) without padding


Ready = Prepared | tuple[Answer, Exception]


class Encoding:
    """Make prompts of conversations, in a thread of its own.

    Args:
        model: A `ossicle.models.speech_llm.SpeechLLM`.
        deliver: Function that gets the `Prepared` answers, or the jobs and their errors, that can go on together.

    Attributes:
        reading: Function that returns the number of recordings that are being read at the moment.
    """

    def __init__(self, model: Any, deliver: Callable[[Sequence[Ready]], None]) -> None:
        self.model, self.deliver = model, deliver
        self.reading: Callable[[], int] = lambda: 0
        self._took_s = 0.0  # by the last encoding
        self.in_use = threading.Lock()
        """Held while a thread uses the encoder, whose hidden states are collected in one place."""
        self._prompter = model.prompter()
        self._inbox: queue.SimpleQueue[Answer | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="ossicle-encoding", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Let the thread end after what it was given."""
        self._inbox.put(None)

    def submit(self, job: Answer) -> None:
        """Hand over an answer that is to be prepared."""
        self._inbox.put(job)

    def is_turn(self, job: Answer) -> bool:
        """Return True if a conversation is one turn as in training, so that it can be encoded with others."""
        return job.turn is not None and not is_long(self.model, job.turn[0])

    def is_joint(self, job: Answer) -> bool:
        """Return True if the answer is a transcript that is found by beam search."""
        turn = job.turn
        if turn is None or not self.is_turn(job):
            return False
        return asks_transcript(self.model, turn[1], **job.decoding.settings)

    def batch(self, jobs: list[Answer]) -> Batch:
        """Return the batch of conversations that are one turn each."""
        turns = [job.turn or (None, "") for job in jobs]
        samples = [
            Sample(id=str(i), audio=Path(), instruction=asked, source="file") for i, (_, asked) in enumerate(turns)
        ]
        waveforms: list[Any] = [waveform for waveform, _ in turns]
        batch = Batch(samples=samples, waveforms=pad(waveforms), chat=self._prompter.chat(samples, 0))
        return batch.to(next(self.model.projector.parameters()).device)

    def _run(self) -> None:
        while (jobs := self._next()) is not None:
            over = {job for job in jobs if job.is_over}
            if over:  # the engine counts what comes back
                self.deliver([(job, TimeoutError()) for job in over])
            jobs = [job for job in jobs if job not in over]
            started_s = time.monotonic()
            self._prepare([job for job in jobs if self.is_turn(job)])
            self._took_s = time.monotonic() - started_s
            for job in jobs:
                if not self.is_turn(job):
                    self._prepare_alone(job)

    def _next(self) -> list[Answer] | None:
        """Wait for jobs and return them; None at the end."""
        job = self._inbox.get()
        jobs: list[Answer] = []
        latest_s = time.monotonic() + min(self._took_s, READING_S)
        while job is not None:
            jobs.append(job)
            if len(jobs) == MOST_ENCODED:
                return jobs
            try:
                job = self._following(latest_s)
            except queue.Empty:
                return jobs
        if jobs:
            self._inbox.put(None)
            return jobs
        return None

    def _following(self, latest_s: float) -> Answer | None:
        """Return the next job. Raises `queue.Empty` if it does not come soon."""
        while True:
            try:
                return self._inbox.get(timeout=COLLECT_S)
            except queue.Empty:
                if not self.reading() or time.monotonic() > latest_s:
                    raise

    def _prepare(self, jobs: list[Answer]) -> None:
        """Encode the recordings of ``jobs`` together, or one by one if that fails, to find out whose error it is."""
        if not jobs:
            return
        try:
            with torch.inference_mode(), self.in_use:
                batch = self.batch(jobs)
                speech = self.model.speech(batch)
                if not bool(speech.mask.any(1).all()):
                    raise DataError("the recording is shorter than a frame of the encoder: send a longer one")
                prompt = self.model.prompt(batch.chat, speech)
        except Exception as error:
            if len(jobs) == 1:
                self.deliver([(jobs[0], error)])
            else:
                for job in jobs:
                    self._prepare([job])
            return
        rows = zip(jobs, prompt.values, prompt.mask, strict=True)
        self.deliver([Prepared(job, Padded(values[mask][None], mask[mask][None])) for job, values, mask in rows])

    def _prepare_alone(self, job: Answer) -> None:
        try:
            with self.in_use:
                prompt = prompt_of(self.model, job.conversation)
        except Exception as error:
            self.deliver([(job, error)])
        else:
            self.deliver([Prepared(job, prompt)])
