"""A manifest that is aligned in parts gives the file of one call."""

from dataclasses import replace
from pathlib import Path

import pytest

from ossicle.align.aligner import Alignment
from ossicle.align.files import align_manifest
from ossicle.batch import Skipped
from ossicle.data.manifest import read_manifest, write_manifest
from ossicle.data.words import WordTime
from ossicle.shards import Shard


class Neighbour:
    """An aligner whose times depend on the whole batch, as the last digits of a model's values do."""

    source = "neighbour"

    def __init__(self, dies_at: int | None = None) -> None:
        self.batches: list[list[str]] = []
        self.dies_at = dies_at

    def align(self, utterances):
        if len(self.batches) == self.dies_at:
            raise KeyboardInterrupt
        self.batches.append([one.sample.id for one in utterances])
        shift = sum(one.duration_s for one in utterances) / 1e3
        return [
            Skipped(one.sample, "no")
            if one.sample.text == "wrong"
            else Alignment((WordTime(one.sample.text, shift, shift + 0.1234567),), -shift)
            for one in utterances
        ]


@pytest.fixture
def source(manifest: Path, tmp_path: Path) -> Path:
    samples = read_manifest(manifest)
    samples = [*samples, replace(samples[0], id="twin"), replace(samples[2], id="bad", text="wrong")]
    write_manifest(tmp_path / "in" / "m.jsonl", samples)
    return tmp_path / "in" / "m.jsonl"


def run(source: Path, out: Path, shard: str | None = None, aligner: Neighbour | None = None):
    part = None if shard is None else Shard.parse(shard)
    return align_manifest(source, out, aligner or Neighbour(), batch_size=2, skip_broken=True, shard=part)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_parts_give_the_bytes_of_one_call(source, tmp_path, count):
    whole = run(source, tmp_path / "whole.jsonl")
    out = tmp_path / "parts" / "out.jsonl"
    for number in range(1, count + 1):
        report = run(source, out, f"{number}/{count}")
        assert bool(report.waiting) == (number < count) == (not out.exists())
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert [one.id for one in report.samples] == [one.id for one in whole.samples]
    assert "bad" not in {one.id for one in report.samples}
    assert {path.name for path in out.parent.iterdir()} <= {"out.jsonl", ".out.jsonl.join.lock"}
    if count > 1:
        assert run(source, tmp_path / "x.jsonl", "1/2").summary().endswith("shard 1/2 is finished; 1 of 2 are not: 2")


def test_an_interrupted_part_continues_with_whole_batches(source, tmp_path):
    run(source, tmp_path / "whole.jsonl")
    out = tmp_path / "out.jsonl"
    stopped, again, finished = Neighbour(dies_at=2), Neighbour(), Neighbour()
    with pytest.raises(KeyboardInterrupt):
        run(source, out, "1/2", stopped)
    run(source, out, "1/2", again)
    assert [batch for batch in again.batches if batch in stopped.batches] == [["0-0", "bad"]]  # could not be aligned
    assert len(stopped.batches) == 2
    run(source, out, "1/2", finished)
    assert all("bad" in batch for batch in finished.batches)  # only what could not be aligned is tried again
    run(source, out, "2/2")
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
