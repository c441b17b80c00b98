"""Contrastive losses between the LLM's hidden states for speech and for text. Pure functions.

Shape legend: B_t texts, B_s utterances of speech, N text tokens, M speech tokens, D width.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Direction = Literal["text_to_speech", "speech_to_text", "symmetric"]


def mean_pool(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean over the valid positions of ``hidden`` (B, L, D), in float32: (B, D).

    Raises `ValueError` where a sequence has no valid position, since its mean is not defined.
    """
    counts = mask.sum(1, keepdim=True)
    if not counts.all():
        rows = (counts.flatten() == 0).nonzero().flatten().tolist()
        raise ValueError(
            f"sequences {rows} of the batch have no valid position: empty text, or audio shorter than a frame"
        )
    # A matrix product reads the hidden states once and writes no masked copy of them.
    weights = mask.float() / counts  # (B, L)
    return torch.einsum("bl,bld->bd", weights, hidden.float())


def pooled_cosine(text: Tensor, text_mask: Tensor, speech: Tensor, speech_mask: Tensor) -> Tensor:
    """Cosine similarity of mean-pooled ``text`` (B_t, N, D) and ``speech`` (B_s, M, D): (B_t, B_s), float32.

    sim(i, j) = cos(mean_n text[i, n], mean_m speech[j, m]); masks are True where valid. Gradients flow to both.
    Source: Züfle & Niehues 2025, section 3.2 ("cosine").
    """
    text_pooled = F.normalize(mean_pool(text, text_mask), dim=-1)
    return text_pooled @ F.normalize(mean_pool(speech, speech_mask), dim=-1).T


def info_nce(
    similarity: Tensor, *, temperature: float | Tensor = 0.1, direction: Direction = "text_to_speech"
) -> Tensor:
    """InfoNCE of a ``similarity`` matrix (B_t, B_s) whose matching pairs stand on the diagonal: a scalar.

    text_to_speech: -mean_i log softmax_j(similarity[i, j] / temperature)[i], each text picks its speech (the paper);
    speech_to_text: the same over columns; symmetric: the mean of both. Negatives are the other columns (rows). Rows
    beyond B_s are texts without speech, which serve as negatives of speech_to_text only. A temperature that is a tensor
    () receives a gradient. Raises `ValueError` for fewer texts than speech. Source: Züfle & Niehues 2025, equation 1.
    """
    texts, utterances = similarity.shape
    if texts < utterances:
        raise ValueError(f"the similarity has {texts} rows of texts for {utterances} utterances: each needs its own")
    logits = similarity.float() / temperature
    labels = torch.arange(utterances, device=logits.device)
    losses = []
    if direction != "speech_to_text":
        losses.append(F.cross_entropy(logits[:utterances], labels))
    if direction != "text_to_speech":
        losses.append(F.cross_entropy(logits.T, labels))
    return torch.stack(losses).mean()


def token_info_nce(
    text: Tensor, text_mask: Tensor, speech: Tensor, speech_mask: Tensor, *, temperature: float = 0.5
) -> Tensor:
    """InfoNCE between the positions of each utterance ("subword"): a scalar, the mean over utterances.

    ``text`` (B, N, D) and ``speech`` (B, M, D) are hidden states of the same tokens without and with speech around
    them. The k-th True of an utterance's ``text_mask`` and the k-th of its ``speech_mask`` mark one token, so both
    must count the same; `ValueError` names the utterances where they do not, or where they mark nothing. Each
    position of the text picks its own among those of the speech, by cosine. Gradients flow to both.
    Source: Züfle & Niehues 2025, contrastive pretraining on mixed sequences.
    """
    counts = text_mask.sum(1)
    wrong = ((counts != speech_mask.sum(1)) | (counts == 0)).nonzero().flatten().tolist()
    if wrong:
        raise ValueError(
            f"utterances {wrong} of the batch do not mark the same tokens, at least one, in both sequences"
        )
    places = torch.arange(int(counts.max()), device=counts.device) < counts[:, None]  # (B, K)
    logits = _marked(text, text_mask, places) @ _marked(speech, speech_mask, places).mT / temperature  # (B, K, K)
    log_p = logits.masked_fill(~places[:, None], -torch.inf).log_softmax(-1).diagonal(dim1=1, dim2=2)
    return -(log_p.masked_fill(~places, 0.0).sum(1) / counts).mean()


def _marked(hidden: Tensor, mask: Tensor, places: Tensor) -> Tensor:
    """The vectors of ``hidden`` (B, L, D) under ``mask``, of unit length in float32, moved to ``places``: (B, K, D)."""
    moved = torch.zeros(*places.shape, hidden.shape[-1], device=hidden.device)
    return moved.masked_scatter(places[..., None], F.normalize(hidden[mask].float(), dim=-1))
