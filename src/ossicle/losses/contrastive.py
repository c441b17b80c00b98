"""Compute contrastive losses between hidden states of the LLM for speech and for text, as pure functions.

All of them compute in float32, also where mixed precision is on.

Shape legend: B_t texts, B_s utterances of speech, N text tokens, M speech tokens, D width.
"""

from __future__ import annotations

import weakref
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ossicle.errors import DataError
from ossicle.precision import outside_autocast

LEAST_SPREAD = 0.1
Direction = Literal["text_to_speech", "speech_to_text", "symmetric"]
_checked: list[weakref.ref[Tensor]] = []
"""The mask that was checked last. All layers share it, and each check waits for the GPU."""


@outside_autocast
def mean_pool(hidden: Tensor, mask: Tensor) -> Tensor:
    """Return the mean (B, D) over the valid positions of ``hidden`` (B, L, D), in float32.

    ``mask`` (B, L) is True where a position is valid. Raises `DataError` if a sequence has no valid position.
    """
    counts = mask.sum(1, keepdim=True)
    known = any(reference() is mask for reference in _checked)
    if not known and not counts.all():
        rows = (counts.flatten() == 0).nonzero().flatten().tolist()
        raise DataError(
            f"sequences {rows} of the batch have no valid position: the text is empty, or the audio is shorter than a "
            "frame; remove these utterances"
        )
    _checked[:] = [weakref.ref(mask)]
    # A matrix product reads the hidden states once and does not write a masked copy.
    weights = mask.float() / counts  # (B, L)
    return torch.einsum("bl,bld->bd", weights, hidden.float())


def without_first(mask: Tensor) -> Tensor:
    """Return ``mask`` (B, L) without the first valid position of each sequence that has more than one."""
    places = mask.cumsum(1)
    return mask & ((places > 1) | (places[:, -1:] == 1))


def standardised(text: Tensor, speech: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``text`` (K, B_t, D) and ``speech`` (K, B_s, D), each dimension minus its mean over the texts and divided
    by its standard deviation over the texts.

    Both sides have the same statistics, so that a distance between the means of both sides stays. Standard deviations
    below `LEAST_SPREAD` of the mean one count as that.
    """
    mean, spread = text.mean(1, keepdim=True), text.std(1, keepdim=True, correction=0)
    spread = spread.maximum(LEAST_SPREAD * spread.mean(-1, keepdim=True)).clamp_min(torch.finfo(spread.dtype).tiny)
    return (text - mean) / spread, (speech - mean) / spread


@outside_autocast
def pooled_cosine(text: Tensor, text_mask: Tensor, speech: Tensor, speech_mask: Tensor) -> Tensor:
    """Return the cosine similarity (B_t, B_s) of mean-pooled ``text`` (B_t, N, D) and ``speech`` (B_s, M, D).

    sim(i, j) = cos(mean_n text[i, n], mean_m speech[j, m]), in float32. Masks are True where a position is valid.
    Gradients flow to both sides. Source: Züfle & Niehues 2025, section 3.2 ("cosine").
    """
    return cosine(mean_pool(text, text_mask), mean_pool(speech, speech_mask))


@outside_autocast
def cosine(text: Tensor, speech: Tensor) -> Tensor:
    """Return the cosine similarity (..., B_t, B_s) of the vectors ``text`` (..., B_t, D) and ``speech`` (..., B_s, D).

    It is computed in float32, also under autocast.
    """
    return F.normalize(text.float(), dim=-1) @ F.normalize(speech.float(), dim=-1).mT


@outside_autocast
def info_nce(
    similarity: Tensor, *, temperature: float | Tensor = 0.1, direction: Direction = "text_to_speech"
) -> Tensor:
    """Return the InfoNCE loss of a ``similarity`` matrix (B_t, B_s) with the matching pairs on its diagonal, a scalar.

    "text_to_speech" is -mean_i log softmax_j(similarity[i, j] / temperature)[i], as in the paper. The negatives of a
    text are the other utterances. "speech_to_text" takes the softmax over the rows instead, and "symmetric" is the
    mean of both.

    Rows beyond B_s are texts without speech. They are used only as negatives of "speech_to_text". If ``temperature`` is
    a tensor (), it receives a gradient. Raises `ValueError` if there are fewer texts than utterances.
    Source: Züfle & Niehues 2025, equation 1.
    """
    texts, utterances = similarity.shape
    if texts < utterances:
        raise ValueError(f"the similarity has {texts} rows of texts for {utterances} utterances: add the missing texts")
    logits = similarity.float() / temperature
    labels = torch.arange(utterances, device=logits.device)
    losses = []
    if direction != "speech_to_text":
        losses.append(F.cross_entropy(logits[:utterances], labels))
    if direction != "text_to_speech":
        losses.append(F.cross_entropy(logits.T, labels))
    return torch.stack(losses).mean()


@outside_autocast
def token_info_nce(
    text: Tensor, text_mask: Tensor, speech: Tensor, speech_mask: Tensor, *, temperature: float = 0.5
) -> Tensor:
    """Return the InfoNCE loss between the tokens of each utterance ("subword"), a scalar: the mean over utterances.

    ``text`` (B, N, D) and ``speech`` (B, M, D) are hidden states of the same tokens, without and with speech between
    them. The k-th True of an utterance's ``text_mask`` and the k-th True of its ``speech_mask`` mark the same token.
    The positive of a text token is the same token in ``speech``; its negatives are the other marked tokens there.
    Tokens are compared by cosine similarity. Gradients flow to both sides.

    Raises `ValueError` with the utterances whose masks do not mark the same number of tokens, or mark none.
    Source: Züfle & Niehues 2025, contrastive pretraining on mixed sequences.
    """
    counts = text_mask.sum(1)
    wrong = ((counts != speech_mask.sum(1)) | (counts == 0)).nonzero().flatten().tolist()
    if wrong:
        raise ValueError(
            f"utterances {wrong} of the batch do not mark the same number of tokens, at least one, in both sequences"
        )
    places = torch.arange(int(counts.max()), device=counts.device) < counts[:, None]  # (B, K)
    logits = _marked(text, text_mask, places) @ _marked(speech, speech_mask, places).mT / temperature  # (B, K, K)
    log_p = logits.masked_fill(~places[:, None], -torch.inf).log_softmax(-1).diagonal(dim1=1, dim2=2)
    return -(log_p.masked_fill(~places, 0.0).sum(1) / counts).mean()


def _marked(hidden: Tensor, mask: Tensor, places: Tensor) -> Tensor:
    """Return the L2-normalised vectors of ``hidden`` (B, L, D) under ``mask``, in float32, at ``places`` (B, K, D)."""
    moved = torch.zeros(*places.shape, hidden.shape[-1], device=hidden.device)
    return moved.masked_scatter(places[..., None], F.normalize(hidden[mask].float(), dim=-1))
