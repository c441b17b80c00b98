"""The loss of right answers, with their own audio and with another's."""

import pytest
import torch

from ossicle.data.collate import Collator
from ossicle.data.dataset import SpeechDataset
from ossicle.data.manifest import read_manifest
from ossicle.errors import DataError
from ossicle.evaluate.other_audio import with_other_audio
from ossicle.objectives import NextToken
from ossicle.testing import tiny_manifest
from ossicle_lab.analysis.answer_loss import answer_losses


@pytest.fixture
def samples(tmp_path):
    return read_manifest(tiny_manifest(tmp_path / "tasks", 6, tasks=("asr", "qa")))


def test_losses_are_those_of_fine_tuning(build, samples):
    model = build()
    found = {row.task: row for row in answer_losses(model, samples, batch_size=16)}
    assert list(found) == ["asr", "qa"]
    for task, row in found.items():
        lines = [sample for sample in samples if sample.task == task]
        assert row.utterances == len(lines)
        swapped = with_other_audio(lines)
        assert 0 < len(swapped) <= len(lines)
        with torch.no_grad():
            batches = (
                Collator(model.prompter())([*map(SpeechDataset(part).__getitem__, range(len(part)))])
                for part in (lines, swapped)
            )
            losses = [float(NextToken()(model, batch).total) for batch in batches]
        assert [row.own, row.other] == pytest.approx(losses, rel=1e-4)
        assert row.gain == pytest.approx(losses[1] - losses[0], abs=1e-4)


def test_batches_do_not_change_the_losses(build, samples):
    model = build()
    whole, parts = (answer_losses(model, samples, batch_size=size) for size in (16, 2))
    for name in ("own", "other"):
        assert [getattr(row, name) for row in parts] == pytest.approx([getattr(row, name) for row in whole], rel=1e-4)


def test_a_single_line_is_refused(build, samples):
    with pytest.raises(DataError, match=r"\.jsonl:\d+: no other line with the task asr has another audio"):
        answer_losses(build(), [sample for sample in samples if sample.task == "asr"][:1])
