"""Generate one answer piece by piece."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ossicle.batch import Padded
from ossicle.models.running import RunningBatch


def stream(llm: Any, prompt: Padded, **given: Any) -> Iterator[str]:
    """Yield the answer to one prompt (1, L, D) in pieces, as it is decoded. Joined, they are what `generate` returns.

    Raises `ConfigError` for a beam search, whose text is known at its end only.
    """

    return RunningBatch(llm, most_rows=1).stream(prompt, **given)
