"""Batches are bounded by the positions that they take in the LLM, as estimated before the texts are tokenised."""

from dataclasses import replace

import numpy as np
import pytest
from accelerate import Accelerator

from ossicle.data.dataset import SpeechDataset
from ossicle.data.manifest import read_manifest, write_manifest
from ossicle.errors import ConfigError
from ossicle.objectives import Contrastive, NextToken
from ossicle.prompts import answer_of
from ossicle.train.batches import Data
from ossicle.train.token_counts import token_counts


def measured(model, sample) -> int:
    """Return the positions of a sample as the LLM reads it."""
    prompter = model.prompter()
    turn = prompter.turn(prompter.instruction(sample, 0), answer_of(sample))
    return len(turn.before) + len(turn.after) + len(turn.answer)


def test_the_estimate_is_the_number_of_positions(model, task_manifest):
    dataset = SpeechDataset(read_manifest(task_manifest))
    samples = [replace(s, answers=(answer_of(s) * (1 + i),)) for i, s in enumerate(dataset.samples)]
    found = token_counts(samples, dataset.durations_s, model, model.prompter())
    speech = np.ceil(np.array(dataset.durations_s) * model.token_rate_hz)
    # The tokenizer of the tests has a token for every byte, so that characters and tokens are the same.
    assert (found - speech).tolist() == pytest.approx([measured(model, s) for s in samples], abs=1)


def test_each_language_has_its_own_number_of_tokens_per_character(model, manifest):
    plain = read_manifest(manifest)
    latin = [replace(s, text="abcd " * 8, language="en") for s in plain]
    hangul = [replace(s, text="한국어 " * 8, language="ko") for s in plain]  # three bytes each
    samples = latin + hangul
    found = token_counts(samples, [0.0] * len(samples), model, model.prompter())
    assert found.tolist() == pytest.approx([measured(model, s) for s in samples], rel=0.02)
    assert found[-1] > 1.3 * found[0]


def test_long_answers_make_small_batches(config, model, manifest, tmp_path):
    samples = [replace(s, text="word " * (60 if i % 2 else 1)) for i, s in enumerate(read_manifest(manifest))]
    path = tmp_path / "answers.jsonl"
    write_manifest(path, samples)
    options = {"train": [str(path)], "batch_size": 8, "max_batch_s": 1000}
    accelerator = Accelerator(cpu=True)

    def positions(most: int | None) -> list[int]:
        run = config(data={**options, "max_batch_tokens": most})
        data = Data.load(run.data, model, accelerator, objective=NextToken())
        speech = [len(batch) * batch.audio_s / len(batch) * model.token_rate_hz for batch in data.epoch(0)]
        return [
            int(s) + sum(int(part.mask.sum()) for part in (batch.chat.before, batch.chat.after, batch.chat.answer))
            for s, batch in zip(speech, data.epoch(0), strict=True)
        ]

    unbounded = positions(None)
    assert len(unbounded) == 1
    bounded = positions(700)
    assert len(bounded) > 1 and max(bounded) <= 700 * 1.05 < unbounded[0]
    assert sum(bounded) == pytest.approx(unbounded[0], rel=0.01)

    with pytest.raises(ConfigError, match="max_batch_tokens has no room for two utterances"):
        run = config(data={**options, "max_batch_tokens": 10})
        Data.load(run.data, model, accelerator, objective=Contrastive())
