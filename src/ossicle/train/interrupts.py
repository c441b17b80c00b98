"""End a training run at a signal."""

from __future__ import annotations

import signal
from types import FrameType


class Interruptible:
    """End the loop after the running step at Ctrl-C or SIGTERM.

    A second signal of the same kind stops the process at once. One of the other kind does not, because a launcher such
    as torchrun answers a Ctrl-C with SIGTERM to processes that received the Ctrl-C too.
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
        if number in self._seen:
            raise KeyboardInterrupt
        self._seen.add(number)
