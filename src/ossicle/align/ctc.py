"""Compute exact CTC forced alignments: the most probable path that spells a known text, for a padded batch.

Shape legend: B utterances, T frames, V labels of the CTC head, U targets (labels of the text), S = 2U + 1 states.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ossicle.errors import AlignmentError


@dataclass(frozen=True)
class TokenSpans:
    """The frames of each target. Entries of padded targets are undefined."""

    starts: Tensor  # (B, U) long, first frame of each target
    ends: Tensor  # (B, U) long, one past its last frame
    scores: Tensor  # (B, U) mean log-probability of the target over its frames
    path_scores: Tensor  # (B,) log-probability of the whole path, blanks included


def ctc_align(
    log_probs: Tensor, frame_lengths: Tensor, targets: Tensor, target_mask: Tensor, *, blank: int = 0
) -> TokenSpans:
    """Return the frames of each target on the most probable CTC path that spells ``targets``.

    The Viterbi search loops over frames and handles all states and utterances at once. A path visits the states blank,
    target 1, blank, target 2, ..., blank in order, one state per frame. It may skip a blank unless the targets beside
    it are equal, because CTC merges equal labels that no blank separates.

    Args:
        log_probs: (B, T, V), padded on the right.
        frame_lengths: (B,) number of valid frames of each utterance.
        targets: (B, U) labels, padded on the right. Valid targets must differ from ``blank``.
        target_mask: (B, U) bool, True at valid targets.
        blank: the index of the blank label.

    Raises:
        AlignmentError: an utterance has too few frames for its targets, or no path with a finite log-probability.
        ValueError: a target is the blank.
    """
    _check(frame_lengths, targets, target_mask, blank)
    batch, longest = targets.shape
    states = log_probs.new_full((batch, 2 * longest + 1), blank, dtype=torch.long)  # (B, S)
    states[:, 1::2] = targets.masked_fill(~target_mask, blank)
    # At least float32: in bfloat16, a sum over a thousand frames loses terms.
    log_probs = log_probs.to(torch.promote_types(log_probs.dtype, torch.float32))
    emissions = log_probs.gather(2, states[:, None].expand(-1, log_probs.shape[1], -1))  # (B, T, S)
    totals, moves = _forward(emissions, frame_lengths, states, blank)
    final = 2 * target_mask.sum(1)  # the last blank; the last target is one below
    ending_in = torch.stack([final, (final - 1).clamp(min=0)], 1)  # (B, 2)
    path_scores, which = totals.gather(1, ending_in).max(1)
    for index in torch.nonzero(~path_scores.isfinite()).flatten().tolist():
        raise AlignmentError(f"utterance {index} of the batch: no path has a probability above zero; check its text")
    path = _backward(moves, ending_in.gather(1, which[:, None])[:, 0])  # (B, T)
    return _spans(path, frame_lengths, emissions, path_scores)


def frames_needed(targets: Tensor, target_mask: Tensor) -> Tensor:
    """Return the smallest number of frames (B,) for ``targets`` (B, U): one each, plus a blank between equal ones."""
    repeats = (targets[:, 1:] == targets[:, :-1]) & target_mask[:, 1:]
    return target_mask.sum(1) + repeats.sum(1)


def _check(frame_lengths: Tensor, targets: Tensor, target_mask: Tensor, blank: int) -> None:
    if ((targets == blank) & target_mask).any():
        raise ValueError(f"the targets contain the blank ({blank}); remove it from the targets")
    needed = frames_needed(targets, target_mask).clamp(min=1)
    for index in torch.nonzero(frame_lengths < needed).flatten().tolist():
        raise AlignmentError(
            f"utterance {index} of the batch has {int(frame_lengths[index])} frames, "
            f"its {int(target_mask[index].sum())} labels need {int(needed[index])}; check its text"
        )


def _forward(emissions: Tensor, frame_lengths: Tensor, states: Tensor, blank: int) -> tuple[Tensor, Tensor]:
    """Return the best log-probability of each state (B, S) at the last frame of each utterance, and ``moves``.

    ``moves`` (T, B, S) holds how many states the best step into a frame advances: 0, 1 or 2.
    """
    batch, frames, count = emissions.shape
    may_skip = torch.zeros_like(states, dtype=torch.bool)
    may_skip[:, 2:] = (states[:, 2:] != blank) & (states[:, 2:] != states[:, :-2])
    skip_cost = torch.zeros_like(emissions[:, 0]).masked_fill(~may_skip, -torch.inf)  # (B, S)
    totals = torch.full_like(skip_cost, -torch.inf)
    totals[:, :2] = emissions[:, 0, :2]
    moves = torch.zeros(frames, batch, count, dtype=torch.uint8, device=emissions.device)
    for frame in range(1, frames):
        one_back, two_back = F.pad(totals, (1, 0), value=-torch.inf), F.pad(totals, (2, 0), value=-torch.inf)
        best, move = torch.stack([totals, one_back[:, :-1], two_back[:, :-2] + skip_cost]).max(0)
        running = (frame < frame_lengths)[:, None]  # an utterance that has ended keeps its totals
        totals = torch.where(running, best + emissions[:, frame], totals)
        moves[frame] = move * running
    return totals, moves


def _backward(moves: Tensor, last: Tensor) -> Tensor:
    """Return the states (B, T) of the path that ends in state ``last`` (B,)."""
    path = torch.empty(moves.shape[:2], dtype=torch.long, device=moves.device)  # (T, B)
    state = last
    for frame in range(len(moves) - 1, -1, -1):
        path[frame] = state
        state = state - moves[frame].gather(1, state[:, None])[:, 0]
    return path.T


def _spans(path: Tensor, frame_lengths: Tensor, emissions: Tensor, path_scores: Tensor) -> TokenSpans:
    """Return the frames and the mean score of each target on ``path`` (B, T)."""
    batch, frames, count = emissions.shape
    at = torch.arange(frames, device=path.device).expand(batch, -1)  # (B, T)
    valid = at < frame_lengths[:, None]
    state = path.masked_fill(~valid, count)  # padding gets its own column
    spoken = emissions.gather(2, path[..., None])[..., 0].masked_fill(~valid, 0.0)  # (B, T)
    starts = at.new_full((batch, count + 1), frames).scatter_reduce(1, state, at, "amin")
    ends = at.new_zeros((batch, count + 1)).scatter_reduce(1, state, at + 1, "amax")
    sums = spoken.new_zeros((batch, count + 1)).scatter_add(1, state, spoken)
    scores = sums / (ends - starts).clamp(min=1)
    # Odd states are the targets; the last column is padding.
    return TokenSpans(starts[:, 1:-1:2], ends[:, 1:-1:2], scores[:, 1:-1:2], path_scores)
