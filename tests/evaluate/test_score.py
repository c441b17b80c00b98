import io
import json

import pytest
from rich.console import Console

from ossicle.errors import HypothesesError
from ossicle.evaluate.hypotheses import Hypothesis, read_hypotheses
from ossicle.evaluate.score import ScoreOptions, check_metrics, score, write_scores
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
        ({"id": "9\ud83d", "hypothesis": "a", "references": ["a"]}, '"id" has half of a surrogate pair'),
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


def test_a_metric_that_fails_hides_no_other(path, monkeypatch):
    def fails(**options):
        raise RuntimeError("no tokenizer")

    monkeypatch.setattr("ossicle.evaluate.metrics.BLEU", fails)
    rows = score(path)
    assert [sorted(row.scores) for row in rows] == [
        ["cer", "wer", "wer_utterance_mean"],
        ["em", "f1"],
        ["chrf"],
        ["chrf"],
    ]
    assert rows[2].errors["bleu"].startswith("BLEU in the language 'de' needs a tokenizer that is not installed")
    assert [bool(row.errors) for row in rows] == [False, False, True, True]
    [warning] = check_metrics([("st", "en", "ko"), ("st", "en", "ko"), ("qa", "en", "ko")])
    assert "task st will have no BLEU" in warning
    assert "pip install 'sacrebleu[ko]'" in warning


def test_a_bug_in_a_metric_hides_no_other(path, monkeypatch):
    monkeypatch.setattr("ossicle.evaluate.metrics.chrf_parts", lambda *_: 1 / 0)
    rows = score(path)
    assert rows[3].scores == {"bleu": 100}
    assert rows[3].errors == {"chrf": "ZeroDivisionError: division by zero"}


def test_tags_of_one_language_are_one_row(tmp_path):
    tags = [("en", "zh-CN"), ("EN", "zh_cn"), ("eng", "cmn-CN"), ("en", "zh-TW")]
    lines = [
        {"id": str(i), "task": "st", "language": spoken, "target_language": target, "hypothesis": "你好世界"}
        for i, (spoken, target) in enumerate(tags)
    ]
    rows = score(write(tmp_path / "h.jsonl", [{**line, "references": ["你好世界"]} for line in lines]))
    assert [(row.language, row.target_language, row.n) for row in rows] == [("en", "zh-CN", 3), ("en", "zh-TW", 1)]
    assert [row.scores["bleu"] for row in rows] == [100, 100]


def test_half_a_surrogate_pair_can_be_read_scored_and_written(tmp_path):
    line = '{"id":"0","hypothesis":"hi \\ud83d","references":["hi"],"language":"en"}'
    path = write(tmp_path / "h.jsonl", [line])
    assert score(path)[0].scores["wer"] == 0
    write_scores(path)
    [read] = read_hypotheses(path)
    read.to_json().encode()
    assert json.loads(read.to_json())["hypothesis"] == "hi \ud83d"


@pytest.mark.parametrize("line", ['{"id": ' + "9" * 5000 + "}", "[" * 100_000])
def test_numbers_and_nesting_beyond_all_limits_are_named(tmp_path, line):
    path = tmp_path / "h.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(HypothesesError, match=r"h\.jsonl:1: "):
        score(path)


def test_references_can_be_read_afresh_from_a_manifest(tmp_path):
    from ossicle.batch import Sample
    from ossicle.data.manifest import write_manifest
    from ossicle.evaluate.inputs import input_hashes

    (tmp_path / "a.wav").write_bytes(b"some audio")
    sample = Sample(id="1", audio=tmp_path / "a.wav", text="the red car", language="en")
    line = {"id": "1", "hypothesis": "the red car", "references": ["the read car"], "language": "en"}
    path = write(tmp_path / "h.jsonl", [{**line, "input_hash": input_hashes([sample])[0]}])
    manifest = tmp_path / "m.jsonl"
    write_manifest(manifest, [sample])
    assert score(path)[0].scores["wer"] == pytest.approx(100 / 3)
    assert score(path, ScoreOptions(manifests=(manifest,)))[0].scores["wer"] == 0
    (tmp_path / "a.wav").write_bytes(b"other audio")
    with pytest.raises(HypothesesError, match=r"h\.jsonl:1: '1' answers other audio than that of .*m\.jsonl:1"):
        score(path, ScoreOptions(manifests=(manifest,)))
    write_manifest(manifest, [])
    with pytest.raises(HypothesesError, match=r"h\.jsonl:1: '1' .* is not in "):
        score(path, ScoreOptions(manifests=(manifest,)))


def test_names_of_tasks_have_no_case(tmp_path):
    lines = [
        {"id": str(i), "task": task, "language": "en", "hypothesis": "a cat", "references": ["the cat"]}
        for i, task in enumerate(["ASR", "asr", None, " Asr"])
    ]
    [row] = score(write(tmp_path / "h.jsonl", lines))
    assert (row.task, row.n, row.scores["wer"]) == ("asr", 4, 50)


def test_markup_in_names_is_text(tmp_path):
    line = {"id": "1", "task": "[/bold] x", "language": "[red]", "hypothesis": "a", "references": ["a"]}
    text = io.StringIO()
    print_table(score(write(tmp_path / "h.jsonl", [line])), Console(file=text, width=140))
    assert "[/bold] x" in text.getvalue()
    assert "[red]" in text.getvalue()
