"""Test every family end to end: load from disk, a step of each stage, decode, save, reload."""

from __future__ import annotations

import pytest
import torch

from ossicle.models.speech_llm import SpeechLLM
from ossicle.testing import ENCODERS, LLMS, tiny_llm
from ossicle.train.loop import train
from ossicle.train.tracking import read_metrics

STEP = {"steps": 1, "save_every": 100}


@pytest.fixture(scope="module")
def own_llms(tmp_path_factory):
    root = tmp_path_factory.mktemp("llms")
    return {family: tiny_llm(root / family, family, own_chat=True) for family in LLMS}


def both_stages(config, collate, model: dict, task_manifest) -> None:
    first = train(config(name="stage1", model=model, train=STEP))
    data = {"train": [str(task_manifest)]}
    stage2 = {"model": model, "data": data, "objective": {"name": "next_token"}}
    second = train(config(name="stage2", **stage2, train={**STEP, "init_from": str(first)}))
    for folder in (first, second):
        (record,) = read_metrics(folder / "metrics.jsonl")
        assert 0 < record["loss"] < 100
        assert record["grad_norm"] > 0
    trained, again = (SpeechLLM.from_pretrained(second) for _ in range(2))
    batch = collate(trained, task_manifest)
    assert torch.equal(trained.speech(batch).values, again.speech(batch).values)
    assert not torch.equal(trained.speech(batch).values, SpeechLLM.from_pretrained(first).speech(batch).values)
    answers = trained.generate_batch(batch, max_new_tokens=4)
    assert len(answers) == 4
    assert again.generate_batch(batch, max_new_tokens=4) == answers


@pytest.mark.parametrize("family", LLMS)
def test_every_llm(config, collate, own_llms, task_manifest, family):
    both_stages(config, collate, {"llm": str(own_llms[family])}, task_manifest)


@pytest.mark.parametrize("family", [*ENCODERS, "hubert-group"])
def test_every_encoder(config, collate, folders, task_manifest, family):
    both_stages(config, collate, {"encoder": str(folders[family])}, task_manifest)
