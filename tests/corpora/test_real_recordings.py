"""Prepare real recordings of LibriSpeech in the layout of the corpus."""

import json

import pytest
from miniatures import text

from places import SHARED

REAL = SHARED / "data/real_speech/librispeech_test_other"


@pytest.mark.skipif(not REAL.is_dir(), reason=f"{REAL} is not there")
def test_real_recordings(tmp_path, prepared):
    entries = [json.loads(line) for line in (REAL / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(entries) == 68
    expected = {}
    for number, entry in enumerate(entries):
        name = f"{entry['speaker']}-1-{number:04d}"
        chapter = tmp_path / "LibriSpeech/test-other" / str(entry["speaker"]) / "1"
        chapter.mkdir(parents=True, exist_ok=True)
        (chapter / f"{name}.flac").symlink_to(REAL / entry["audio"])
        with (chapter / f"{entry['speaker']}-1.trans.txt").open("a", encoding="utf-8") as file:
            file.write(f"{name} {entry['text'].upper()}\n")
        expected[name] = (entry["text"], pytest.approx(entry["duration_s"], abs=0.01))
    text(tmp_path / "LibriSpeech/README.TXT", "")
    lines, report = prepared("librispeech", tmp_path / "LibriSpeech", lower=True)
    assert {line["id"]: (line["text"], line["duration_s"]) for line in lines["test-other"]} == expected
    assert report.dropped == {}
