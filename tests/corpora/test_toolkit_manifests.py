"""Tests of the manifests of Lhotse, NeMo and SLAM-LLM."""

import gzip
import json
from pathlib import Path

import pytest
from miniatures import text, tone


def jsonl(path: Path, *entries: dict) -> Path:
    return text(path, "".join(json.dumps(entry) + "\n" for entry in entries))


def cut(name: str, *supervisions: tuple[float, float, str], start: float = 0.0, **recording: object) -> dict:
    return {
        "id": name,
        "start": start,
        "duration": 3.0,
        "channel": 0,
        "supervisions": [
            {"id": f"{name}-{i}", "recording_id": "rec", "start": begin, "duration": seconds, "channel": 0,
             "text": words, "language": "English", "speaker": "anna"}
            for i, (begin, seconds, words) in enumerate(supervisions)
        ],
        "recording": {
            "id": "rec",
            "sources": [{"type": "file", "channels": [0], "source": "audio/rec.wav"}],
            "sampling_rate": 16000,
            "num_samples": 80000,
            "duration": 5.0,
            "channel_ids": [0],
            **recording,
        },
        "type": "MonoCut",
    }  # fmt: skip


@pytest.fixture
def cuts(tmp_path: Path) -> Path:
    folder = tmp_path / "cuts"
    tone(folder / "audio/rec.wav", 5.0)
    return folder


def test_each_supervision_of_a_cut_is_an_utterance(cuts, prepared):
    entries = [
        cut("c1", (0.0, 1.0, "one"), (1.0, 4.0, "two"), (1.0, 2.0, "three"), start=1.5),  # the cut divides the second
        cut("c2", (0.0, 1.0, "")),
        cut("c3"),
        cut("c4", (0.0, 1.0, "x"), sources=[{"type": "file", "channels": [0, 1], "source": "audio/rec.wav"}]),
        cut("c5", (0.0, 1.0, "x"), sources=[{"type": "command", "channels": [0], "source": "cat"}]),
        cut("c6", (0.0, 1.0, "x"), transforms=[{"name": "Speed", "kwargs": {"factor": 1.1}}]),
        cut("c7", (0.0, 1.0, "x")) | {"recording": None},
        {"id": "m1", "type": "MixedCut", "tracks": []},
    ]
    with gzip.open(cuts / "train.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(entry) + "\n" for entry in entries)
    lines, report = prepared("lhotse", cuts, language="en")
    assert lines["train"] == [
        {"id": "c1-0", "audio": str(cuts / "audio/rec.wav"), "text": "one", "language": "en", "speaker": "anna",
         "task": "asr", "duration_s": 1.0, "start_s": 1.5, "end_s": 2.5},
        {"id": "c1-2", "audio": str(cuts / "audio/rec.wav"), "text": "three", "language": "en", "speaker": "anna",
         "task": "asr", "duration_s": 2.0, "start_s": 2.5, "end_s": 4.5},
    ]  # fmt: skip
    assert {name: reason.count for name, reason in report.dropped.items()} == {
        "supervision that its cut divides": 1,
        "no transcript": 1,
        "cut without a supervision": 1,
        "recording with several channels": 1,
        "recording from command, not from one file": 1,
        "recording with transforms": 1,
        "cut without a recording": 1,
        "MixedCut, not a MonoCut": 1,
    }


def test_cuts_broken(cuts, refused):
    assert "cuts: contains no .jsonl or .jsonl.gz file; expected cuts.jsonl" in refused("lhotse", cuts)
    jsonl(cuts / "a.jsonl", {"id": "x", "text": "y", "recording": {}})
    assert "a.jsonl:1: is not a cut (KeyError('sources'))" in refused("lhotse", cuts / "a.jsonl")
    text(cuts / "a.jsonl", "{}\n{\n")
    assert "a.jsonl:1: is not a cut (KeyError('id'))" in refused("lhotse", cuts)
    (cuts / "a.jsonl").unlink()
    (cuts / "b.jsonl.gz").write_bytes(gzip.compress(json.dumps(cut("c")).encode() * 100)[:-20])
    assert "b.jsonl.gz: is damaged" in refused("lhotse", cuts)


def test_nemo(tmp_path, prepared):
    tone(tmp_path / "nemo/wav/a.wav", 2.0)
    jsonl(
        tmp_path / "nemo/train.json",
        {"audio_filepath": "wav/a.wav", "duration": 2.0, "text": "whole"},
        {"audio_filepath": "wav/a.wav", "duration": 0.5, "offset": 1.0, "text": "part", "lang": "en"},
        {"audio_filepath": "wav/a.wav", "duration": 0.5, "offset": 1.5, "text": "Teil", "source_lang": "en",
         "target_lang": "de"},
        {"audio_filepath": "wav/a.wav", "duration": 5.0, "text": "longer than the file"},
    )  # fmt: skip
    lines, report = prepared("jsonl", tmp_path / "nemo")
    wav = str(tmp_path / "nemo/wav/a.wav")
    assert lines["train"] == [
        {"id": "wav/a", "audio": wav, "text": "whole", "task": "asr", "duration_s": 2.0},
        {"id": "wav/a-1", "audio": wav, "text": "part", "language": "en", "task": "asr", "duration_s": 0.5,
         "start_s": 1.0, "end_s": 1.5},
    ]  # fmt: skip
    assert [(line["id"], line["answer"]) for line in lines["train.st-de"]] == [("wav/a-1.5-de", "Teil")]
    assert report.dropped["duration differs from the stated one"].first.endswith(
        "lasts 2.00 s, the corpus states 5.00 s"
    )


def test_paths_from_the_working_directory(tmp_path, prepared, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tone(tmp_path / "data/a.wav")
    jsonl(tmp_path / "lists/train.jsonl", {"audio_filepath": "data/a.wav", "text": "x"})
    assert prepared("jsonl", tmp_path / "lists")[0]["train"][0]["audio"] == str(tmp_path / "data/a.wav")


def test_slam_llm(tmp_path, prepared):
    wav = str(tone(tmp_path / "a.wav"))
    jsonl(
        tmp_path / "slam.jsonl",
        {"key": "k1", "source": wav, "target": "HELLO"},
        {"key": "k2", "path": wav, "task": "ASR", "prompt": "Transcribe.", "target": "Yes."},
        {"key": "k3", "path": wav, "task": "intent", "prompt": "What is wanted?", "target": "news"},
        {"key": "k4", "path": wav, "task": "intent", "target": "news"},
    )
    lines, _ = prepared("jsonl", tmp_path / "slam.jsonl", lower=True)
    assert [(line["id"], line["text"], line["task"]) for line in lines["slam"]] == [
        ("k1", "hello", "asr"),
        ("k2", "yes.", "asr"),
    ]
    assert [(line["id"], line["instruction"], line["answer"]) for line in lines["slam.qa"]] == [
        ("k3-qa", "What is wanted?", "news")
    ]
    assert [line["id"] for line in lines["dropped"]] == ["k4"]


def test_other_names_of_fields(tmp_path, prepared):
    tone(tmp_path / "a.wav")
    jsonl(tmp_path / "own.jsonl", {"file": "a.wav", "says": "hello"})
    lines, _ = prepared("jsonl", tmp_path / "own.jsonl", columns={"audio": "file", "text": "says"})
    assert lines["own"][0]["text"] == "hello"


def test_manifests_broken(tmp_path, refused):
    path = jsonl(tmp_path / "a.jsonl", {"words": "x"})
    assert "a.jsonl:1: names no audio file (audio_filepath, source, ...);" in refused("jsonl", path)
    text(path, "not json\n")
    assert "a.jsonl:1: is not JSON" in refused("jsonl", path)
    text(path, "[1]\n")
    assert "a.jsonl:1: is not a JSON object; expected a .jsonl" in refused("jsonl", path)
    jsonl(path, {"audio_filepath": "a.wav", "text": "x", "duration": "long"})
    assert "a.jsonl:1: could not convert string to float: 'long'; write duration" in refused("jsonl", path)
    path.unlink()
    assert "contains no .jsonl or .json file" in refused("jsonl", tmp_path)
