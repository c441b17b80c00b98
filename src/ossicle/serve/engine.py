"""The thread that decodes all answers in one running batch, and stops in good order.

New answers join between two steps of decoding. Another thread encodes their recordings meanwhile. Transcripts of models
that spell speech are decoded by a beam search (`ossicle.models.joint`), which nothing can join. They are collected
while the search before them runs, and decoded together.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from ossicle.errors import ConfigError
from ossicle.models.joint import checked_speeds
from ossicle.models.running import Row, RunningBatch
from ossicle.models.text_stream import TextStream
from ossicle.serve.encoding import MOST_ENCODED, Encoding, Prepared, Ready
from ossicle.serve.errors import RequestError
from ossicle.serve.jobs import Answer, Call, Done, Job, Piece
from ossicle.serve.linear import use_onednn
from ossicle.serve.metrics import Metrics
from ossicle.serve.settings import ServeSettings

log = logging.getLogger(__name__)
JOIN_WAIT_S = 0.03
"""Longest wait before a step for answers that are being encoded, if these are more than those in the batch."""
FIRST_GUESS_S = 2.0
"""Assumed length of a request before the first one is complete."""


class Engine:
    """Decode the answers of all requests with one model.

    Args:
        model: A `ossicle.models.speech_llm.SpeechLLM` in evaluation mode.
        settings: Sizes of the batch and of the queue.
        metrics: Counters; by default its own.

    Raises `ConfigError` for speeds that the model cannot use.
    """

    def __init__(self, model: Any, settings: ServeSettings, metrics: Metrics | None = None) -> None:
        self.model, self.settings, self.metrics = model, settings, metrics or Metrics()
        self._speeds = checked_speeds(settings.speeds)
        if self._speeds and model.config.projector.name != "ctc":
            raise ConfigError("--speed: only models that spell (projector ctc) can use it")
        use_onednn(model)
        self.running = RunningBatch(model.llm, settings.max_rows)
        self.stopping = False
        self._jobs: dict[Row, Answer] = {}
        self._answers: deque[Answer] = deque()  # they wait to be encoded
        self._encoded = 0  # answers that are being encoded
        self._alone: deque[Job] = deque()  # beam searches and calls, during which nothing else is decoded
        self._inbox: queue.SimpleQueue[Job | Sequence[Ready] | None] = queue.SimpleQueue()
        self._in_flight = 0
        self._mean_s = FIRST_GUESS_S
        self._alone_s = 0.0  # time of the last of them, minus the decoding since then
        self.encoding = Encoding(model, lambda done: self._inbox.put(done))
        self._thread = threading.Thread(target=self._run, name="ossicle-engine", daemon=True)

    def start(self) -> None:
        """Start the threads."""
        self.encoding.start()
        self._thread.start()

    def stop(self, timeout_s: float | None = None) -> None:
        """Finish the jobs that were submitted, and end the threads. New requests are refused from now on."""
        self.stopping = True
        self._inbox.put(None)
        self._thread.join(timeout_s)
        self.encoding.stop()

    @property
    def is_alive(self) -> bool:
        """True while the thread runs."""
        return self._thread.is_alive()

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Count a request as accepted while the block runs.

        Raises `RequestError` with the status 429 and the header Retry-After if the queue is full, and 503 while the
        server stops.
        """
        self.check_room()
        self._in_flight += 1
        self.metrics.in_flight.set(self._in_flight)
        started_s = time.monotonic()
        try:
            yield
        finally:
            self._in_flight -= 1
            self.metrics.in_flight.set(self._in_flight)
            self._mean_s += 0.1 * (time.monotonic() - started_s - self._mean_s)

    def check_room(self) -> None:
        """Raise as `admit` if a request could not be accepted now."""
        if self.stopping or not self.is_alive:
            raise RequestError("the server is stopping: use another one", 503, code="stopping")
        if self._in_flight >= self.settings.max_rows + self.settings.max_queue:
            wait_s = round(min(60.0, max(1.0, self._mean_s * self.settings.max_queue / self.settings.max_rows)))
            self.metrics.refused.inc()
            raise RequestError(
                f"the server is busy: try again in {wait_s} s",
                429,
                code="rate_limit_exceeded",
                headers={"Retry-After": str(wait_s)},
            )

    def submit(self, job: Job) -> None:
        """Hand over a job of an accepted request."""
        self._inbox.put(job)

    def _run(self) -> None:
        while self._collect():
            try:
                self._drop_given_up()
                self._run_alone()
                self._encode_waiting()
                self._step()
            except Exception as error:  # such as too little memory for the batch: all answers in it are lost
                log.exception("decoding failed")
                for job in self._jobs.values():
                    job.send(error)
                self._jobs, self.running = {}, RunningBatch(self.model.llm, self.settings.max_rows)
            self.metrics.rows.set(len(self.running))
            self.metrics.waiting.set(len(self._answers) + len(self._alone))

    def _collect(self) -> bool:
        """Take what has arrived; wait for it if there is nothing else to do. Return False at the end."""
        while True:
            idle = not (self._alone or len(self.running) or (self._answers and self._may_encode))
            if idle and self.stopping and not self._encoded and self._inbox.empty():
                return False
            # Steps cost nearly the same for one answer and for eight: wait a moment for those that are about to join.
            soon = self._encoded > len(self.running)
            try:
                arrived = self._inbox.get(block=idle or soon, timeout=None if idle else JOIN_WAIT_S)
            except queue.Empty:
                return True
            match arrived:
                case list():
                    self._take(arrived)
                case Answer() if not self.encoding.is_joint(arrived):
                    self._answers.append(arrived)
                case Job():
                    self._alone.append(arrived)

    def _take(self, ready: Sequence[Ready]) -> None:
        """Let answers join whose recordings are encoded, and send the errors of the others."""
        self._encoded -= len(ready)
        for one in ready:
            if isinstance(one, Prepared):
                self._join(one)
            else:
                one[0].send(one[1])

    @property
    def _may_encode(self) -> bool:
        """True if there is room for another answer, or if it can join as soon as one of the next few has left."""
        return len(self.running) + self._encoded < self.running.most_rows + MOST_ENCODED

    def _drop_given_up(self) -> None:
        for row, job in [*self._jobs.items()]:
            if job.is_over:
                self.running.leave(row)
                del self._jobs[row]
        self._answers = deque(job for job in self._answers if not job.is_over)
        self._alone = deque(job for job in self._alone if not job.is_over)

    def _run_alone(self) -> None:
        """Run the first call, or the first beam searches together. Running answers get as much time in turn."""
        if not self._alone or (self._jobs and self._alone_s > 0):
            return
        started_s = time.monotonic()
        first = self._alone.popleft()
        with self.encoding.in_use:
            if isinstance(first, Call):
                self._call(first)
            elif isinstance(first, Answer):
                jobs = [first]
                while self._alone and isinstance(following := self._alone[0], Answer) and len(jobs) < MOST_ENCODED:
                    jobs.append(following)
                    self._alone.popleft()
                self._search(jobs)
        self._alone_s = time.monotonic() - started_s

    def _call(self, job: Call) -> None:
        try:
            job.send(Done(value=job.function()))
        except Exception as error:
            job.send(error)

    def _encode_waiting(self) -> None:
        while self._answers and self._may_encode:
            self._encoded += 1
            self.encoding.submit(self._answers.popleft())

    def _search(self, jobs: list[Answer]) -> None:
        """Decode transcripts by beam search and send them whole. If it fails, each is tried alone."""
        most = max(job.decoding.settings["max_new_tokens"] for job in jobs)
        try:
            texts = self.model.generate_batch(self.encoding.batch(jobs), max_new_tokens=most, speeds=self._speeds)
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].send(error)
            else:
                for job in jobs:
                    self._search([job])
            return
        for job, text in zip(jobs, texts, strict=True):
            tokens = len(self.model.llm.tokenizer(text, add_special_tokens=False).input_ids)
            self.metrics.tokens.inc(tokens)
            if job.decoding.streamed and text:
                job.send(Piece(text))
            job.send(Done(text, tokens=tokens))

    def _join(self, prepared: Prepared) -> None:
        """Let an answer join the running batch, with as many tokens as fit into the LLM's context."""
        job, prompt = prepared.job, prepared.prompt
        if job.is_over:
            return
        job.prompt_tokens = prompt.values.shape[1]
        settings, context = dict(job.decoding.settings), self.model.llm.context
        if context is not None and job.prompt_tokens >= context:
            job.send(
                RequestError(
                    f"the request has {job.prompt_tokens} positions, and the LLM reads {context}: send less audio",
                    code="context_length_exceeded",
                )
            )
            return
        if context is not None:
            settings["max_new_tokens"] = min(settings["max_new_tokens"], context - job.prompt_tokens)
        try:
            (row,) = self.running.join(prompt, seed=job.decoding.seed, **settings)
        except Exception as error:
            job.send(error)
            return
        job.text = TextStream(self.model.llm.tokenizer, job.decoding.stop)
        self._jobs[row] = job

    def _step(self) -> None:
        if not len(self.running):
            return
        started_s = time.monotonic()
        with torch.inference_mode():  # a little faster than `torch.no_grad`, which the step has itself
            stepped = self.running.step()
        for row in stepped:
            self._send_token(row, self._jobs[row])
        self.metrics.steps.inc()
        self._alone_s -= time.monotonic() - started_s

    def _send_token(self, row: Row, job: Answer) -> None:
        text, decoding = job.text, job.decoding
        if text is None:
            raise TypeError("an answer is decoded that has not joined")
        self.metrics.tokens.inc()
        piece = ""
        if row.end is not None:
            piece = text.finish(row.ids)
        elif decoding.streamed or decoding.stop:
            piece = text.push(row.ids)
            if text.stopped:
                self.running.leave(row)
        if piece and decoding.streamed:
            job.send(Piece(piece))
        if row.end is not None:
            del self._jobs[row]
            end = "length" if row.end == "length" and not text.stopped else "stop"
            job.send(Done(text.text, end, job.prompt_tokens, len(row.ids)))
