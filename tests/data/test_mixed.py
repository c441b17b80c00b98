import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ossicle.batch import Mixed, Sample, Utterance
from ossicle.data.collate import Collator
from ossicle.data.mixed import LEAST_SPAN_S, Mixing, mixable
from ossicle.data.words import Span, WordTime, with_words
from ossicle.errors import ManifestError
from ossicle.prompts import Prompter
from ossicle.testing import tiny_tokenizer

TEXT = "One, two three – four five. six seven eight nine ten"


@pytest.fixture(scope="module")
def prompter() -> Prompter:
    tokenizer = tiny_tokenizer()
    return Prompter(tokenizer, {tokenizer.eos_token_id})


def spoken(name: str, text: str = TEXT, *, word_s: float = 0.25) -> Utterance:
    """Return an utterance with consecutive words, whose waveform counts its samples."""
    words = [WordTime(word, i * word_s, (i + 1) * word_s) for i, word in enumerate(text.split())]
    sample = Sample(id=name, audio=Path("a.wav"), text=text, duration_s=len(words) * word_s, source=f"m:{name}")
    waveform = torch.arange(len(words) * word_s * 16_000)
    return Utterance(with_words(sample, words, "test"), waveform=waveform)


def rows_of(mixed: Mixed, prompter: Prompter) -> list[list[str]]:
    """Return each mixed sequence as text, with the first and the last sample of each span of speech."""
    shown = []
    for row, (ids, mask) in enumerate(zip(mixed.text.values, mixed.written, strict=True)):
        parts = {int(i): prompter.tokenizer.decode(int(ids[i])) for i in mask.nonzero()}
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
        whole = [("text", 0, 4), ("speech", 4, 6), ("text", 6, 10)]
        edges = whole if len(words) == 10 else [("speech", 0, 2), ("text", 2, 3)]
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


def test_word_ids_are_those_of_the_whole_text(prompter):
    words = ["über", "27", "l'été", "mother-in-law", "a b", "日本"]
    ids = prompter.word_ids(words)
    assert [token for word in ids for token in word] == prompter.ids(" ".join(words))
    assert [prompter.tokenizer.decode(word).strip() for word in ids] == words
    assert prompter.word_ids([]) == []


def test_word_ids_of_the_lab_and_of_sentence_piece(prompter):
    """Return a tokenizer with merges, or one that marks a space by an extra letter before the word."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    texts = ["the red dog sees the green dog", "a bird takes the red dog"]
    for before in (pre_tokenizers.ByteLevel(add_prefix_space=True), pre_tokenizers.Metaspace()):
        tokenizer = Tokenizer(models.BPE(unk_token="?"))
        tokenizer.pre_tokenizer = before
        tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=300, special_tokens=["?"]))
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="?")
        fast.chat_template = tiny_tokenizer().chat_template
        spelled = Prompter(fast, set())
        for text in texts:
            ids = spelled.word_ids(text.split())
            assert [token for word in ids for token in word] == spelled.ids(text)
            for word, tokens in zip(text.split(), ids, strict=True):
                assert "".join(fast.convert_ids_to_tokens(tokens)).lstrip("Ġ▁") == word


def test_spans_change_with_the_epoch_and_not_with_order_or_process(prompter):
    utterances = [spoken(name, TEXT + " " + TEXT) for name in "abcd"]
    mix = Mixing(prompter)
    plain = rows_of(mix(utterances, 0), prompter)
    assert len({str(row) for row in plain}) > 1  # by sample
    assert rows_of(mix(utterances[::-1], 0), prompter) == plain[::-1]
    assert rows_of(mix(utterances[1:2], 0), prompter) == plain[1:2]
    assert rows_of(mix(utterances, 1), prompter) != plain
    assert rows_of(Mixing(prompter, seed=1)(utterances, 0), prompter) != plain
    code = (
        "from test_mixed import *; p = Prompter(tiny_tokenizer(), {0}); "
        "print(rows_of(Mixing(p)([spoken(n, TEXT + ' ' + TEXT) for n in 'abcd'], 0), p))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parent
    )
    assert run.stdout.strip() == str(plain)


def test_the_collator_takes_its_epoch(prompter):
    collate = Collator(prompter, Mixing(prompter))
    items = [spoken(name) for name in "abcd"]
    first = rows_of(collate(items).mixed, prompter)
    collate.epoch = 1
    assert rows_of(collate(items).mixed, prompter) != first
    assert Collator(prompter)(items).mixed is None


@pytest.mark.parametrize("count", range(3, 12))
def test_every_sentence_has_both_kinds_of_span(prompter, count):
    utterance = spoken("a", " ".join(TEXT.replace(" –", "").split()[:count]) if count < 11 else TEXT + " eleven")
    for epoch in range(40):
        kinds = {span.kind for span in Mixing(prompter).spans(utterance.sample, epoch)}
        assert kinds == {"text", "speech"}


def test_what_is_too_short_is_left_out_and_wrong_times_are_named(prompter):
    good, short = spoken("a").sample, spoken("b", "no – way!").sample
    fit, unfit = mixable([good, short])
    assert fit == [good]
    assert str(unfit[0]) == "m:b: 'b' skipped: has 2 words, a mixed sequence needs 3"
    with pytest.raises(ValueError, match="m:b: 'b' has 2 words"):
        Mixing(prompter)([spoken("b", "no – way!")], 0)
    with pytest.raises(ManifestError, match=r'm:a: "words" end at 2\.75 s, the audio at 1\.00 s; align it again'):
        mixable([replace(good, duration_s=1.0)])
    with pytest.raises(ManifestError, match="m:a: 'a' has no \"words\""):
        mixable([replace(good, extra={})])
    with pytest.raises(ValueError, match="m:a: 'a' has no waveform"):
        Mixing(prompter)([Utterance(good, frames=torch.ones(3, 4))], 0)


def test_a_span_without_time_still_gives_the_encoder_something(prompter):
    for start_s in (0.0, 1.0, 2.75):
        words = [WordTime(word, start_s, start_s) for word in ("one", "two", "three")]
        utterance = replace(spoken("a"), sample=with_words(spoken("a").sample, words, "test"))
        mixed = Mixing(prompter)([utterance], 0)
        assert mixed.waveforms.mask.sum(1).tolist() == [LEAST_SPAN_S * 16_000]


def test_a_batch_moves_whole(prompter):
    batch = Collator(prompter, Mixing(prompter))([spoken("a")]).to("meta")
    moved = batch.mixed
    tensors = (moved.text.values, moved.written, moved.words, moved.waveforms.mask, moved.rows, moved.starts)
    assert all(tensor.device.type == "meta" for tensor in tensors)
