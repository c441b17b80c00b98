"""Count requests, tokens and times, in the format of Prometheus."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

DURATIONS_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """Counters of one server. They are its own, so that several servers can run in a process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self.registry, "namespace": "ossicle"}
        self.requests = Counter("requests", "Requests by endpoint and status.", ["endpoint", "status"], **own)
        self.refused = Counter("requests_refused", "Requests that were refused because the queue was full.", **own)
        self.cancelled = Counter("requests_cancelled", "Requests whose client left before the end.", **own)
        self.seconds = Histogram(
            "request_seconds", "Seconds from the request to the end of its answer.", buckets=DURATIONS_S, **own
        )
        self.audio_s = Counter("audio_seconds", "Seconds of audio that were read.", **own)
        self.tokens = Counter("tokens", "Tokens that were decoded.", **own)
        self.steps = Counter("decoding_steps", "Steps of decoding; tokens per step is the size of the batch.", **own)
        self.in_flight = Gauge("requests_in_flight", "Requests that were accepted and are not complete.", **own)
        self.rows = Gauge("decoding_rows", "Answers that are decoded at the moment.", **own)
        self.waiting = Gauge("waiting_jobs", "Parts of requests that wait to be decoded.", **own)
        self.sockets = Gauge("open_sockets", "WebSocket connections.", **own)

    def text(self) -> bytes:
        """Return all counters as text."""
        return generate_latest(self.registry)
