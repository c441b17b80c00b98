"""Choose among the transcripts of a joint search by their probability as ordinary text.

During the search the LLM reads the tokens of the spelling, such as "con", "fl" and "agration". It was trained on other
splits of words, and says little about these. Once a transcript is whole, it can be scored in the usual tokens.

Source: rescoring of N-best lists with a language model (Schwartz & Chow, 1990; for LLMs: Udagawa et al., 2022).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ossicle.batch import Padded, pad_ids
from ossicle.models.ctc import BLANK, is_sure


@torch.no_grad()
def best_text(texts: list[str], tokens: Tensor, characters: Tensor, *, projector: Any, llm: Any, search: Any) -> str:
    """Return the text with the highest log p(text | recording) + ``lm_weight`` · log p(text).

    Args:
        texts: Transcripts, best first: of two with equal scores the first wins.
        tokens: Log-probabilities (P, V) of the blank and the spoken tokens.
        characters: Log-probabilities (P * SLOTS, 1 + BYTES) of the blank and the bytes. The first term is the mean of
            both by CTC, with the search's weights.
        projector: The `CTCProjector` that spells.
        llm: The `LLM` of the second term.
        search: The weights, an `ossicle.models.joint.Search`. ``lm_weight=0`` returns the first text.
    """
    unique = list(dict.fromkeys(texts))
    if search.lm_weight == 0 or len(unique) == 1:
        return unique[0]
    share = search.character_weight if is_sure(characters) else 0.0
    by_tokens, by_characters = projector.targets(unique)
    scores = (1 - share) * spelling_scores(by_tokens, tokens) + search.lm_weight * text_scores(unique, llm).to(
        tokens.device
    )
    if share:
        scores = scores + share * spelling_scores(by_characters, characters)
    return unique[int(scores.argmax())]


def spelling_scores(labels: list[list[int]], heard: Tensor) -> Tensor:
    """Return log p(labels | recording) by CTC (K,), for log-probabilities ``heard`` (P, V)."""
    count = len(labels)
    return -F.ctc_loss(
        heard.float()[:, None].expand(-1, count, -1),
        torch.tensor([label for row in labels for label in row], dtype=torch.long, device=heard.device),
        torch.full((count,), len(heard)),
        torch.tensor([len(row) for row in labels]),
        blank=BLANK,
        reduction="none",
    )


def text_scores(texts: list[str], llm: Any) -> Tensor:
    """Return log p(text) of a document that consists of ``text`` alone (K,): written as a sentence, with its end."""
    end = min(llm.end_ids)
    first = llm.tokenizer.bos_token_id
    written = [text[:1].upper() + text[1:] + "." if text else "" for text in texts]
    tokens = [llm.tokenizer(text, add_special_tokens=False).input_ids for text in written]
    rows = [[end if first is None else first, *row, end] for row in tokens]
    ids = pad_ids(rows).to(llm.model.device)
    states = llm.read(Padded(ids.values[:, :-1], ids.mask[:, 1:]), [llm.num_layers]).states[llm.num_layers]
    targets = ids.values[:, 1:]
    scores = [
        -F.cross_entropy(llm.logits(state[valid]).float(), target[valid], reduction="sum")
        for state, target, valid in zip(states, targets, ids.mask[:, 1:], strict=True)
    ]
    return torch.stack(scores)
