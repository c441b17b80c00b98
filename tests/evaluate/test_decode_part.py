"""A dataset that is decoded in parts gives the file of one call."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ossicle.audio import SAMPLE_RATE_HZ
from ossicle.batch import Batch, Sample
from ossicle.data.dataset import SpeechDataset, Utterance
from ossicle.errors import HypothesesError
from ossicle.evaluate.decode import decode, meta_path
from ossicle.evaluate.decode_part import decode_part
from ossicle.shards import Shard


class Neighbour:
    """A decoder whose answers depend on the whole batch, as the last digits of a model's values do."""

    def __init__(self, dies_at=None):
        self.batches, self.dies_at = [], dies_at

    def generate_batch(self, batch, **decoding):
        if len(self.batches) == self.dies_at:
            raise KeyboardInterrupt
        self.batches.append([sample.id for sample in batch.samples])
        return [f"{sample.id} in {' '.join(self.batches[-1])}" for sample in batch.samples]


def collate(items):
    utterances = [item for item in items if isinstance(item, Utterance)]
    return Batch(samples=[one.sample for one in utterances], audio_s=sum(one.duration_s for one in utterances))


@pytest.fixture
def dataset(tmp_path: Path) -> SpeechDataset:
    made = []
    for index in range(11):
        audio = tmp_path / f"{index}.wav"
        soundfile.write(audio, np.zeros(SAMPLE_RATE_HZ * (1 + index % 4) // 4, dtype=np.float32), SAMPLE_RATE_HZ)
        made.append(Sample(id=f"u{index}", audio=audio, text="x", language="en", source=f"m.jsonl:{index}"))
    found = SpeechDataset(made, on_error="skip")
    (tmp_path / "6.wav").write_bytes((tmp_path / "6.wav").read_bytes()[:100])  # cannot be read
    return found


def part(text: str, dataset: SpeechDataset, out: Path, model: Neighbour | None = None, fingerprint: str = "abc") -> str:
    shard = Shard.parse(text)
    return decode_part(shard, model or Neighbour(), dataset, collate, out, fingerprint=fingerprint, batch_size=2)


@pytest.fixture
def whole(dataset, tmp_path) -> Path:
    out = tmp_path / "whole" / "h.jsonl"
    decode(Neighbour(), dataset, collate, out, fingerprint="abc", batch_size=2)
    assert len(out.read_text().splitlines()) == 10
    return out


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_parts_give_the_bytes_of_one_call(dataset, whole, tmp_path, count):
    out = tmp_path / "parts" / "h.jsonl"
    for number in range(count, 0, -1):
        waiting = part(f"{number}/{count}", dataset, out)
        assert (waiting == "") == (number == 1) == out.exists()
    assert out.read_bytes() == whole.read_bytes()
    assert meta_path(out).read_bytes() == meta_path(whole).read_bytes()
    left = {path.name for path in out.parent.iterdir() if not path.name.endswith(".lock")}
    assert left == {"h.jsonl", "h.meta.json"}
    report = decode(Neighbour(), dataset, collate, out, fingerprint="abc", batch_size=2)
    assert (report.decoded, report.already_decoded) == (0, 10)


def test_an_interrupted_part_repeats_its_batch_and_a_finished_one_nothing(dataset, whole, tmp_path):
    out = tmp_path / "parts" / "h.jsonl"
    with pytest.raises(KeyboardInterrupt):
        part("1/2", dataset, out, Neighbour(dies_at=2))
    partial = out.with_name(".h.jsonl.1-of-2.partial")
    lines = partial.read_text().splitlines(keepends=True)
    assert len(lines) == 4
    partial.write_text("".join(lines[:3]) + lines[3][:20])  # killed while it wrote the second batch
    again = Neighbour()
    part("1/2", dataset, out, again)
    assert len(again.batches[0]) == 2  # the whole batch, of which one line was there
    part("2/2", dataset, out)
    assert out.read_bytes() == whole.read_bytes()
    finished = Neighbour()
    assert part("2/2", dataset, out.with_name("o.jsonl"), finished).startswith(f"{out.with_name('o.jsonl')}: shard 2/2")
    before = len(finished.batches)
    part("2/2", dataset, out.with_name("o.jsonl"), finished)
    assert len(finished.batches) == before > 0


def test_parts_of_two_models_are_not_joined(dataset, tmp_path):
    out = tmp_path / "h.jsonl"
    part("1/2", dataset, out)
    with pytest.raises(HypothesesError, match=r"2-of-2: written with .*'other'.*decode its shard again"):
        part("2/2", dataset, out, fingerprint="other")
    assert not out.exists()
    assert json.loads(out.with_name(".h.jsonl.1-of-2.meta.json").read_text())["fingerprint"] == "abc"
