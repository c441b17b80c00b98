"""Transcribe with the LLM and the projector's spelling together, so that a transcript neither loops nor ends early.

The LLM says which token is likely after a prefix, and the spelling says how likely the recording begins with that
prefix. Beam search adds up both. A text that the recording does not contain has a low score, however fluent it is.
Among the transcripts that the search returns, `ossicle.models.rescoring` chooses.

Source: joint CTC/attention decoding with CTC prefix scores (Watanabe et al., 2017, "Hybrid CTC/Attention Architecture
for End-to-End Speech Recognition").

Shape legend: R hypotheses, P positions of an utterance, V spoken tokens and the end (in scores) or blank (in CTC).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LogitsProcessor

from ossicle.batch import Batch, Padded
from ossicle.errors import ConfigError
from ossicle.models.ctc import BLANK, Spelling, spelled
from ossicle.models.generation import MAX_NEW_TOKENS, settings_of
from ossicle.models.rescoring import LM_WEIGHT, best_text
from ossicle.models.spoken_tokens import SpokenTokens, spoken_form
from ossicle.prompts import ASR_INSTRUCTIONS

CTC_WEIGHT = 0.5
"""Default weight of the spelling; that of the LLM is the rest."""
BEAMS = 8
"""Default number of hypotheses of an utterance."""
_NEVER = -1e30
"""Log-probability of what cannot be: finite, so that differences stay defined."""


class _Search(NamedTuple):
    ctc_weight: float
    lm_weight: float
    beams: int


def generate_jointly(
    model: Any,
    batch: Batch,
    *,
    ctc_weight: float = CTC_WEIGHT,
    lm_weight: float = LM_WEIGHT,
    num_beams: int | None = None,
    **decoding: Any,
) -> list[str]:
    """Return the answers of a model that spells: transcripts by joint search, other answers by the LLM alone.

    Args:
        model: A `ossicle.models.speech_llm.SpeechLLM` with the projector ``ctc``.
        batch: Recordings with chat turns. Those that ask for a transcript are of the task ``asr``, or have an
            instruction for it from the training or from `ossicle.prompts.ASR_INSTRUCTIONS`.
        ctc_weight: Weight of the spelling in the search, from 0 to 1; that of the LLM is the rest.
        lm_weight: Weight of the LLM in the choice among the transcripts found; 0 takes the search's first.
        num_beams: Hypotheses per transcript (8), and per other answer (1).
        **decoding: Arguments of `LLM.generate`.
    """
    if not 0 <= ctc_weight <= 1:
        raise ConfigError(f"ctc_weight={ctc_weight}: give a weight from 0 to 1")
    if not 0 <= lm_weight < math.inf:
        raise ConfigError(f"lm_weight={lm_weight}: give a weight from 0 on")
    settings_of(model.llm, num_beams=num_beams, **decoding)  # errors first
    search = _Search(ctc_weight, lm_weight, num_beams or BEAMS)
    frames, speech = model.frames(batch), model.speech(batch)
    wanted = [
        sample.task == "asr" or (sample.task is None and asks_transcript(model, sample.instruction))
        for sample in batch.samples
    ]
    answers = [""] * len(wanted)
    for joint in (True, False):
        if rows := [row for row, transcript in enumerate(wanted) if transcript == joint]:
            prompt = _rows(model.prompt(batch.chat, speech), rows)
            if joint:
                spelling = spelled(model.projector, _rows(frames, rows))
                texts = _transcribe(model, prompt, spelling, search, **decoding)
            else:
                texts = model.llm.generate(prompt, num_beams=num_beams, **decoding)
            for row, text in zip(rows, texts, strict=True):
                answers[row] = text
    return answers


def asks_transcript(model: Any, instruction: str | None, **decoding: Any) -> bool:
    """Return True if ``model`` answers ``instruction`` by joint search: it spells, and a transcript is asked for.

    Sampling, in the settings ``decoding``, selects the LLM alone.
    """
    if model.config.projector.name != "ctc" or decoding.get("temperature") or decoding.get("do_sample"):
        return False
    return instruction in {None, *ASR_INSTRUCTIONS, *model.asr_instructions, model.instructions.get("asr")}


def _transcribe(
    model: Any, prompt: Padded, spelling: Spelling, search: _Search, max_new_tokens: int = MAX_NEW_TOKENS, **_: Any
) -> list[str]:
    """Return transcripts in lower case, without punctuation, as the projector spells."""
    spoken, end, beams = model.projector.spoken, min(model.llm.end_ids), search.beams
    rules = JointScores(spelling, spoken, spoken.columns(model.llm), end, weight=search.ctc_weight, beams=beams)
    longest = min(max_new_tokens, int(spelling.mask.sum(1).max()) + 1)  # a position spells one token at most
    texts = model.llm.generate(
        prompt, max_new_tokens=longest, num_beams=beams, per_prompt=beams, length_penalty=0.0, rules=rules
    )
    texts = [" ".join(text.split()) for text in texts]
    found = [texts[k : k + beams] for k in range(0, len(texts), beams)]  # of each utterance
    return [
        spoken_form(best_text(found[k], heard[mask], spoken=spoken, llm=model.llm, lm_weight=search.lm_weight))
        for k, (heard, mask) in enumerate(zip(spelling.tokens, spelling.mask, strict=True))
    ]


def _rows(padded: Padded, rows: list[int]) -> Padded:
    return Padded(padded.values[rows], padded.mask[rows])


@dataclass(frozen=True)
class _Prefixes:
    """Log-probabilities that the first positions of an utterance spell each of K prefixes, for 0 to P positions."""

    row: dict[tuple[int, ...], int]  # of each prefix
    token: Tensor  # (K, P + 1) the last of these positions spells the last token
    blank: Tensor  # (K, P + 1) the last of these positions is a blank
    score: Tensor  # (K,) that the recording begins with the prefix


class JointScores(LogitsProcessor):  # type: ignore[misc]
    """Change the LLM's scores of next tokens to joint scores, in the beam search of transformers."""

    def __init__(
        self, spelling: Spelling, spoken: SpokenTokens, columns: Tensor, end: int, *, weight: float, beams: int
    ) -> None:
        self.ids, self.columns, self.end, self.weight, self.beams = (
            torch.tensor(spoken.ids),
            columns,
            end,
            weight,
            beams,
        )
        self.label = {i: k for k, i in enumerate(spoken.ids, 1)}
        rows = zip(spelling.tokens.cpu(), spelling.mask.cpu(), strict=True)
        self.log = [row[mask].double() for row, mask in rows]  # of (P, V)
        self.mass = [row.exp().float() for row in self.log]
        self.known = [self._empty(row) for row in self.log]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the joint scores (R, vocabulary) of the tokens after ``input_ids`` (R, N)."""
        heard = self._of_llm(scores.float().log_softmax(-1).cpu())  # (R, V)
        prefixes = list(map(tuple, input_ids.tolist()))
        out = torch.full(scores.shape, -torch.inf)
        for utterance in range(len(self.known)):
            rows = range(utterance * self.beams, (utterance + 1) * self.beams)
            if input_ids.shape[1]:
                self.known[utterance] = self._extended(utterance, [prefixes[row] for row in rows])
            known = self.known[utterance]
            live = [row for row in rows if prefixes[row] in known.row]
            if not live:  # all hypotheses of this utterance have ended
                continue
            places = [known.row[prefixes[row]] for row in live]
            gained = (self._following(utterance) - known.score[:, None])[places]  # (rows, V)
            joint = ((1 - self.weight) * heard[live] + self.weight * gained).float()
            out[torch.tensor(live)[:, None], self.ids] = joint[:, :-1]
            out[live, self.end] = joint[:, -1]
        return out.to(scores.device, scores.dtype)

    def _of_llm(self, scores: Tensor) -> Tensor:
        """Return the LLM's log-probabilities (R, V) of the next spoken token and of the end, given (R, vocabulary).

        A token of the LLM counts for the spoken token that it begins with: " conflagration" for " con". Tokens that are
        not heard, such as a comma, do not count.
        """
        size = len(self.ids) + 2
        mass = torch.zeros(len(scores), size).index_add_(1, self.columns, scores.exp())[:, :-1]
        return (mass / mass.sum(1, keepdim=True)).clamp_min(1e-12).log()

    def _empty(self, log: Tensor) -> _Prefixes:
        blank = F.pad(log[:, BLANK].cumsum(0), (1, 0))[None]
        return _Prefixes({(): 0}, torch.full_like(blank, _NEVER), blank, blank.new_zeros(1))

    def _extended(self, utterance: int, prefixes: list[tuple[int, ...]]) -> _Prefixes:
        """Return the state of those of ``prefixes`` whose tokens are spoken and known but for the last."""
        before, log = self.known[utterance], self.log[utterance]
        kept = [p for p in dict.fromkeys(prefixes) if p[:-1] in before.row and p[-1] in self.label]
        if not kept:
            return _Prefixes({}, before.token[:0], before.blank[:0], before.score[:0])
        parents = [before.row[p[:-1]] for p in kept]
        token, blank = before.token[parents], before.blank[parents]
        # A blank must stand between equal tokens.
        repeated = torch.tensor([p[-1:] == p[-2:-1] for p in kept], dtype=torch.bool)[:, None]
        start = torch.where(repeated, blank, torch.logaddexp(token, blank))[:, :-1]
        step = log[:, [self.label[p[-1]] for p in kept]].T  # (K, P)
        token = _runs(start, step)
        blank = _runs(token[:, :-1], log[:, BLANK])
        return _Prefixes({p: k for k, p in enumerate(kept)}, token, blank, torch.logsumexp(start + step, 1))

    def _following(self, utterance: int) -> Tensor:
        """Return the log-probability (K, V) that the recording begins with a prefix and each token, or is the prefix.

        It adds up the positions where the token can begin.
        """
        known, log = self.known[utterance], self.log[utterance]
        start = torch.logaddexp(known.token, known.blank)
        most = start[:, :-1].amax(1, keepdim=True)
        begun = (start[:, :-1] - most).exp().float() @ self.mass[utterance]
        spelled = begun.double().clamp_min(1e-37).log() + most
        last = [self.label[p[-1]] if p else BLANK for p in known.row]
        spelled[range(len(last)), last] = torch.logsumexp(known.blank[:, :-1] + log[:, last].T, 1)
        return torch.cat([spelled[:, 1:], start[:, -1:]], 1)


def _runs(start: Tensor, step: Tensor) -> Tensor:
    """Return the log-probability (K, P + 1) of a run that ends at each position.

    A run begins after 0 to P - 1 positions, with log-probability ``start`` (K, P), and has ``step`` (K or 1, P) at each
    of its own positions.
    """
    total = F.pad(step.cumsum(-1), (1, 0))
    return F.pad(total[..., 1:] + torch.logcumsumexp(start - total[..., :-1], -1), (1, 0), value=_NEVER)
