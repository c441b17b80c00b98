"""The table of what a checkpoint hears in a folder of recordings."""

from dataclasses import replace

from ossicle.data.manifest import read_manifest, write_manifest
from ossicle.testing import tiny_manifest
from ossicle_lab.real.samples import transcribe


def test_english_recordings_of_moderate_length_are_in_the_table(model, tmp_path):
    samples = read_manifest(tiny_manifest(tmp_path / "in", 4))
    other, long, *kept = samples
    changed = [replace(other, language="de"), replace(long, duration_s=31.0), *kept]
    write_manifest(tmp_path / "in" / "manifest.jsonl", changed)
    model.save(tmp_path / "run")

    lines = transcribe(tmp_path / "in", tmp_path / "out", tmp_path / "run")

    assert lines[:2] == ["| said | heard | WER |", "|---|---|---|"]
    assert [line.split(" | ")[0] for line in lines[2:]] == [f"| {sample.text}" for sample in kept]
    assert lines == transcribe(tmp_path / "in", tmp_path / "out", tmp_path / "run")
