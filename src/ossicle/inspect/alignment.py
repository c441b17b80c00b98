"""How well pooled speech and text vectors find each other, layer by layer. Pure functions of tensors.

Shapes: N utterances, D width; row i of the speech and of the text side belong to the same utterance. Shares are
percentages, 0-100. High retrieval need not mean good answers: show it, do not select models by it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ossicle.inspect.geometry import LEAST_FOR_CKA, linear_cka, modality_gap

REPORTED = (1, 5, 10)
"""Ranks of `alignment_report`."""


@dataclass(frozen=True, kw_only=True)
class AlignmentRow:
    """Alignment of speech and text at one layer of the LLM."""

    layer: int
    """0 = input embeddings."""
    matched: float
    """Mean cosine of the N pairs that belong together."""
    mismatched: float
    """Mean cosine of the pairs with different transcripts."""
    speech_to_text_r1: float
    speech_to_text_r5: float
    text_to_speech_r1: float
    text_to_speech_r5: float
    speech_to_text_r10: float | None = None
    """None in results of versions before this was measured, as for all below."""
    text_to_speech_r10: float | None = None
    modality_gap: float | None = None
    """Distance of the two centroids over the spread of the vectors (`ossicle.inspect.geometry`)."""
    cka: float | None = None
    """Linear CKA; None also for fewer than four utterances, and where those of a side are all equally far apart."""


def similarity_matrix(queries: Tensor, keys: Tensor) -> Tensor:
    """Cosine of every query with every key, in float32; a zero vector has cosine 0 with everything.

    ``queries`` (N, D), ``keys`` (M, D) -> (N, M).
    """
    return functional.normalize(queries.float(), dim=-1) @ functional.normalize(keys.float(), dim=-1).T


def retrieval(
    queries: Tensor,
    keys: Tensor,
    ks: Sequence[int] = (1, 5),
    *,
    texts: Sequence[str] | None = None,
) -> dict[int, float]:
    """Recall at k: the percentage of queries (N, D) whose own key (N, D) is among the k nearest by cosine.

    With ``texts`` (the N transcripts), any key with the query's transcript counts as its own: two recordings of one
    sentence cannot be told apart. Ties count against the query, so that collapsed vectors score 0, not chance.
    """
    same = same_text(len(keys), texts).to(keys.device)
    return _recall(similarity_matrix(queries, keys), same, ks)


def alignment_report(
    pooled_text: Mapping[int, Tensor], pooled_speech: Mapping[int, Tensor], texts: Sequence[str]
) -> list[AlignmentRow]:
    """One row per layer that both sides hold, from the lowest up. Tensors are (N, D), ``texts`` the N transcripts.

    Raises:
        ValueError: all transcripts are the same, so that there is nothing to tell apart.
    """
    same = same_text(len(texts), texts)
    if bool(same.all()):
        raise ValueError("alignment needs at least two different transcripts; give it more utterances")
    rows = []
    for layer in sorted(pooled_text.keys() & pooled_speech.keys()):
        similarity = similarity_matrix(pooled_speech[layer], pooled_text[layer]).cpu()  # (N speech, N text)
        to_text, to_speech = _recall(similarity, same, REPORTED), _recall(similarity.T, same, REPORTED)
        rows.append(
            AlignmentRow(
                layer=layer,
                matched=similarity.diagonal().mean().item(),
                mismatched=similarity[~same].mean().item(),
                speech_to_text_r1=to_text[1],
                speech_to_text_r5=to_text[5],
                text_to_speech_r1=to_speech[1],
                text_to_speech_r5=to_speech[5],
                speech_to_text_r10=to_text[10],
                text_to_speech_r10=to_speech[10],
                modality_gap=modality_gap(pooled_speech[layer], pooled_text[layer]),
                cka=_cka(pooled_speech[layer], pooled_text[layer]),
            )
        )
    return rows


def same_text(count: int, texts: Sequence[str] | None) -> Tensor:
    """(N, N) bool: True where two utterances have the same transcript; the diagonal alone without ``texts``."""
    if texts is None:
        return torch.eye(count, dtype=torch.bool)
    if len(texts) != count:
        raise ValueError(f"{count} vectors but {len(texts)} transcripts: give one for each")
    number: dict[str, int] = {}
    numbers = torch.tensor([number.setdefault(text, len(number)) for text in texts])
    return numbers[:, None] == numbers[None, :]


def _cka(speech: Tensor, text: Tensor) -> float | None:
    """`linear_cka` where it is defined."""
    cka = linear_cka(speech, text) if len(speech) >= LEAST_FOR_CKA else math.nan
    return None if math.isnan(cka) else cka


def _recall(similarity: Tensor, same: Tensor, ks: Sequence[int]) -> dict[int, float]:
    """Recall at each k from (N, N) similarities, queries in rows."""
    own = similarity.masked_fill(~same, -torch.inf).amax(dim=1, keepdim=True)  # (N, 1)
    nearer = ((similarity >= own) & ~same).sum(dim=1)  # (N,) other texts that come first, or tie
    return {k: 100 * (nearer < k).float().mean().item() for k in ks}
