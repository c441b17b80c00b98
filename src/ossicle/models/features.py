"""The input of an encoder, as its front end computes it from waveforms.

Shape legend: B utterances, C chunks of 30 s, T frames, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Features:
    """The keyword arguments of the model, and the place of its output in the batch."""

    tensors: dict[str, Tensor]
    lengths: Tensor  # (B,) valid frames of each utterance
    chunks: Tensor | None = None  # (B, C) bool: the rows of the model are the True chunks, in order
    widths: Tensor | None = None  # (rows,) feature vectors of each row that the model reads; None for all

    def encode(self, run: Callable[[dict[str, Tensor]], Tensor]) -> Tensor:
        """Return the frames (rows, T, D) that ``run`` computes, once for each width of features."""
        if self.widths is None:
            return run(self.tensors)
        groups = [self.widths == width for width in sorted(set(self.widths.tolist()))]
        parts = [
            run({name: rows[group][..., : int(self.widths[group][0])] for name, rows in self.tensors.items()})
            for group in groups
        ]
        longest = max(part.shape[1] for part in parts)
        frames = parts[0].new_zeros(len(self.widths), longest, parts[0].shape[2])
        for group, part in zip(groups, parts, strict=True):
            frames[group, : part.shape[1]] = part
        return frames


def last_hidden_state(model: Any, tensors: dict[str, Tensor]) -> Tensor:
    """Return the last hidden state (B, T, D) of ``model`` for its arguments ``tensors``."""
    state: Tensor = model(**tensors).last_hidden_state
    return state
