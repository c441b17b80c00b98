"""The quantity loss of continuous integrate-and-fire (Dong & Xu 2020)."""

from __future__ import annotations

from torch import Tensor


def quantity_loss(totals: Tensor, counts: Tensor) -> Tensor:
    """Return the mean of |total - count| / count, a scalar.

    ``totals`` (B,) are the sums of the weights of each utterance, and ``counts`` (B,) its numbers of text tokens, at
    least 1. The division, which the paper does not have, gives short and long utterances the same weight.
    """
    return ((totals.float() - counts) / counts).abs().mean()
