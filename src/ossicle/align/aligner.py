"""Word times from any CTC model of Hugging Face transformers that hears waveforms and spells with characters.

A CTC label is a short peak somewhere within its sound, not its extent. The boundary of two words is put in the middle
between the last peak of one and the first of the next: on espeak-ng's speech (589 boundaries, held-out voices, the
lab's encoder) that is 5 ms late in the median, where the one peak ends 17 ms early and the other starts 27 ms late.

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
from ossicle.models.encoder import CONV_FAMILIES, FAMILIES, Encoder
from ossicle.models.front_ends import ConvFront
from ossicle.models.frozen import LAB, fingerprint, freeze, quiet_loading, refuse_missing, resolve

MAX_MARGIN_S = 0.1
"""A word reaches at most this far beyond its outer peaks; what lies further is a pause and belongs to no word."""

WILDCARD_PENALTY = 0.1
"""A wildcard costs this much more per frame (nats) than the best label: its neighbours keep the frames they explain,
and it takes the rest."""


@dataclass(frozen=True)
class Alignment:
    """The word times of one utterance."""

    words: tuple[WordTime, ...]
    score: float
    """Mean log-probability of the text's labels: near 0 where the speech says the text, far below where it does not."""


@dataclass(frozen=True)
class Unit:
    """Words that are aligned as one: a single word, or several in a row that the model cannot spell at all."""

    words: tuple[str, ...]
    labels: tuple[int, ...]


@dataclass(frozen=True)
class Spelling:
    """How a CTC head spells: its characters, what stands between words, and a wildcard for all it cannot spell."""

    ids: Mapping[str, int]
    delimiter: int | None
    wildcard: int

    def units(self, text: str) -> list[Unit]:
        """The words of ``text`` in labels. A run of letters or digits outside the vocabulary is one wildcard."""
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
        """The labels of all units with delimiters between (U,), and the position of each unit's first label."""
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
    """A frozen CTC model and its spelling; ``source`` names it, down to its weights."""

    def __init__(self, model: Any, tokenizer: Any, *, normalise: bool, name: str) -> None:
        family = FAMILIES[model.config.model_type]
        front = ConvFront(model.config, normalise=normalise)
        self.encoder = Encoder(model.base_model, front, name=name, layers=family.layers)
        self.head = freeze(model.lm_head)
        self.source = f"ctc:{name}@{fingerprint(model)[:8]}"
        self.blank: int = model.config.pad_token_id
        ids = {token: i for token, i in tokenizer.get_vocab().items() if len(token) == 1 and i != self.blank}
        # A model may be trained without a delimiter: its tokenizer then names one that the vocabulary lacks.
        delimiter = ids.pop(tokenizer.word_delimiter_token, None)
        self.spelling = Spelling(ids, delimiter, wildcard=model.config.vocab_size)

    @classmethod
    def load(cls, name: str = LAB) -> Aligner:
        """Load a hub id or a folder, onto the GPU if there is one; ``lab``: the tiny encoder in the package.

        Raises `ValueError` for a model that does not hear waveforms, or whose labels are not characters.
        """
        from transformers import AutoConfig, AutoFeatureExtractor, AutoModelForCTC, AutoTokenizer, Wav2Vec2CTCTokenizer

        folder = resolve(name, "encoder")
        family = AutoConfig.from_pretrained(folder).model_type
        if family not in CONV_FAMILIES:
            raise ValueError(
                f"--model {name}: '{family}' cannot align; use a CTC model of {', '.join(CONV_FAMILIES)}, such as "
                "facebook/hubert-large-ls960-ft"
            )
        tokenizer = AutoTokenizer.from_pretrained(folder)
        if not isinstance(tokenizer, Wav2Vec2CTCTokenizer):
            raise ValueError(
                f"--model {name}: its tokenizer does not spell with characters; use a fine-tuned CTC model"
            )
        normalise = bool(AutoFeatureExtractor.from_pretrained(folder).do_normalize)
        with quiet_loading(folder):
            model, report = AutoModelForCTC.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
        refuse_missing(f"--model {name}", report)
        model = model.to("cuda" if torch.cuda.is_available() else "cpu")
        return cls(model, tokenizer, normalise=normalise, name=name)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.head.parameters()).device

    @property
    def hop_s(self) -> float:
        """Seconds from one frame to the next."""
        return 1 / self.encoder.frame_rate_hz

    @torch.no_grad()
    def align(self, utterances: Sequence[Utterance]) -> list[Alignment | Skipped]:
        """The word times of each utterance (waveform and transcript), or why it has none."""
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
    """From where each word's peaks begin and end (s) to where the word does.

    The time between two words is halved, up to `MAX_MARGIN_S` for each; the utterance's ends are treated likewise.
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
    """The words of a unit, its time shared in proportion to their letters."""
    letters = [len(without_punctuation(word)) for word in unit.words]
    per_letter_s = (end_s - start_s) / sum(letters)
    edges_s = [start_s + per_letter_s * sum(letters[:i]) for i in range(len(letters))] + [end_s]
    return [WordTime(word, *times, aligned) for word, times in zip(unit.words, pairwise(edges_s), strict=True)]


def _reasons(frame_lengths: Tensor, needed: Tensor) -> list[str]:
    """Why each utterance cannot be aligned; empty where it can."""
    return [
        "its text has no words"
        if not need
        else f"it has {have} frames of speech, its text needs {need}: the text is not what is said, or the audio is cut"
        if have < need
        else ""
        for have, need in zip(frame_lengths.tolist(), needed.tolist(), strict=True)
    ]


def _row(spans: TokenSpans, row: int) -> TokenSpans:
    return TokenSpans(spans.starts[row], spans.ends[row], spans.scores[row], spans.path_scores[row])


def _waveform(utterance: Utterance) -> Tensor:
    if utterance.waveform is None:
        raise ValueError(f"{utterance.sample.source}: {utterance.sample.id!r} has no waveform: alignment needs it")
    return utterance.waveform
