import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ossicle.batch import Mixed, Sample, Utterance
from ossicle.data.collate import Collator
from ossicle.data.manifest import ManifestError
from ossicle.data.mixed import LEAST_SPAN_S, Mixing, mixable
from ossicle.data.prompts import Prompter
from ossicle.data.words import Span, WordTime, with_words
from ossicle.testing import tiny_tokenizer

TEXT = "One, two three – four five. six seven eight nine ten"


@pytest.fixture(scope="module")
def prompter() -> Prompter:
    tokenizer = tiny_tokenizer()
    return Prompter(tokenizer, {tokenizer.eos_token_id})


def spoken(name: str, text: str = TEXT, *, word_s: float = 0.25) -> Utterance:
    """Words one after the other; the waveform counts its samples."""
    words = [WordTime(word, i * word_s, (i + 1) * word_s) for i, word in enumerate(text.split())]
    sample = Sample(id=name, audio=Path("a.wav"), text=text, duration_s=len(words) * word_s, source=f"m:{name}")
    waveform = torch.arange(len(words) * word_s * 16_000)
    return Utterance(with_words(sample, words, "test"), waveform=waveform)


def rows_of(mixed: Mixed, prompter: Prompter) -> list[list[str]]:
    """Each mixed sequence as text, spans of speech as their first and last sample."""
    shown = []
    for row, (ids, mask) in enumerate(zip(mixed.text.values, mixed.written, strict=True)):
        parts = {int(i): prompter.tokenizer.decode(int(ids[i])) for i in mask.nonzero()}
        for start, wave, valid in zip(mixed.starts, mixed.waveforms.values, mixed.waveforms.mask, strict=True):
            pass
        for k in (mixed.rows == row).nonzero().flatten().tolist():
            wave = mixed.waveforms.values[k][mixed.waveforms.mask[k]]
            place = int(mixed.starts[k])
            assert place not in parts
            parts[place] = f"[{int(wave[0])}-{int(wave[-1])}]"
        shown.append([parts[i] for i in sorted(parts)])
    return shown


def test_spans_by_hand(prompter, monkeypatch):
    def cut(words: list[WordTime], rng: random.Random) -> list[Span]:
        words = [word for word in words if word.word != "–"]
        edges = [("text", 0, 4), ("speech", 4, 6), ("text", 6, 10)] if len(words) == 10 else [("speech", 0, 2), ("text", 2, 3)]
        return [Span(kind, a, b - 1, tuple(words[a:b])) for kind, a, b in edges]

    monkeypatch.setattr("ossicle.data.mixed.mixed_spans", cut)
    mixed = Mixing(prompter)([spoken("a"), spoken("b", "red dog, runs!")], 0)
    decode = prompter.tokenizer.decode
    texts = [decode(ids[mask]) for ids, mask in zip(mixed.text.values, mixed.text.mask, strict=True)]
    assert texts == ["<s>One two three four five six seven eight nine ten<|end|>", "<s>red dog runs<|end|>"]
    words = [decode(ids[mask]) for ids, mask in zip(mixed.text.values, mixed.words, strict=True)]
    assert words == ["One two three four five six seven eight nine ten", "red dog runs"]
    first, second = rows_of(mixed, prompter)
    # "five. six" are the sixth and seventh word with the dash: 5 * 0.25 s to 7 * 0.25 s
    assert "".join(first) == "<s>One two three four[20000-27999] seven eight nine ten<|end|>"
    assert "".join(second) == "<s>[0-7999] runs<|end|>"
    assert mixed.rows.tolist() == [0, 1]
    assert mixed.starts.tolist() == [1 + len("One two three four"), 1]
