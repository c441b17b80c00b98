import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from ossicle.cli.main import app
from ossicle.corpora.stats import plain, stats
from ossicle.errors import ManifestError


def manifest(path: Path, *lines: dict) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture
def train(tmp_path: Path) -> Path:
    return manifest(
        tmp_path / "train.jsonl",
        {"id": "a", "audio": "a.wav", "text": "One two, three.", "language": "en", "speaker": "anna", "duration_s": 1.0,
         "task": "asr"},
        {"id": "b", "audio": "b.wav", "text": "one TWO three", "language": "en", "speaker": "bert", "duration_s": 3.0},
        {"id": "a", "audio": "long.wav", "start_s": 10, "end_s": 20, "text": "a b c d e", "language": "de"},
        {"id": "q1", "audio": "c.wav", "duration_s": 4.0, "task": "qa", "instruction": "who", "answer": "x"},
        {"id": "q2", "audio": "c.wav", "duration_s": 4.0, "task": "qa", "instruction": "what", "answer": "x"},
        {"id": "q3", "audio": "c.wav", "duration_s": 4.0, "task": "qa", "instruction": "what", "answer": "x"},
        {"id": "s", "audio": "c.wav", "duration_s": 4.0, "task": "st", "target_language": "de", "instruction": "t",
         "answer": "x"},
    )  # fmt: skip


@pytest.fixture
def test_split(tmp_path: Path) -> Path:
    return manifest(
        tmp_path / "test.jsonl",
        {"id": "t1", "audio": "long.wav", "start_s": 19.5, "end_s": 22.0, "speaker": "anna"},
        {"id": "t2", "audio": "long.wav", "start_s": 20.0, "end_s": 22.0, "speaker": "dora"},
        {"id": "t3", "audio": "d.wav", "duration_s": 200, "text": "One, two three!", "speaker": "anna"},
    )


def test_figures_by_hand(train):
    found = stats([train])["manifests"][str(train)]
    assert (found["lines"], found["recordings"], found["speech_s"]) == (7, 4, 18.0)
    assert found["duration_s"] == {
        "mean": 4.5, "0": 1.0, "5": 1.0, "25": 3.0, "50": 4.0, "75": 4.0, "95": 10.0, "100": 10.0,
    }  # fmt: skip
    assert {edge: count for edge, count in found["histogram_s"].items() if count} == {"1": 1, "2": 2, "10": 1}
    assert found["words_per_s"]["mean"] == pytest.approx((3 + 1 + 0.5) / 3)
    assert (found["slowest"], found["fastest"]) == ("a", "a")  # this id occurs twice
    assert found["languages"] == {"en": 2, "de": 1, "not given": 1}
    assert found["tasks"] == {"qa": 3, "not given": 2, "asr": 1, "st/de": 1}
    assert (found["speakers"], found["without_speaker"], found["without_text"]) == (2, 2, 1)
    assert found["duplicates"] == {
        "ids": {"count": 1, "first": "a"},
        "texts": {"count": 1, "first": "a"},
        "audio": {"count": 1, "first": "q2"},
    }


def test_leaks(train, test_split):
    train, test_split = str(train), str(test_split)
    assert stats([Path(train), Path(test_split)])["leaks"] == [
        {"what": "audio", "of": test_split, "in": train, "recordings": 1, "first": "t1"},  # t2 begins where a ends
        {"what": "text", "of": test_split, "in": train, "recordings": 1, "first": "t3"},
        {"what": "speaker", "of": test_split, "in": train, "recordings": 2, "first": "t1"},
    ]


def test_a_split_and_its_tasks_are_meant_to_share(train, test_split, tmp_path):
    tasks = [train.rename(tmp_path / "de.train.jsonl")]
    for kind in ("st-de", "st-zh-CN", "qa", "meta"):
        tasks.append(manifest(tmp_path / f"de.train.{kind}.jsonl", *map(json.loads, tasks[0].read_text().splitlines())))
    assert stats(tasks)["leaks"] == []
    found = stats([tasks[1], tasks[2], test_split])["leaks"]
    assert [(leak["what"], Path(leak["in"]).name) for leak in found] == [
        (what, tasks[i].name) for i in (1, 2) for what in ("audio", "text", "speaker")
    ]


def test_no_leaks(train, tmp_path):
    other = manifest(tmp_path / "dev.jsonl", {"id": "a", "audio": "z.wav", "duration_s": 1})
    found = stats([train, other])
    assert found["leaks"] == []
    assert found["manifests"][str(other)]["duplicates"]["ids"]["count"] == 0  # a is twice in train, not here
    assert found["manifests"][str(other)]["words_per_s"] == {}


def test_durations_that_are_not_stated_are_measured(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(8000), 16_000)
    path = manifest(tmp_path / "m.jsonl", {"id": "a", "audio": "a.wav"}, {"id": "b", "audio": "gone.wav"})
    found = stats([path])["manifests"][str(path)]
    assert (found["speech_s"], found["unreadable"], found["duration_s"]["100"]) == (0.5, 1, 0.5)


def test_the_same_file_by_another_path(tmp_path):
    (tmp_path / "lists").mkdir()
    one = manifest(tmp_path / "one.jsonl", {"id": "a", "audio": "a.wav", "duration_s": 1})
    two = manifest(tmp_path / "lists/two.jsonl", {"id": "b", "audio": "../a.wav", "duration_s": 1})
    assert [leak["what"] for leak in stats([one, two])["leaks"]] == ["audio"]


def test_the_same_text():
    assert plain("It's  ONE — two!") == "it's one two"
    assert plain("Über-Mut") == "über mut"


def test_a_wrong_line_is_named_and_a_manifest_given_twice_refused(train):
    with pytest.raises(ValueError, match="named twice"):
        stats([train, train])
    train.write_text(train.read_text() + '{"id": 1}\n')
    with pytest.raises(ManifestError, match=r'train\.jsonl:8: "id" is 1'):
        stats([train])


def test_the_command(train, test_split):
    shown = CliRunner().invoke(app, ["stats", str(train), str(test_split)], env={"COLUMNS": "120"})
    assert shown.exit_code == 0
    rows = [" ".join(line.split()) for line in shown.output.splitlines()]
    assert "seconds: 0, 50, 95, 100% 1.00, 4.00, 10.00, 10.00 2.00, 2.50, 200.00, 200.00" in rows
    assert "speakers 2 (2 without) 2" in rows
    assert f"150- 0 {'█' * 12} 1" in rows
    assert f"leak: 2 recordings of {test_split} share their speaker with {train} (first: t1)" in rows
    plain_json = CliRunner().invoke(app, ["stats", str(train), "--json"])
    assert json.loads(plain_json.output)["manifests"][str(train)]["lines"] == 7
