"""Measure how well pooled vectors of speech and of text match, layer by layer, with pure functions of tensors.

Shape legend: N utterances, D width. Row i of the speech side and of the text side belong to the same utterance. Recall
is a percentage, 0-100. High recall does not imply good answers: report it, but do not select models by it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ossicle.errors import DataError
from ossicle.inspect.geometry import MIN_PAIRS_FOR_CKA, linear_cka, modality_gap

RECALL_RANKS = (1, 5, 10)
"""Values of k for which `alignment_report` computes the recall at k."""


@dataclass(frozen=True, kw_only=True)
class AlignmentRow:
    """Alignment of speech and text at one layer of the LLM."""

    layer: int
    """Index of the layer; 0 is the input embeddings."""
    matched: float
    """Mean cosine similarity of the N matching pairs."""
    mismatched: float
    """Mean cosine similarity of all pairs with different transcripts."""
    speech_to_text_r1: float
    """Recall at 1 with speech as the query, in percent; the following fields are named alike."""
    speech_to_text_r5: float
    text_to_speech_r1: float
    text_to_speech_r5: float
    speech_to_text_r10: float | None = None
    """None in results of older versions, as for the fields below."""
    text_to_speech_r10: float | None = None
    modality_gap: float | None = None
    """Distance of the two centroids relative to the spread of the vectors (`ossicle.inspect.geometry`)."""
    cka: float | None = None
    """Linear CKA; None also for fewer than four utterances, and if all utterances of a side are equally far apart."""


def similarity_matrix(queries: Tensor, keys: Tensor) -> Tensor:
    """Return the cosine similarity of ``queries`` (N, D) and ``keys`` (M, D): (N, M) in float32.

    A zero vector has similarity 0 with every vector.
    """
    return functional.normalize(queries.float(), dim=-1) @ functional.normalize(keys.float(), dim=-1).T


def retrieval(
    queries: Tensor,
    keys: Tensor,
    ks: Sequence[int] = (1, 5),
    *,
    texts: Sequence[str] | None = None,
) -> dict[int, float]:
    """Return recall at k: the percentage of queries (N, D) whose own key (N, D) is among the k nearest by cosine.

    With ``texts``, the N transcripts, every key with the query's transcript counts as its own, since two recordings of
    the same sentence cannot be told apart. Ties count against the query, so that collapsed vectors score 0.
    """
    same = same_text(len(keys), texts).to(keys.device)
    return _recall(similarity_matrix(queries, keys), same, ks)


def alignment_report(
    pooled_text: Mapping[int, Tensor], pooled_speech: Mapping[int, Tensor], texts: Sequence[str]
) -> list[AlignmentRow]:
    """Return one row per layer that both sides contain, in ascending order.

    Tensors are (N, D), and ``texts`` are the N transcripts. Raises `DataError` if all transcripts are the same.
    """
    same = same_text(len(texts), texts)
    if bool(same.all()):
        raise DataError("alignment needs at least two different transcripts; use more utterances")
    rows = []
    for layer in sorted(pooled_text.keys() & pooled_speech.keys()):
        similarity = similarity_matrix(pooled_speech[layer], pooled_text[layer]).cpu()  # (N speech, N text)
        to_text, to_speech = _recall(similarity, same, RECALL_RANKS), _recall(similarity.T, same, RECALL_RANKS)
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
    """Return an (N, N) mask, True where two utterances have the same transcript; without ``texts``, the identity."""
    if texts is None:
        return torch.eye(count, dtype=torch.bool)
    if len(texts) != count:
        raise ValueError(f"{count} vectors but {len(texts)} transcripts: pass one transcript per vector")
    number: dict[str, int] = {}
    numbers = torch.tensor([number.setdefault(text, len(number)) for text in texts])
    return numbers[:, None] == numbers[None, :]


def _cka(speech: Tensor, text: Tensor) -> float | None:
    """Return `linear_cka`, or None where it is not defined."""
    cka = linear_cka(speech, text) if len(speech) >= MIN_PAIRS_FOR_CKA else math.nan
    return None if math.isnan(cka) else cka


def _recall(similarity: Tensor, same: Tensor, ks: Sequence[int]) -> dict[int, float]:
    """Return the recall at each k, given similarities (N, N) with queries in rows."""
    own = similarity.masked_fill(~same, -torch.inf).amax(dim=1, keepdim=True)  # (N, 1)
    nearer = ((similarity >= own) & ~same).sum(dim=1)  # (N,) number of other texts that rank higher or tie
    return {k: 100 * (nearer < k).float().mean().item() for k in ks}
