"""Score texts that a recording may begin with, by connectionist temporal classification (CTC).

Source: CTC prefix scores (Graves, 2008; Watanabe et al., 2017).

Shape legend: K texts, P positions of an utterance, V labels and the blank.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ossicle.models.ctc import BLANK

NEVER = -1e30
"""Log-probability of what cannot be: finite, so that differences stay defined."""


@dataclass(frozen=True)
class Prefixes:
    """Log-probabilities that the first positions of an utterance spell each of K texts, for 0 to P positions."""

    last: Tensor  # (K,) the last label of each text, or the blank if it has none
    label: Tensor  # (K, P + 1) the last of these positions spells the last label
    blank: Tensor  # (K, P + 1) the last of these positions is a blank
    score: Tensor  # (K,) that the recording begins with the text

    @classmethod
    def empty(cls, log: Tensor) -> Prefixes:
        """Return the empty text, for log-probabilities ``log`` (P, V) of the blank and the labels."""
        blank = F.pad(log[:, BLANK].cumsum(0), (1, 0))[None]
        return cls(torch.full((1,), BLANK), torch.full_like(blank, NEVER), blank, blank.new_zeros(1))

    @property
    def either(self) -> Tensor:
        """The log-probability that the first positions spell the text (K, P + 1)."""
        return torch.logaddexp(self.label, self.blank)

    def __getitem__(self, rows: Tensor) -> Prefixes:
        return Prefixes(self.last[rows], self.label[rows], self.blank[rows], self.score[rows])

    def extended(self, labels: Tensor, log: Tensor) -> Prefixes:
        """Return each text with one of ``labels`` (K,) more. A text with the blank stays as it is."""
        # A blank must stand between equal labels.
        start = torch.where((labels == self.last)[:, None], self.blank, self.either)[:, :-1]
        step = log[:, labels].T  # (K, P)
        label = _runs(start, step)
        blank = _runs(label[:, :-1], log[:, BLANK])
        same = labels == BLANK
        return Prefixes(
            torch.where(same, self.last, labels),
            torch.where(same[:, None], self.label, label),
            torch.where(same[:, None], self.blank, blank),
            torch.where(same, self.score, torch.logsumexp(start + step, 1)),
        )

    def following(self, log: Tensor, mass: Tensor) -> Tensor:
        """Return the log-probability (K, V) that the recording begins with a text and each label, or is the text.

        It adds up the positions where the label can begin. The last column is that of the text itself.

        Args:
            log: Log-probabilities (P, V) of the blank and the labels.
            mass: Their exponentials.
        """
        start = self.either
        most = start[:, :-1].amax(1, keepdim=True)
        begun = (start[:, :-1] - most).exp().to(mass.dtype) @ mass
        spelled = begun.double().clamp_min(1e-37).log() + most
        repeated = torch.logsumexp(self.blank[:, :-1] + log[:, self.last].T, 1)
        spelled[torch.arange(len(start)), self.last] = repeated
        return torch.cat([spelled[:, 1:], start[:, -1:]], 1)


def _runs(start: Tensor, step: Tensor) -> Tensor:
    """Return the log-probability (K, P + 1) of a run that ends at each position.

    A run begins after 0 to P - 1 positions, with log-probability ``start`` (K, P), and has ``step`` (K or 1, P) at each
    of its own positions.
    """
    total = F.pad(step.cumsum(-1), (1, 0))
    return F.pad(total[..., 1:] + torch.logcumsumexp(start - total[..., :-1], -1), (1, 0), value=NEVER)
