import json
from pathlib import Path

import numpy as np
import pytest
from miniatures import text, tone

from ossicle.audio import read_audio


def question(name: str, asked: str, *answers: str) -> dict:
    return {"id": name, "question": asked, "answers": [{"text": answer, "answer_start": 0} for answer in answers]}


@pytest.fixture
def squad(tmp_path: Path) -> Path:
    """Two articles with three passages: two sentences, no questions, one sentence."""
    root = tmp_path / "squad"
    first = {
        "context": "the cat sat.  it slept.",
        "qas": [
            question("q1", " Who sat? ", "the cat", "the cat", "cat"),
            question("q2", "What did it do?", "slept"),
        ],
    }
    silent = {"context": "nothing here", "qas": []}
    second = {"context": "rome fell", "qas": [question("q3", "What fell?", "rome")]}
    data = [{"title": "Cats", "paragraphs": [first, silent]}, {"title": "Rome", "paragraphs": [second]}]
    text(root / "spoken_test-v1.1.json", json.dumps({"version": "1.1", "data": data}))
    tone(root / "dev_wav/0_0_0.wav", 1.0, 24_000, hz=300)
    tone(root / "dev_wav/0_0_1.wav", 0.5, 24_000, hz=900)
    tone(root / "dev_wav/0_1_0.wav", 1.0)
    tone(root / "dev_wav/1_0_0.wav", 2.0)
    return root


def test_sentences_are_joined_and_every_question_is_a_line(squad, prepared, tmp_path):
    lines, report = prepared("spoken-squad", squad)
    assert lines.keys() == {"test.qa", "dropped"}
    assert lines["test.qa"][0] == {
        "id": "q1",
        "audio": "audio/test/0_0.flac",
        "text": "the cat sat. it slept.",
        "language": "en",
        "task": "qa",
        "instruction": "Who sat?",
        "duration_s": 1.5,
        "answers": ["the cat", "cat"],
        "passage": "test-0_0",
    }
    assert [(line["id"], line["audio"]) for line in lines["test.qa"][1:]] == [
        ("q2", "audio/test/0_0.flac"),
        ("q3", "audio/test/1_0.flac"),
    ]
    assert lines["dropped"] == [{"id": "test-0_1", "reason": "passage without a question", "detail": ""}]
    count = report.manifests["test.qa"]
    assert (count.lines, count.recordings, count.speech_s) == (3, 2, 3.5)  # a passage counts once
    waveform = read_audio(tmp_path / "out/audio/test/0_0.flac")
    assert len(waveform) == 24_000
    for part, hz in ((waveform[2000:14_000], 300), (waveform[17_000:23_000], 900)):
        spectrum = np.abs(np.fft.rfft(part))
        assert np.argmax(spectrum) * 16_000 / len(part) == pytest.approx(hz, abs=2)
    assert not list((tmp_path / "out/audio/test").glob(".*"))


def test_a_passage_with_a_hole_or_a_broken_sentence_is_left_out(squad, prepared):
    tone(squad / "dev_wav/0_0_3.wav")
    (squad / "dev_wav/1_0_0.wav").write_bytes(b"")
    tone(squad / "dev_wav/1_1_0.wav")
    article = json.loads((squad / "spoken_test-v1.1.json").read_text())
    article["data"][1]["paragraphs"].append({"context": "a", "qas": [question("q4", "b", "c")]})
    text(squad / "spoken_test-v1.1.json", json.dumps(article))
    lines, report = prepared("spoken-squad", squad)
    assert [line["id"] for line in lines["test.qa"]] == ["q4"]
    assert report.dropped["passage with a sentence missing"].first.endswith("dev_wav: no file for sentence 2")
    assert "1_0_0.wav: the file is empty" in report.dropped["audio cannot be used"].first


def test_the_folders_may_be_where_the_archive_puts_them(squad, prepared):
    (squad / "Spoken-SQuAD_audio").mkdir()
    (squad / "dev_wav").rename(squad / "Spoken-SQuAD_audio/dev_wav")
    assert len(prepared("spoken-squad", squad)[0]["test.qa"]) == 3


def test_another_layout_is_refused(squad, refused, tmp_path):
    said = refused("spoken-squad", squad, splits=("train",))
    assert said == f"{squad}: has no split 'train'; choose from test"
    (squad / "dev_wav").rename(squad / "wav")
    assert "dev_wav: there is no such folder; expected spoken_train-v1.1.json with train_wav/" in refused(
        "spoken-squad", squad
    )
    (squad / "dev_wav").mkdir()
    assert "dev_wav: contains no file such as 0_0_0.wav" in refused("spoken-squad", squad)
    tone(squad / "dev_wav/0_0_0.wav")
    text(squad / "spoken_test-v1.1.json", '{"data": [{"paragraphs": [{"qas": [1]}]}]}')
    assert "spoken_test-v1.1.json: passage test-0_0: does not have the layout of SQuAD" in refused(
        "spoken-squad", squad
    )
    assert "has no spoken_train-v1.1.json or spoken_test-v1.1.json" in refused("spoken-squad", tmp_path)
