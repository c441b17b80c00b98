"""The loss of connectionist temporal classification (Graves et al., 2006) for batches of unequal length."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def ctc_loss(log_probabilities: Tensor, lengths: Tensor, labels: list[list[int]]) -> Tensor:
    """Return the negative log-probability of the labels: in nats per label of an utterance, averaged over utterances.

    Args:
        log_probabilities: (B, P, V) in float32; the blank is class 0.
        lengths: (B,) valid positions.
        labels: Classes of each utterance. One with more labels than its positions can hold counts as zero.
    """
    device = log_probabilities.device
    return F.ctc_loss(
        log_probabilities.transpose(0, 1),
        torch.tensor([label for row in labels for label in row], device=device),
        lengths,
        torch.tensor([len(row) for row in labels], device=lengths.device),
        zero_infinity=True,
    )
