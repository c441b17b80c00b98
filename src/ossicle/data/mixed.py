"""Make mixed speech-text sequences: some spans of an utterance stay text, the others are cut out of its waveform.

Shape legend: B utterances, N tokens, K spans of speech in the whole batch, S audio samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from ossicle.audio import SAMPLE_RATE_HZ
from ossicle.batch import Mixed, Sample, Skipped, Utterance, pad
from ossicle.data.dataset import DURATION_TOLERANCE_S, known_duration_s
from ossicle.data.table import take
from ossicle.data.words import SPEECH_SPAN_WORDS, Span, mixed_spans, span_rng, without_punctuation, words_of
from ossicle.errors import DataError, ManifestError
from ossicle.prompts import Prompter

LEAST_WORDS = SPEECH_SPAN_WORDS[0] + 1
"""Number of words of the shortest sentence that can have both kinds of span: the shortest speech span and one word."""

LEAST_SPAN_S = 0.1
"""Length in seconds of the shortest cut. An aligner may give words no time at all, and an encoder needs 25 ms for one
frame."""


class Mixing:
    """Cut utterances into mixed sequences; the spans depend only on ``seed``, the epoch and the sample's id."""

    def __init__(self, prompter: Prompter, *, seed: int = 0) -> None:
        self.prompter, self.seed = prompter, seed

    def __call__(self, utterances: list[Utterance], epoch: int) -> Mixed:
        """Return the mixed sequences of ``utterances``, which must be `mixable` and have waveforms.

        Raises `ManifestError` if an utterance has no word times, and `DataError` if it has too few words.
        """
        cuts = [self.spans(utterance.sample, epoch) for utterance in utterances]
        ids = [self._ids(spans) for spans in cuts]  # token ids of each span of each utterance
        firsts = [list(accumulate(map(len, spans), initial=len(self.prompter.first_ids))) for spans in ids]
        text = pad([self._sequence(spans) for spans in ids])
        spoken = [
            (row, firsts[row][place], span)
            for row, spans in enumerate(cuts)
            for place, span in enumerate(spans)
            if span.kind == "speech"
        ]
        written, words = text.mask.clone(), torch.zeros_like(text.mask)
        for row, edges in enumerate(firsts):
            words[row, edges[0] : edges[-1]] = True
            for span, first, stop in zip(cuts[row], edges, edges[1:], strict=False):
                written[row, first:stop] = span.kind == "text"
        return Mixed(
            text=text,
            written=written,
            words=words,
            waveforms=pad([_cut(utterances[row], span) for row, _, span in spoken]),
            rows=torch.tensor([row for row, _, _ in spoken]),
            starts=torch.tensor([first for _, first, _ in spoken]),
        )

    def spans(self, sample: Sample, epoch: int) -> list[Span]:
        """Return the spans of ``sample`` in ``epoch``, at least one of each kind.

        Spans are drawn again until both kinds occur: without text there is nothing to predict or compare, and without
        speech there is nothing to learn. Raises `DataError` if the sample has too few words.
        """
        words, rng = words_of(sample), span_rng(sample.id, epoch, self.seed)
        if reason := _too_short(sample):
            raise DataError(f"{sample.source}: {sample.id!r} {reason}; remove the line")
        while len(spans := mixed_spans(words, rng)) < 2:  # spans alternate, so that two are one of each kind
            pass
        return spans

    def _ids(self, spans: list[Span]) -> list[list[int]]:
        """Return the token ids of each span; concatenated, they are the ids of the whole text."""
        by_word = iter(self.prompter.word_ids([without_punctuation(word.word) for s in spans for word in s.words]))
        return [[token for _ in span.words for token in next(by_word)] for span in spans]

    def _sequence(self, spans: list[list[int]]) -> Tensor:
        tokens = [token for span in spans for token in span]
        return torch.tensor([*self.prompter.first_ids, *tokens, self.prompter.tokenizer.eos_token_id])


def mixable(samples: Sequence[Sample]) -> tuple[Sequence[Sample], list[Skipped]]:
    """Separate the samples with enough words for a mixed sequence from those with too few.

    Raises `ManifestError` for a line without word times, or with times after the end of its audio.
    """
    fit: list[int] = []
    unfit: list[Skipped] = []
    for index, sample in enumerate(samples):
        end_s, duration_s = words_of(sample)[-1].end_s, known_duration_s(sample)
        if end_s > duration_s + DURATION_TOLERANCE_S:
            raise ManifestError(
                f'{sample.source}: "words" end at {end_s:.2f} s, the audio at {duration_s:.2f} s; align it again'
            )
        if reason := _too_short(sample):
            unfit.append(Skipped(sample, reason))
        else:
            fit.append(index)
    return take(samples, fit), unfit


def _too_short(sample: Sample) -> str:
    """Return the reason why ``sample`` cannot be mixed, or an empty string."""
    count = sum(bool(without_punctuation(word.word)) for word in words_of(sample))
    return f"has {count} words, a mixed sequence needs {LEAST_WORDS}" if count < LEAST_WORDS else ""


def _cut(utterance: Utterance, span: Span) -> Tensor:
    """Return the waveform (S,) of ``span``."""
    waveform = utterance.waveform
    if waveform is None:
        source = utterance.sample.source
        raise DataError(f"{source}: {utterance.sample.id!r} has no waveform, which mixed sequences need")
    least = round(LEAST_SPAN_S * SAMPLE_RATE_HZ)
    first, stop = round(span.start_s * SAMPLE_RATE_HZ), round(span.end_s * SAMPLE_RATE_HZ)
    first = max(0, min(first, len(waveform) - least))
    return waveform[first : max(stop, first + least)]
