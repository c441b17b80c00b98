import io
import json

import pytest
from rich.console import Console

from ossicle.errors import HypothesesError
from ossicle.evaluate.hypotheses import Hypothesis, read_hypotheses
from ossicle.evaluate.score import score, write_scores
from ossicle.evaluate.tables import print_table

LINES = [
    {"id": "1", "task": "asr", "language": "en", "hypothesis": "the car", "references": ["The car."]},
    {"id": "2", "language": "en", "hypothesis": "a red", "references": ["a red dog sat"]},
    {"id": "1", "task": "st", "language": "en", "target_language": "de", "hypothesis": "x", "references": ["das Auto"]},
    {
        "id": "1",
        "task": "st",
        "language": "en",
        "target_language": "es",
        "hypothesis": "el coche rojo de ana",
        "references": ["el coche rojo de ana"],
    },
    {
        "id": "1",
        "task": "qa",
        "language": "en",
        "target_language": "en",
        "instruction": "what did anna see",
        "hypothesis": "a car",
        "references": ["auto", "the car"],
    },
    {
        "id": "1",
        "task": "qa",
        "language": "en",
        "instruction": "who saw it",
        "hypothesis": "ben",
        "references": ["anna"],
    },
]


def write(path, lines):
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


@pytest.fixture
def path(tmp_path):
    return write(tmp_path / "hypotheses.jsonl", LINES)


def test_every_task_and_language_gets_its_own_row(path):
    rows = score(path)
    assert [(row.task, row.language, row.target_language, row.n) for row in rows] == [
        ("asr", "en", "en", 2),
        ("qa", "en", "en", 2),
        ("st", "en", "de", 1),
        ("st", "en", "es", 1),
    ]
    asr, qa, german, spanish = (row.scores for row in rows)
    assert asr["wer"] == pytest.approx(100 * 2 / 6)
    assert asr["wer_utterance_mean"] == 25
    assert asr["cer"] == pytest.approx(100 * 8 / 20)
    assert qa == {"em": 50, "f1": 50}
    assert german["bleu"] == 0
    assert spanish == {"bleu": 100, "chrf": 100}
    assert "tok:13a" in rows[2].signatures["bleu"]


def test_scores_are_written_beside_the_hypotheses(path):
    written = write_scores(path)
    assert written == path.with_name("hypotheses.scores.json")
    content = json.loads(written.read_text())
    assert content["hypotheses"] == "hypotheses.jsonl"
    assert content["rows"][1]["scores"] == {"em": 50, "f1": 50}
    assert content["rows"][1]["signatures"]["f1"]


def test_table(path):
    text = io.StringIO()
    print_table(score(path), Console(file=text, width=140))
    assert "en → de" in text.getvalue()
    assert "33.33" in text.getvalue()
    assert text.getvalue().count("tok:13a") == 1


def test_a_line_survives_writing_and_reading(tmp_path):
    hypothesis = Hypothesis(id="ü", task="qa", hypothesis="größer\u2028“ja”\n", references=("a", "b"), audio="x.wav")
    path = write(tmp_path / "h.jsonl", [hypothesis.to_json(), "", "  "])
    [read] = read_hypotheses(path)
    assert read.source == f"{path}:1"
    assert read.to_json() == hypothesis.to_json()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{oops", "not JSON"),
        ("[1]", "JSON object"),
        ({"hypothesis": "a", "references": ["a"]}, '"id" must be a string'),
        ({"id": "9", "hypothesis": None, "references": ["a"]}, '"hypothesis" must be a string'),
        ({"id": "9", "hypothesis": "a", "references": "a"}, '"references" must be a list of strings'),
        ({"id": "9", "hypothesis": "a", "references": ["a", 1]}, '"references" must be a list of strings'),
        ({"id": "9", "hypothesis": "a", "references": ["a"], "task": 3}, '"task" must be a string or null'),
        ({"id": "9", "hypothesis": "a", "references": []}, "no references"),
        (LINES[0], "on line 1 already"),
    ],
)
def test_a_malformed_line_is_named(tmp_path, line, message):
    path = write(tmp_path / "hypotheses.jsonl", [LINES[0], line])
    with pytest.raises(HypothesesError, match=message) as error:
        score(path)
    assert str(error.value).startswith(f"{path}:2: ")


def test_bytes_that_are_no_text_are_named(tmp_path):
    path = tmp_path / "hypotheses.jsonl"
    path.write_bytes(b'{"id": "\xff"}\n')
    with pytest.raises(HypothesesError, match=r"hypotheses\.jsonl:1: not JSON"):
        score(path)


def test_missing_and_empty_files(tmp_path):
    with pytest.raises(HypothesesError, match="no such file"):
        score(tmp_path / "none.jsonl")
    with pytest.raises(HypothesesError, match="no hypotheses"):
        score(write(tmp_path / "empty.jsonl", [""]))
