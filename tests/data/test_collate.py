from pathlib import Path

import pytest
import torch

from ossicle.batch import Batch, Padded, Sample, Skipped, Utterance
from ossicle.data.collate import Collator, pad, padding_share
from ossicle.prompts import Prompter
from ossicle.testing import tiny_tokenizer


@pytest.fixture
def collator() -> Collator:
    tokenizer = tiny_tokenizer()
    return Collator(Prompter(tokenizer, {tokenizer.eos_token_id}))


def utterance(text: str | None, samples: int, **fields) -> Utterance:
    return Utterance(Sample(id=f"u{samples}", audio=Path("u.wav"), text=text, **fields), waveform=torch.ones(samples))


def rows_of(sequence: Padded) -> list[list]:
    return [values[mask].tolist() for values, mask in zip(sequence.values, sequence.mask, strict=True)]


def test_pad_by_hand():
    padded = pad([torch.tensor([1, 2, 3]), torch.tensor([4])])
    assert padded.values.tolist() == [[1, 2, 3], [4, 0, 0]]
    assert padded.mask.tolist() == [[True, True, True], [True, False, False]]
    assert pad([torch.ones(2, 5), torch.ones(4, 5)]).values.shape == (2, 4, 5)


def test_a_batch_holds_what_its_utterances_say(collator):
    batch = collator(
        [utterance("red dog", 16_000), utterance("cat", 8_000, instruction="repeat", answers=("CAT", "c"))]
    )
    assert batch.waveforms.values.shape == (2, 16_000)
    assert batch.waveforms.mask.sum(1).tolist() == [16_000, 8_000]
    assert batch.audio_s == 1.5
    assert batch.frames is None
    decode = collator.prompter.tokenizer.decode
    assert [decode(row) for row in rows_of(batch.text)] == ["red dog", "cat"]
    assert [decode(row) for row in rows_of(batch.chat.answer)] == ["red dog<|end|>", "CAT<|end|>"]
    assert decode(rows_of(batch.chat.after)[1]) == " repeat<|end|><|assistant|>"
    assert [decode(row) for row in rows_of(batch.chat.before)] == ["<s><|user|>"] * 2


def test_transcripts_have_no_special_tokens(collator):
    batch = collator([utterance("red dog", 100)])
    assert not set(batch.text.values.flatten().tolist()) & set(collator.prompter.tokenizer.all_special_ids)


@pytest.mark.parametrize("missing", [None, ""])
def test_a_missing_transcript_leaves_text_unset(collator, missing):
    assert collator([utterance("red", 100), utterance(missing, 200, answers=("x",))]).text is None


def test_cached_frames_take_the_place_of_waveforms(collator):
    items = [
        Utterance(Sample(id=str(n), audio=Path("u"), text="cat", duration_s=0.02 * n), frames=torch.ones(n, 6))
        for n in (3, 5)
    ]
    batch = collator(items)
    assert batch.waveforms is None
    assert batch.frames.values.shape == (2, 5, 6)
    assert batch.frames.mask.sum(1).tolist() == [3, 5]
    assert batch.audio_s == pytest.approx(0.16)


def test_skipped_utterances_are_left_out_and_reported(collator):
    broken = Skipped(Sample(id="broken", audio=Path("b.wav"), source="m.jsonl:7"), "b.wav: it is empty")
    batch = collator([broken, utterance("cat", 100)])
    assert [sample.id for sample in batch.samples] == ["u100"]
    assert [str(skipped) for skipped in batch.skipped] == ["m.jsonl:7: 'broken' skipped: b.wav: it is empty"]
    nothing = collator([broken])
    assert (len(nothing), nothing.waveforms, nothing.skipped) == (0, None, [broken])


def test_the_epoch_selects_the_asr_instruction(collator):
    items = [utterance("cat", 100 + i) for i in range(20)]
    first = collator(items).chat.after
    collator.epoch = 1
    assert rows_of(collator(items).chat.after) != rows_of(first)


def test_padding_share():
    waveforms = pad([torch.ones(8), torch.ones(2)])
    assert padding_share(Batch(samples=[], waveforms=waveforms)) == pytest.approx(6 / 16)
    assert padding_share(Batch(samples=[])) == 0.0
