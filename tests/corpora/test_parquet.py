"""Tests of parquet tables with audio and of the MLS speaker descriptions."""

from pathlib import Path

import pytest
from miniatures import text, tone

from ossicle.corpora.mls_descriptions import INSTRUCTION

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def table(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def cell(tmp_path: Path, name: str, seconds: float = 1.0) -> dict:
    return {"bytes": tone(tmp_path / "cells" / name, seconds).read_bytes(), "path": name}


def test_audio_bytes_are_written_unchanged(tmp_path, prepared):
    rows = [
        {"id": "a/1", "audio": cell(tmp_path, "1.flac"), "sentence": "One.", "translation": "Eins.", "speaker_id": 7},
        {"id": "2", "audio": cell(tmp_path, "2.wav", 2.0), "sentence": "Two.", "translation": "Zwei.", "speaker_id": 8},
        {"id": "3", "audio": cell(tmp_path, "3.opus", 2.0), "sentence": "", "translation": "", "speaker_id": 8},
        {
            "id": "4",
            "audio": {"bytes": b"MZ...", "path": "4.exe"},
            "sentence": "Four",
            "translation": "",
            "speaker_id": 8,
        },
        {"id": "5", "audio": {"bytes": None, "path": None}, "sentence": "Five", "translation": "", "speaker_id": 8},
    ]
    table(tmp_path / "set/data/train-00000-of-00002.parquet", rows[:1])
    table(tmp_path / "set/data/train-00001-of-00002.parquet", rows[1:])
    table(tmp_path / "set/data/test-00000-of-00001.parquet", rows[:1])
    lines, report = prepared("parquet", tmp_path / "set", splits=("train",), targets=("de",), language="en")
    assert lines.keys() == {"train", "train.st-de", "dropped"}
    assert lines["train"][0] == {
        "id": "a/1",
        "audio": "audio/train/a_1.flac",
        "text": "One.",
        "language": "en",
        "speaker": "7",
        "task": "asr",
        "duration_s": 1.0,
    }
    assert lines["train.st-de"][1]["id"] == "2-de"
    assert lines["train.st-de"][1]["answer"] == "Zwei."
    assert (tmp_path / "out/audio/train/2.wav").read_bytes() == rows[1]["audio"]["bytes"]
    assert {name: reason.count for name, reason in report.dropped.items()} == {
        "no text for these tasks": 1,
        "audio cannot be used": 1,
        "no audio in the row": 1,
    }
    assert "4: is not WAV, FLAC, Ogg, MP3 or AIFF" in report.dropped["audio cannot be used"].first


def test_the_layout_of_the_papers_code(tmp_path, prepared):
    audio = cell(tmp_path, "1.wav", 3.0)
    row = {"audio": audio, "duration": 3.0, "question": "Who fell?\n<audio>", "answer": "rome"}
    table(tmp_path / "squad/spoken_squad_train.parquet", [row])
    lines, _ = prepared("parquet", tmp_path / "squad")
    assert lines == {
        "spoken_squad_train.qa": [
            {
                "id": "spoken_squad_train-00000000-qa",
                "audio": "audio/spoken_squad_train/spoken_squad_train-00000000.wav",
                "task": "qa",
                "instruction": "Who fell?",
                "answer": "rome",
                "duration_s": 3.0,
            }
        ]
    }


def test_columns_can_be_named_and_audio_can_be_a_path(tmp_path, prepared):
    tone(tmp_path / "set/clips/1.wav")
    table(tmp_path / "set/train.parquet", [{"sound": "clips/1.wav", "words": "Hello", "reply": "Hi", "ask": "Greet!"}])
    columns = {"audio": "sound", "text": "words", "answer": "reply", "instruction": "ask"}
    lines, _ = prepared("parquet", tmp_path / "set/train.parquet", columns=columns, tasks=("chat",))
    assert lines["train.chat"][0]["audio"] == str(tmp_path / "set/clips/1.wav")
    assert lines["train.chat"][0]["answer"] == "Hi"
    assert lines.keys() == {"train.chat"}


def test_an_invalid_table_or_unknown_columns_are_refused(tmp_path, refused):
    folder = tmp_path / "set"
    assert "there is no such file or folder" in refused("parquet", folder)
    text(folder / "a.txt", "")
    assert "set: contains no .parquet file; expected a parquet file" in refused("parquet", folder)
    path = table(folder / "train.parquet", [{"sound": b"", "text": "a"}])
    said = refused("parquet", folder)
    assert said == f"{path}: has no known audio column; name it: --column audio=COLUMN; the columns are sound, text"
    said = refused("parquet", folder, columns={"audio": "noise"})
    assert said == f"{path}: has no column 'noise' for audio; choose one of sound, text"
    assert "--column words=...: is not a field" in refused("parquet", folder, columns={"words": "text"})
    path.write_bytes(b"PAR2")
    assert "train.parquet: is not a parquet file" in refused("parquet", folder)


ATTRIBUTES = {
    "speaking_rate": "slightly slowly ",
    "gender": "female",
    "noise": "quite clear",
    "reverberation": "very roomy sounding",
    "speech_monotony": "slightly expressive",
    "sdr_noise": "almost no noise",
    "pesq_speech_quality": "great speech quality",
}


def place(begin_s: float) -> dict:
    return {"original_path": "sea_fairies_64kb", "begin_time": begin_s}


@pytest.fixture
def speech(tmp_path: Path) -> list[dict]:
    return [
        {"audio": cell(tmp_path, f"{i}.flac"), "transcript": f"line {i}", "speaker_id": "4800", **place(i * 10.5)}
        for i in range(3)
    ]


def test_descriptions_with_their_audio(tmp_path, prepared, speech):
    rows = [speech[0] | ATTRIBUTES, speech[1] | ATTRIBUTES | {"noise": None}]
    table(tmp_path / "mls/parquet_files/mls_test.parquet", rows)
    lines, report = prepared("mls-descriptions", tmp_path / "mls")
    assert lines["mls_test.meta"] == [
        {
            "id": "mls_test-00000000",
            "audio": "audio/mls_test/mls_test-00000000.flac",
            "text": "line 0",
            "language": "en",
            "speaker": "4800",
            "task": "meta",
            "instruction": INSTRUCTION,
            "duration_s": 1.0,
            "answer": "slightly slowly, female, quite clear, very roomy sounding, slightly expressive, "
            "almost no noise, great speech quality",
        }
    ]
    assert report.dropped["attribute missing"].first == "mls_test-00000001: noise"


def test_descriptions_are_joined_with_the_audio_of_mls_eng(tmp_path, prepared, speech):
    """The join uses the position in the recording: here the order differs, and one description is missing."""
    described = [ATTRIBUTES | place(10.5) | {"gender": "male"}, ATTRIBUTES | place(0.0)]
    table(tmp_path / "described/data/dev-00000-of-00001.parquet", described)
    table(tmp_path / "mls_eng/data/dev-00000-of-00001.parquet", speech)
    lines, report = prepared("mls-descriptions", tmp_path / "described", audio=str(tmp_path / "mls_eng"))
    assert [(line["text"], line["answer"].split(", ")[1]) for line in lines["dev.meta"]] == [
        ("line 0", "female"),
        ("line 1", "male"),
    ]
    assert report.dropped["no description"].first == "dev-00000002: sea_fairies_64kb 21.000"


def test_descriptions_broken(tmp_path, refused, speech):
    folder = tmp_path / "described"
    path = table(folder / "dev-00000-of-00001.parquet", [ATTRIBUTES | place(0.0)])
    assert "has no audio column; name the folder of mls_eng" in refused("mls-descriptions", folder)
    table(tmp_path / "mls_eng/test-00000-of-00001.parquet", speech)
    said = refused("mls-descriptions", folder, audio=str(tmp_path / "mls_eng"))
    assert said.endswith("mls_eng: has no parquet files of 'dev'; it has those of test")
    table(path, speech)
    assert "has no column 'speaking_rate'; expected parquet files with an audio column and speaking_rate" in refused(
        "mls-descriptions", folder
    )
