"""Wasserstein similarity of matched and mismatched pairs, layer by layer, in the memory of one batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ossicle.batch import Batch, HiddenStates
from ossicle.inspect.alignment import same_text
from ossicle.losses.sinkhorn import wasserstein_similarity


@dataclass(frozen=True)
class WassersteinRow:
    """Mean Wasserstein similarity at one layer; 0 at best, -2 at worst (unit vectors, cost |x - y|² / 2)."""

    matched: float
    mismatched: float | None
    """Of pairs with different transcripts; None where no batch held any."""


class MeanWasserstein:
    """Collects the means over batches: all pairs within a batch, since single tokens of all N would fill the memory.

    Mismatched pairs are those of one batch, so batches should be drawn at random: utterances of like length would be
    harder to tell apart than any two. Source of the similarity: Züfle & Niehues 2025, section 3.2.
    """

    def __init__(self) -> None:
        self._sums: dict[int, tuple[float, float]] = {}
        self._counts = (0, 0)

    def see(self, batch: Batch, text: HiddenStates, speech: HiddenStates) -> None:
        """All pairs of the texts (B, N, D) and the speech (B, M, D) of a batch."""
        same = same_text(len(batch), [sample.text or "" for sample in batch.samples])
        self._counts = self._counts[0] + len(batch), self._counts[1] + int((~same).sum())
        for layer in text.states:
            similarity = wasserstein_similarity(
                text.states[layer].float(), text.mask, speech.states[layer].float(), speech.mask
            )
            sums = pair_sums(similarity.cpu(), same)
            before = self._sums.get(layer, (0.0, 0.0))
            self._sums[layer] = before[0] + sums[0], before[1] + sums[1]

    @property
    def rows(self) -> dict[int, WassersteinRow]:
        """The means so far, by layer."""
        matched, mismatched = self._counts
        return {
            layer: WassersteinRow(own / matched, other / mismatched if mismatched else None)
            for layer, (own, other) in self._sums.items()
        }


def pair_sums(similarity: Tensor, same: Tensor) -> tuple[float, float]:
    """Sum of the diagonal of ``similarity`` (B, B), and of its pairs of different transcripts, where ``same`` is False.

    Pairs off the diagonal with the same transcript are in neither.
    """
    values = similarity.to(torch.float64)
    return float(values.diagonal().sum()), float(values[~same].sum())
