"""Average the Wasserstein similarity of matched and mismatched pairs, layer by layer, one batch at a time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ossicle.batch import Batch, HiddenStates
from ossicle.inspect.alignment import same_text
from ossicle.losses.sinkhorn import wasserstein_similarity


@dataclass(frozen=True)
class WassersteinRow:
    """Mean Wasserstein similarity at one layer, between -2 and 0 (unit vectors, cost |x - y|² / 2)."""

    matched: float
    """Mean over the matching pairs."""
    mismatched: float | None
    """Mean over pairs with different transcripts; None if no batch has such a pair."""


class MeanWasserstein:
    """Observe the mean Wasserstein similarity of all pairs within each batch.

    Pairs across batches are left out, since they would need the states of all tokens in memory. Batches should be drawn
    at random: batches of similar length give pairs that are harder to tell apart than random ones.
    Source of the similarity: Züfle & Niehues 2025, section 3.2.
    """

    def __init__(self) -> None:
        self._sums: dict[int, tuple[float, float]] = {}
        self._counts = (0, 0)

    def observe(self, batch: Batch, text: HiddenStates, speech: HiddenStates) -> None:
        """Add all pairs of the text (B, N, D) and the speech (B, M, D) of a batch."""
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
        """Return the means over all batches so far, by layer."""
        matched, mismatched = self._counts
        return {
            layer: WassersteinRow(own / matched, other / mismatched if mismatched else None)
            for layer, (own, other) in self._sums.items()
        }


def pair_sums(similarity: Tensor, same: Tensor) -> tuple[float, float]:
    """Return the sums of the diagonal of ``similarity`` (B, B) and of the pairs where ``same`` is False.

    Pairs off the diagonal with the same transcript are in neither sum.
    """
    values = similarity.to(torch.float64)
    return float(values.diagonal().sum()), float(values[~same].sum())
