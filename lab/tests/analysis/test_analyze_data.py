from dataclasses import replace
from pathlib import Path

import pytest

from ossicle.batch import Sample
from ossicle.data.manifest import write_manifest
from ossicle.errors import ManifestError
from ossicle_lab.analysis.analyze_data import choose


def line(number, **fields):
    return Sample(id=f"u{number}", audio=Path(f"/audio/{number}.wav"), **{"text": f"sentence {number}", **fields})


@pytest.fixture
def manifest(tmp_path):
    """Twenty recordings, one of them asked about twice, one without a transcript."""
    lines = [line(i) for i in range(20)]
    lines += [replace(lines[3], id="u3-qa", task="qa", instruction="who", answers=("anna",)), line(20, text=None)]
    path = tmp_path / "manifest.jsonl"
    write_manifest(path, lines)
    return path


def test_each_recording_once_in_random_order(manifest):
    chosen = choose(manifest, limit=100)
    ids = [sample.id for sample in chosen.samples]
    assert sorted(ids) == sorted(f"u{i}" for i in range(20))
    assert ids != sorted(ids)
    assert chosen.shown == ["u0", "u1", "u2"]
    assert chosen.left_out == {"without transcript": 1, "same recording again": 1, "beyond the limit": 0}


def test_the_draw_is_seeded_and_bounded(manifest):
    first, again, other = (choose(manifest, limit=8, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first.samples != other.samples
    assert len(first.samples) == 8
    assert first.left_out["beyond the limit"] == 12
    numbers = [int(name[1:]) for name in first.shown]
    assert numbers == sorted(int(sample.id[1:]) for sample in first.samples)[:3]


def test_what_is_to_be_shown_is_there(manifest):
    chosen = choose(manifest, limit=2, show=["u19", "u3-qa"])
    assert {sample.id for sample in chosen.samples} == {"u19", "u3-qa"}
    assert chosen.shown == ["u19", "u3-qa"]


def test_mistakes_are_named(manifest, tmp_path):
    with pytest.raises(ManifestError, match=r"manifest\.jsonl: no utterance 'u33' to show; did you mean 'u3'"):
        choose(manifest, limit=5, show=["u33"])
    with pytest.raises(ManifestError, match=r"manifest\.jsonl:22: 'u20' has no \"text\""):
        choose(manifest, limit=5, show=["u20"])
    path = tmp_path / "one.jsonl"
    write_manifest(path, [line(0), line(1, text="sentence 0")])
    with pytest.raises(ManifestError, match="at least two different transcripts"):
        choose(path, limit=5)
