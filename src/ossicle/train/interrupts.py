"""End a training run at a signal."""

from __future__ import annotations

import signal
from types import FrameType


class Interruptible:
    """End the loop after the running step at Ctrl-C or SIGTERM.

    A second Ctrl-C stops the process at once. A second SIGTERM does not: a job scheduler sends it to all processes, and
    a launcher such as torchrun passes it on to those that have received it. It also answers a Ctrl-C with SIGTERM.
    """

    def __enter__(self) -> Interruptible:
        self._seen: set[int] = set()
        try:
            self._old = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not the main thread, and only the main thread receives signals
            self._old = {}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def __call__(self) -> bool:
        """Return True if the user asked to stop."""
        return bool(self._seen)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and number in self._seen:
            raise KeyboardInterrupt
        self._seen.add(number)


def outlive_signal(worker: int) -> None:
    """Let this data worker ignore its first SIGTERM, which a job scheduler sends to it and to the training alike.

    The training then takes its step to the end, saves a checkpoint and ends the worker. A second SIGTERM ends it, as
    PyTorch does if a worker hangs.
    """

    def first(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, first)
