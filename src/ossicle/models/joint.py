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
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LogitsProcessor

from ossicle.audio import SAMPLE_RATE_HZ, change_speed
from ossicle.batch import Batch, Padded, pad
from ossicle.errors import ConfigError
from ossicle.models.ctc import BLANK, Spelling, is_sure, spelled, valid_rows
from ossicle.models.generation import MAX_NEW_TOKENS, settings_of
from ossicle.models.prefixes import Prefixes
from ossicle.models.rescoring import Heard, Judge, best_text
from ossicle.models.spoken_tokens import Letters, SpokenTokens, spoken_form
from ossicle.prompts import ASR_INSTRUCTIONS

CTC_WEIGHT = 0.5
"""Default weight of the spelling; that of the LLM is the rest."""
BEAMS = 8
"""Default number of hypotheses of an utterance."""
LM_WEIGHT = 0.7
"""Default weight of the LLM's log-probability of a whole transcript; that of the spelling has the weight 1."""
CHARACTER_WEIGHT = 0.7
"""Default share of the characters in the spelling; that of the tokens is the rest."""
LEAST_SPEED, MOST_SPEED = 0.5, 2.0
"""Range of ``speeds``."""
SHORTEST_S = 0.25
"""Length in seconds from which on a recording is heard at other speeds."""
SEARCH_SETTINGS = ("ctc_weight", "character_weight", "lm_weight", "speeds")
"""Settings of `generate_jointly` that an LLM alone does not have."""


class Search(NamedTuple):
    """Settings of a joint search."""

    beams: int = BEAMS
    ctc_weight: float = CTC_WEIGHT
    character_weight: float = CHARACTER_WEIGHT
    lm_weight: float = LM_WEIGHT


def generate_jointly(  # noqa: PLR0913 - settings of decoding
    model: Any,
    batch: Batch,
    *,
    ctc_weight: float = CTC_WEIGHT,
    character_weight: float = CHARACTER_WEIGHT,
    lm_weight: float = LM_WEIGHT,
    speeds: Sequence[float] = (),
    num_beams: int | None = None,
    **decoding: Any,
) -> list[str]:
    """Return the answers of a model that spells: transcripts by joint search, other answers by the LLM alone.

    Args:
        model: A `ossicle.models.speech_llm.SpeechLLM` with the projector ``ctc``.
        batch: Recordings with chat turns. Those that ask for a transcript are of the task ``asr``, or have an
            instruction for it from the training or from `ossicle.prompts.ASR_INSTRUCTIONS`.
        ctc_weight: Weight of the spelling in the search, from 0 to 1; that of the LLM is the rest.
        character_weight: Share of the characters in the spelling, from 0 to 1; that of the tokens is the rest.
        lm_weight: Weight of the LLM in the choice among the transcripts found; 0 takes the search's first, at the
            recording's own speed.
        speeds: Further speeds at which the recordings are heard for transcripts, such as 0.9 and 1.1. The transcripts
            of all are compared by the mean of their spelling. Each speed takes as long as the recording itself.
        num_beams: Hypotheses per transcript (8), and per other answer (1).
        **decoding: Arguments of `LLM.generate`.
    """
    for name, weight in (("ctc_weight", ctc_weight), ("character_weight", character_weight)):
        if not 0 <= weight <= 1:
            raise ConfigError(f"{name}={weight}: give a weight from 0 to 1")
    if not 0 <= lm_weight < math.inf:
        raise ConfigError(f"lm_weight={lm_weight}: give a weight from 0 on")
    speeds = checked_speeds(speeds)
    settings_of(model.llm, num_beams=num_beams, **decoding)  # errors first
    search = Search(num_beams or BEAMS, ctc_weight, character_weight, lm_weight)
    wanted = [
        sample.task == "asr" or (sample.task is None and asks_transcript(model, sample.instruction))
        for sample in batch.samples
    ]
    answers = [""] * len(wanted)
    for joint in (True, False):
        if rows := [row for row, transcript in enumerate(wanted) if transcript == joint]:
            if joint:
                batches = [batch, *(at_speed(batch, speed) for speed in speeds)]
                texts = _transcribe(model, batches, rows, search, **decoding)
            else:
                prompt = _rows(model.prompt(batch.chat, model.speech(batch)), rows)
                texts = model.llm.generate(prompt, num_beams=num_beams, **decoding)
            for row, text in zip(rows, texts, strict=True):
                answers[row] = text
    return answers


def searches(model: Any, **decoding: Any) -> bool:
    """Return True if ``model`` finds transcripts by joint search: it spells, and ``decoding`` does not sample."""
    return model.config.projector.name == "ctc" and not (decoding.get("temperature") or decoding.get("do_sample"))


def asks_transcript(model: Any, instruction: str | None, **decoding: Any) -> bool:
    """Return True if ``model`` answers ``instruction`` by joint search, because a transcript is asked for."""
    return searches(model, **decoding) and instruction in {
        None,
        *ASR_INSTRUCTIONS,
        *model.asr_instructions,
        model.instructions.get("asr"),
    }


def at_speed(batch: Batch, speed: float) -> Batch:
    """Return ``batch`` with its recordings ``speed`` times as fast, which changes tempo and pitch.

    Recordings of less than `SHORTEST_S` stay as they are, so that each has a frame.

    Raises `ConfigError` if the batch has frames and no waveforms.
    """
    if batch.waveforms is None:
        raise ConfigError("speeds: the batch has cached frames, and other speeds need its waveforms")
    rows = zip(batch.waveforms.values, batch.waveforms.mask, strict=True)
    waveforms = [values[valid].cpu().numpy() for values, valid in rows]
    faster = [
        torch.from_numpy(change_speed(waveform, speed if len(waveform) >= SHORTEST_S * SAMPLE_RATE_HZ else 1.0))
        for waveform in waveforms
    ]
    return replace(batch, waveforms=pad(faster).to(batch.waveforms.values.device), frames=None, speech=None)


def checked_speeds(speeds: Any) -> list[float]:
    """Return further speeds without repetitions and without 1. Raises `ConfigError` for any that cannot be used."""
    valid = isinstance(speeds, list | tuple) and all(
        isinstance(speed, int | float) and LEAST_SPEED <= speed <= MOST_SPEED for speed in speeds
    )
    if not valid:
        raise ConfigError(f"speeds={speeds!r}: give a list of speeds from {LEAST_SPEED} to {MOST_SPEED}")
    return [speed for speed in dict.fromkeys(map(float, speeds)) if speed != 1]


def _transcribe(model: Any, batches: list[Batch], rows: list[int], search: Search, **decoding: Any) -> list[str]:
    """Return transcripts of ``rows`` in lower case, without punctuation, as the projector spells.

    ``batches`` have the recordings at each speed.
    """
    texts: list[list[str]] = [[] for _ in rows]
    heard: list[list[Heard]] = [[] for _ in rows]
    for batch in batches:
        frames = model.frames(batch)
        prompt = model.prompt(batch.chat, model.speech(replace(batch, frames=frames)))
        spelling = spelled(model.projector, _rows(frames, rows))
        found = _search(model, _rows(prompt, rows), spelling, search, **decoding)
        for k, (own, *each) in enumerate(zip(found, spelling.tokens, spelling.characters, spelling.mask, strict=True)):
            texts[k] += own
            heard[k].append(Heard(*valid_rows(*each)))
    weights = search.character_weight, search.lm_weight
    return [
        spoken_form(best_text(own, Judge(views, model.projector, model.llm, *weights)))
        for own, views in zip(texts, heard, strict=True)
    ]


def _search(
    model: Any, prompt: Padded, spelling: Spelling, search: Search, max_new_tokens: int = MAX_NEW_TOKENS, **_: Any
) -> list[list[str]]:
    """Return the transcripts that the search finds in each utterance, best first."""
    spoken, end, beams = model.projector.spoken, min(model.llm.end_ids), search.beams
    rules = JointScores(spelling, spoken, spoken.columns(model.llm), end, search)
    longest = min(max_new_tokens, int(spelling.mask.sum(1).max()) + 1)  # a position spells one token at most
    texts = model.llm.generate(
        prompt, max_new_tokens=longest, num_beams=beams, per_prompt=beams, length_penalty=0.0, rules=rules
    )
    texts = [" ".join(text.split()) for text in texts]
    return [texts[k : k + beams] for k in range(0, len(texts), beams)]


def _rows(padded: Padded, rows: list[int]) -> Padded:
    return Padded(padded.values[rows], padded.mask[rows])


class JointScores(LogitsProcessor):  # type: ignore[misc]
    """Change the LLM's scores of next tokens to joint scores, in the beam search of transformers."""

    def __init__(self, spelling: Spelling, spoken: SpokenTokens, columns: Tensor, end: int, search: Search) -> None:
        self.ids, self.columns, self.end, self.search = torch.tensor(spoken.ids), columns, end, search
        self.label = {i: k for k, i in enumerate(spoken.ids, 1)}
        letters = spoken.letters if search.character_weight else None
        rows = zip(spelling.tokens.cpu(), spelling.characters.cpu(), spelling.mask.cpu(), strict=True)
        self.known = [_Known(*valid_rows(tokens, characters, mask), letters) for tokens, characters, mask in rows]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the joint scores (R, vocabulary) of the tokens after ``input_ids`` (R, N)."""
        heard = self._of_llm(scores.float().log_softmax(-1).cpu())  # (R, V)
        prefixes = list(map(tuple, input_ids.tolist()))
        out = torch.full(scores.shape, -torch.inf)
        for utterance, known in enumerate(self.known):
            rows = range(utterance * self.search.beams, (utterance + 1) * self.search.beams)
            if input_ids.shape[1]:
                known.extend([prefixes[row] for row in rows], self.label)
            live = [row for row in rows if prefixes[row] in known.row]
            if not live:  # all hypotheses of this utterance have ended
                continue
            places = torch.tensor([known.row[prefixes[row]] for row in live])
            joint = self._joint(known, places, heard[live]).float()
            out[torch.tensor(live)[:, None], self.ids] = joint[:, :-1]
            out[live, self.end] = joint[:, -1]
        return out.to(scores.device, scores.dtype)

    def _joint(self, known: _Known, places: Tensor, heard: Tensor) -> Tensor:
        """Return the joint scores (rows, V) after the texts at ``places``; ``heard`` are those of the LLM."""
        of_spelling, share = self.search.ctc_weight, self.search.character_weight
        tokens = known.tokens[places]
        gained = tokens.following(known.log, known.mass) - tokens.score[:, None]
        joint = (1 - of_spelling) * heard + of_spelling * gained
        if known.letters is None:
            return joint
        # Characters are scored for the likeliest tokens only, and no others can follow.
        best = joint[:, :-1].topk(min(2 * self.search.beams, joint.shape[1] - 1), dim=1).indices  # (rows, C)
        by_characters = known.characters_following(places, best, known.letters)
        chosen = F.pad(best, (0, 1), value=joint.shape[1] - 1)  # and the end
        mixed = (1 - share) * gained.gather(1, chosen) + share * by_characters
        scores = (1 - of_spelling) * heard.gather(1, chosen) + of_spelling * mixed
        return torch.full_like(joint, -torch.inf).scatter(1, chosen, scores)

    def _of_llm(self, scores: Tensor) -> Tensor:
        """Return the LLM's log-probabilities (R, V) of the next spoken token and of the end, given (R, vocabulary).

        A token of the LLM counts for the spoken token that it begins with: " conflagration" for " con". Tokens that are
        not heard, such as a comma, do not count.
        """
        size = len(self.ids) + 2
        mass = torch.zeros(len(scores), size).index_add_(1, self.columns, scores.exp())[:, :-1]
        return (mass / mass.sum(1, keepdim=True)).clamp_min(1e-12).log()


class _Known:
    """The texts of the last step of a search in one utterance, spelled by tokens and by characters."""

    def __init__(self, log: Tensor, characters: Tensor, letters: Letters | None) -> None:
        self.log, self.mass, self.characters_log = log.double(), log.exp().float(), characters.double()
        self.letters = letters if is_sure(characters) else None
        self.row: dict[tuple[int, ...], int] = {(): 0}
        self.tokens, self.characters = Prefixes.empty(self.log), Prefixes.empty(self.characters_log)

    def extend(self, texts: list[tuple[int, ...]], label: dict[int, int]) -> None:
        """Keep those of ``texts`` whose tokens are spoken and known but for the last."""
        kept = [t for t in dict.fromkeys(texts) if t[:-1] in self.row and t[-1] in label]
        self.row, before = {t: k for k, t in enumerate(kept)}, self.row
        if not kept:
            return
        parents = torch.tensor([before[t[:-1]] for t in kept])
        labels = torch.tensor([label[t[-1]] for t in kept])
        self.tokens = self.tokens[parents].extended(labels, self.log)
        if self.letters is not None:
            self.characters = self._spelled(parents, labels - 1, self.letters)

    def characters_following(self, places: Tensor, tokens: Tensor, letters: Letters) -> Tensor:
        """Return what the log-probability of the characters changes by (rows, C + 1) with each of ``tokens`` (rows, C).

        The last column is that of the end.
        """
        parents = places.repeat_interleave(tokens.shape[1])
        longer = self._spelled(parents, tokens.flatten(), letters).score.view_as(tokens)
        here = self.characters[places]
        return torch.cat([longer, here.either[:, -1:]], 1) - here.score[:, None]

    def _spelled(self, parents: Tensor, tokens: Tensor, letters: Letters) -> Prefixes:
        """Return the texts at ``parents`` (N,) with the characters of ``tokens`` (N,) more."""
        spaces = self.characters.last[parents] != BLANK
        labels = torch.where(spaces[:, None], letters.later[tokens], letters.first[tokens])
        texts, place, classes = self.characters, parents, self.characters_log.shape[1]
        for label in labels[:, : int((labels != BLANK).sum(1).max())].T:
            # Texts that begin alike are scored once.
            pairs, place = torch.unique(place * classes + label, return_inverse=True)
            texts = texts[pairs // classes].extended(pairs % classes, self.characters_log)
        return texts[place]
