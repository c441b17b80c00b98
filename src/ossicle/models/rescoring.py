"""Choose a transcript by its probability in the recording and as ordinary text.

During the search the LLM reads the tokens of the spelling, such as "con", "fl" and "agration". It was trained on other
splits of words, and says little about these. Once a transcript is whole, it can be scored in the usual tokens. Then its
words are changed one by one, as `ossicle.models.lexicon` proposes: "curtin" to "curtain".

Source: rescoring of N-best lists with a language model (Schwartz & Chow, 1990; for LLMs: Udagawa et al., 2022). The
changes are not in the paper.

Shape legend: K texts, P positions of an utterance, V spoken tokens and the blank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ossicle.batch import Padded, pad_ids
from ossicle.models.ctc import BLANK, is_sure
from ossicle.models.lexicon import apart, changed
from ossicle.models.packing import Packing

ROUNDS = 3
"""Rounds of changes. A neighbour's change can help in the next one."""
LARGEST_LOSS = 8.0
"""Loss of log p(text | recording) from which on a change is not tried with the LLM, which takes most of the time."""
CTC_ROWS = 128
"""Texts that are compared with the recording together."""
LM_ROWS = 32
"""Texts that the LLM reads together."""
LM_POSITIONS = 256
"""Positions whose logits are in memory together."""


class Heard(NamedTuple):
    """The spelling of a recording at one speed."""

    tokens: Tensor
    """Log-probabilities (P, V) of the blank and the spoken tokens."""
    characters: Tensor
    """Log-probabilities (P * SLOTS, 1 + BYTES) of the blank and the bytes."""


@dataclass(frozen=True)
class Judge:
    """Scores texts by log p(text | recording) + ``lm_weight`` · log p(text)."""

    heard: Sequence[Heard]
    """The recording, at one speed or several."""
    projector: Any
    """The `CTCProjector` that spells."""
    llm: Any
    """The `LLM` of the second term."""
    character_weight: float
    lm_weight: float
    read: dict[str, float] = field(default_factory=dict)
    """log p(text) of texts so far."""

    def sound(self, texts: list[str]) -> Tensor:
        """Return log p(text | recording) by CTC (K,): the mean of that of the tokens and that of the characters.

        For a recording at several speeds it is the mean over the speeds.
        """
        by_tokens, by_characters = self.projector.targets(texts)
        scores = []
        for tokens, characters in self.heard:
            share = self.character_weight if is_sure(characters) else 0.0
            score = (1 - share) * spelling_scores(by_tokens, tokens)
            scores.append(score + share * spelling_scores(by_characters, characters) if share else score)
        return torch.stack(scores).mean(0)

    def language(self, texts: list[str]) -> Tensor:
        """Return ``lm_weight`` · log p(text) (K,). Each text is read once."""
        new = [text for text in dict.fromkeys(texts) if text not in self.read]
        for k in range(0, len(new), LM_ROWS):
            part = new[k : k + LM_ROWS]
            self.read.update(zip(part, text_scores(part, self.llm).tolist(), strict=True))
        return self.lm_weight * torch.tensor([self.read[text] for text in texts], device=self.heard[0].tokens.device)

    def best(self, texts: list[str]) -> str:
        """Return the text with the highest score; of two with equal scores, the first."""
        unique = list(dict.fromkeys(texts))
        return unique[0] if len(unique) == 1 else unique[int((self.sound(unique) + self.language(unique)).argmax())]


@torch.no_grad()
def best_text(texts: list[str], judge: Judge) -> str:
    """Return the best of ``texts`` (best first), with those changes of its words that give it a higher score.

    With ``judge.lm_weight=0`` it is the first text as it is.
    """
    if judge.lm_weight == 0:
        return texts[0]
    text = judge.best(texts)
    others = [other.split() for other in dict.fromkeys(texts)]
    for _ in range(ROUNDS):
        before, text = text, _changed(text.split(), others, judge)
        if text == before:
            break
    return text


def _changed(words: list[str], others: list[list[str]], judge: Judge) -> str:
    """Return the text of ``words`` with changes that the lexicon proposes, if they score higher.

    Each change is tried alone. Those that gain are put in together, or the one that gains most if that scores higher.
    """
    text, changes = " ".join(words), judge.projector.spoken.lexicon.changes(words, others)
    texts = [text, *(changed(words, [change]) for change in changes)]
    sound = judge.sound(texts)
    kept = [0, *(k for k in range(1, len(texts)) if sound[k] > sound[0] - LARGEST_LOSS)]
    if len(kept) == 1:
        return text
    scores = sound[kept] + judge.language([texts[k] for k in kept])
    gains = (scores[1:] - scores[0]).tolist()
    found = sorted(((gain, changes[k - 1]) for gain, k in zip(gains, kept[1:], strict=True) if gain > 0), reverse=True)
    if not found:
        return text
    gaining = [change for _, change in found]
    return judge.best([changed(words, apart(gaining)), changed(words, gaining[:1])])


def spelling_scores(labels: list[list[int]], heard: Tensor) -> Tensor:
    """Return log p(labels | recording) by CTC (K,), for log-probabilities ``heard`` (P, V)."""
    used = sorted({BLANK}.union(*labels))  # few of V: the loss copies what it is given for each row
    place = {label: k for k, label in enumerate(used)}
    heard = heard[:, used].float()[:, None]
    parts = []
    for rows in (labels[k : k + CTC_ROWS] for k in range(0, len(labels), CTC_ROWS)):
        loss = F.ctc_loss(
            heard.expand(-1, len(rows), -1),
            torch.tensor([place[label] for row in rows for label in row], dtype=torch.long, device=heard.device),
            torch.full((len(rows),), len(heard)),
            torch.tensor([len(row) for row in rows]),
            blank=place[BLANK],
            reduction="none",
        )
        parts.append(-loss)
    return torch.cat(parts)


def sharing(ids: Padded) -> Packing:
    """Return a packing of token ids (B, L) in which sequences share all positions before their first difference."""
    places, node = torch.zeros_like(ids.values), torch.zeros_like(ids.values[:, 0])
    index: list[int] = []
    classes = int(ids.values.max()) + 1
    for column in range(places.shape[1]):
        rows = ids.mask[:, column].nonzero().squeeze(1)
        found, node[rows] = torch.unique(node[rows] * classes + ids.values[rows, column], return_inverse=True)
        places[rows, column] = node[rows] + len(index)
        first = torch.empty_like(found).scatter_(0, node[rows], rows)
        index += (first * places.shape[1] + column).tolist()
    return Packing(ids.mask, torch.tensor(index, device=places.device), places=places)


def text_scores(texts: list[str], llm: Any) -> Tensor:
    """Return log p(text) of a document that consists of ``text`` alone (K,): written as a sentence, with its end."""
    end = min(llm.end_ids)
    first = llm.tokenizer.bos_token_id
    written = [text[:1].upper() + text[1:] + "." if text else "" for text in texts]
    tokens = [llm.tokenizer(text, add_special_tokens=False).input_ids for text in written]
    rows = [[end if first is None else first, *row, end] for row in tokens]
    ids = pad_ids(rows).to(llm.model.device)
    read, targets = Padded(ids.values[:, :-1], ids.mask[:, 1:]), ids.values[:, 1:]
    packed = sharing(read)  # the texts differ in few words
    assert packed.places is not None
    states = packed.pack(llm.read(read, [llm.num_layers], packed=packed).states[llm.num_layers])
    scores = torch.zeros(read.mask.shape, device=states.device)
    for start in range(0, len(states), LM_POSITIONS):
        logs = llm.logits(states[start : start + LM_POSITIONS]).float().log_softmax(-1)
        here = read.mask & (packed.places >= start) & (packed.places < start + len(logs))
        scores[here] = logs[packed.places[here] - start, targets[here]]
    return scores.sum(1)
