"""Find word times with any CTC model of Hugging Face transformers that reads waveforms and spells with characters.

A CTC label is a short peak within its sound, and does not cover the sound. The boundary between two words is therefore
placed midway between the last peak of the first word and the first peak of the second. On generated speech (espeak-ng,
589 boundaries, held-out voices, the laboratory's encoder) this boundary is 5 ms late in the median. The end of the
earlier peak is 17 ms early there, and the start of the later peak is 27 ms late.

Shape legend: B utterances, T frames, V labels of the CTC head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ossicle.align.ctc import TokenSpans, ctc_align, frames_needed
from ossicle.batch import Skipped, Utterance, pad
from ossicle.data.words import WordTime, spoken_words, without_punctuation
from ossicle.errors import ModelError
from ossicle.models.encoder import CONV_FAMILIES, FAMILIES, Encoder
from ossicle.models.front_ends import ConvFront
from ossicle.models.frozen import LAB, fingerprint, freeze, resolve
from ossicle.models.loading import loading_model, refuse_missing

MAX_MARGIN_S = 0.1
"""Largest distance between a word's outer peak and its boundary. Time beyond it is a pause."""

WILDCARD_PENALTY = 0.1
"""Cost of a wildcard per frame, in nats, beyond the best label. Its neighbours keep the frames that they explain."""


@dataclass(frozen=True)
class Alignment:
    """The word times of one utterance."""

    words: tuple[WordTime, ...]
    score: float
    """Mean log-probability of the labels of the text, at most 0. It is low where text and speech differ."""


@dataclass(frozen=True)
class Unit:
    """Words that are aligned together: one word, or consecutive words of which the model can spell no character."""

    words: tuple[str, ...]
    labels: tuple[int, ...]


@dataclass(frozen=True)
class Spelling:
    """The labels of a CTC head: its characters, its word delimiter, and a wildcard for all other characters."""

    ids: Mapping[str, int]
    delimiter: int | None
    wildcard: int

    def units(self, text: str) -> list[Unit]:
        """Return the words of ``text`` as labels. Consecutive unknown letters or digits become one wildcard."""
        units: list[Unit] = []
        unknown = (self.wildcard,)
        for word in spoken_words(text):
            labels = self._labels(word)
            if units and labels == units[-1].labels == unknown:
                units[-1] = Unit((*units[-1].words, word), unknown)
            else:
                units.append(Unit((word,), labels))
        return units

    def targets(self, units: Sequence[Unit]) -> tuple[Tensor, list[int]]:
        """Return the labels (U,) of all units with delimiters between them, and each unit's first index."""
        labels: list[int] = []
        firsts: list[int] = []
        for unit in units:
            if firsts and self.delimiter is not None:
                labels.append(self.delimiter)
            firsts.append(len(labels))
            labels += unit.labels
        return torch.tensor(labels, dtype=torch.long), firsts

    def _labels(self, word: str) -> tuple[int, ...]:
        labels: list[int] = []
        for character in without_punctuation(word):
            spellings = (character, character.lower(), character.upper())
            label = next((self.ids[s] for s in spellings if s in self.ids), None)
            if label is not None:
                labels.append(label)
            elif character.isalnum() and labels[-1:] != [self.wildcard]:
                labels.append(self.wildcard)
        return tuple(labels) or (self.wildcard,)


class Aligner:
    """A frozen CTC model and its spelling. ``source`` names the model and its weights."""

    def __init__(self, model: Any, tokenizer: Any, *, normalise: bool, name: str) -> None:
        family = FAMILIES[model.config.model_type]
        front = ConvFront(model.config, normalise=normalise)
        self.encoder = Encoder(model.base_model, front, name=name, layers=family.layers)
        self.head = freeze(model.lm_head)
        self.source = f"ctc:{name}@{fingerprint(model)[:8]}"
        self.blank: int = model.config.pad_token_id
        ids = {token: i for token, i in tokenizer.get_vocab().items() if len(token) == 1 and i != self.blank}
        # A tokenizer may name a delimiter that the vocabulary lacks, if the model was trained without one.
        delimiter = ids.pop(tokenizer.word_delimiter_token, None)
        self.spelling = Spelling(ids, delimiter, wildcard=model.config.vocab_size)

    @classmethod
    def load(cls, name: str = LAB) -> Aligner:
        """Load a model from a hub id or a folder, onto the GPU if there is one.

        ``lab`` names the tiny encoder of the laboratory package. Raises `ModelError` if the model does not read
        waveforms, or if its labels are not characters.
        """
        from transformers import AutoConfig, AutoFeatureExtractor, AutoModelForCTC, AutoTokenizer, Wav2Vec2CTCTokenizer

        folder = resolve(name, "encoder")
        with loading_model("--model", folder):
            family = AutoConfig.from_pretrained(folder, trust_remote_code=False).model_type
            if family not in CONV_FAMILIES:
                raise ModelError(
                    f"--model {name}: '{family}' cannot align; use a CTC model of {', '.join(CONV_FAMILIES)}, such as "
                    "facebook/hubert-large-ls960-ft"
                )
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            if not isinstance(tokenizer, Wav2Vec2CTCTokenizer):
                raise ModelError(
                    f"--model {name}: its tokenizer does not spell with characters; use a fine-tuned CTC model"
                )
            normalise = bool(AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=False).do_normalize)
            model, report = AutoModelForCTC.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
        refuse_missing(f"--model {name}", report)
        model = model.to("cuda" if torch.cuda.is_available() else "cpu")
        return cls(model, tokenizer, normalise=normalise, name=name)

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return next(self.head.parameters()).device

    @property
    def hop_s(self) -> float:
        """The time between two frames, in seconds."""
        return 1 / self.encoder.frame_rate_hz

    @torch.no_grad()
    def align(self, utterances: Sequence[Utterance]) -> list[Alignment | Skipped]:
        """Return the word times of each utterance, or the reason why it cannot be aligned."""
        waveforms = pad([_waveform(utterance) for utterance in utterances])
        frames = self.encoder(waveforms.to(self.device))  # (B, T, D)
        log_probs = self.head(frames.values).float().log_softmax(-1)  # (B, T, V)
        wildcard = log_probs.amax(-1, keepdim=True) - WILDCARD_PENALTY
        log_probs = torch.cat([log_probs, wildcard], -1)  # (B, T, V + 1)
        frame_lengths = frames.mask.sum(1).cpu()
        units = [self.spelling.units(utterance.sample.text or "") for utterance in utterances]
        spelled = [self.spelling.targets(unit) for unit in units]
        targets = pad([labels for labels, _ in spelled])
        reasons = _reasons(frame_lengths, frames_needed(targets.values, targets.mask))
        fit = [index for index, reason in enumerate(reasons) if not reason]
        results: list[Alignment | Skipped] = [
            Skipped(utterance.sample, reason) for utterance, reason in zip(utterances, reasons, strict=True)
        ]
        if not fit:
            return results
        spans = ctc_align(
            log_probs[fit],
            frame_lengths[fit].to(self.device),
            targets.values[fit].to(self.device),
            targets.mask[fit].to(self.device),
            blank=self.blank,
        )
        for row, index in enumerate(fit):
            results[index] = self._alignment(utterances[index], units[index], spelled[index][1], _row(spans, row))
        return results

    def _alignment(self, utterance: Utterance, units: list[Unit], firsts: list[int], spans: TokenSpans) -> Alignment:
        lasts = [first + len(unit.labels) - 1 for first, unit in zip(firsts, units, strict=True)]
        peaks = [
            (int(spans.starts[first]) * self.hop_s, int(spans.ends[last]) * self.hop_s)
            for first, last in zip(firsts, lasts, strict=True)
        ]
        words: list[WordTime] = []
        for unit, (start_s, end_s) in zip(units, extents(peaks, utterance.duration_s), strict=True):
            words += _share(unit, start_s, end_s, aligned=self.spelling.wildcard not in unit.labels)
        return Alignment(tuple(words), float(spans.scores[: lasts[-1] + 1].mean()))


def extents(peaks: Sequence[tuple[float, float]], duration_s: float) -> list[tuple[float, float]]:
    """Return the start and end of each word in seconds, given those of its peaks.

    Two neighbouring words share the time between their peaks equally, up to `MAX_MARGIN_S` each. The first and the
    last word also extend by at most `MAX_MARGIN_S`, within the utterance of ``duration_s``.
    """
    gaps_s = [later[0] - earlier[1] for earlier, later in pairwise(peaks)]
    margins_s = [min(gap_s / 2, MAX_MARGIN_S) for gap_s in gaps_s]
    before_s = [min(peaks[0][0], MAX_MARGIN_S), *margins_s]
    after_s = [*margins_s, min(max(duration_s - peaks[-1][1], 0.0), MAX_MARGIN_S)]
    return [
        (start_s - before, end_s + after)
        for (start_s, end_s), before, after in zip(peaks, before_s, after_s, strict=True)
    ]


def _share(unit: Unit, start_s: float, end_s: float, *, aligned: bool) -> list[WordTime]:
    """Divide the time of a unit among its words in proportion to their letters."""
    letters = [len(without_punctuation(word)) for word in unit.words]
    per_letter_s = (end_s - start_s) / sum(letters)
    edges_s = [start_s + per_letter_s * sum(letters[:i]) for i in range(len(letters))] + [end_s]
    return [WordTime(word, *times, aligned) for word, times in zip(unit.words, pairwise(edges_s), strict=True)]


def _reasons(frame_lengths: Tensor, needed: Tensor) -> list[str]:
    """Return why each utterance cannot be aligned, or an empty string if it can."""
    return [
        "its text has no words"
        if not need
        else f"it has {have} frames of speech, its text needs {need}: the text is not what is said, or audio is missing"
        if have < need
        else ""
        for have, need in zip(frame_lengths.tolist(), needed.tolist(), strict=True)
    ]


def _row(spans: TokenSpans, row: int) -> TokenSpans:
    return TokenSpans(spans.starts[row], spans.ends[row], spans.scores[row], spans.path_scores[row])


def _waveform(utterance: Utterance) -> Tensor:
    if utterance.waveform is None:
        raise ValueError(
            f"{utterance.sample.source}: {utterance.sample.id!r} has no waveform; load the audio before the alignment"
        )
    return utterance.waveform
