import json
import sys

import pytest
from typer.testing import CliRunner

from ossicle.cli.main import app, main


def line(task, identifier, hypothesis, reference, **about):
    entry = {"id": identifier, "task": task, "language": "en", "hypothesis": hypothesis, "references": [reference]}
    return {**entry, **about}


def run_of(path, car, german, who):
    """One line of each task."""
    lines = [
        line("asr", "1", car, "the red car", speaker="anna"),
        line("asr", "2", "it is late", "it is late", speaker="ben"),
        line("st", "1", german, "das rote Auto ist alt", target_language="de", text="the red car is old"),
        line("qa", "1", who, "Anna", instruction="who saw it"),
    ]
    path.write_text("".join(json.dumps(entry) + "\n" for entry in lines))
    return path


@pytest.fixture
def files(tmp_path):
    return (
        run_of(tmp_path / "none.jsonl", "a red bar", "the red car is old", "ben"),
        run_of(tmp_path / "middle.jsonl", "the red bar", "das rote Auto ist", "anna saw"),
        run_of(tmp_path / "text.jsonl", "the red car", "das rote Auto ist alt", "anna"),
    )


def said(*arguments):
    command = ["score", *map(str, arguments)]
    return CliRunner().invoke(app, command, catch_exceptions=False, standalone_mode=False).stdout


@pytest.fixture
def fails(monkeypatch, capsys):
    """The message of a command that is expected to fail."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["ossicle", "score", *map(str, arguments)])
        monkeypatch.delenv("OSSICLE_DEBUG", raising=False)
        with pytest.raises(SystemExit):
            main()
        return " ".join(capsys.readouterr().err.replace("│", " ").split())

    return run


def test_one_file(files):
    text = " ".join(said(files[1]).split())
    assert "asr en 2 wer 16.67 0.00 – 33.33" in text  # 1 of 6 words; anna 1 of 3, ben 0 of 3
    assert "bootstrap over 2 speakers" in text
    assert "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp" in text
    assert "failures" not in text
    assert "failures, st en → de: untranslated 100.0%" in " ".join(said(files[0]).split())


def test_several_files_are_compared_with_the_first(files):
    found = json.loads(said(*files, "--json", "--resamples", "100"))
    assert set(found["runs"]) == set(map(str, files))
    assert list(found["differences"]) == [str(files[1]), str(files[2])]
    asr = found["differences"][str(files[2])][0]
    assert asr["metrics"]["wer"]["difference"] == pytest.approx(-100 * 2 / 6)
    assert asr["metrics"]["wer"]["interval"]["low"] == pytest.approx(-100 * 4 / 6)
    failures = {each["name"]: each for each in found["runs"][str(files[0])][2]["failures"]}
    assert failures["untranslated"]["examples"] == ["1"]
    text = " ".join(said(*files[:2]).split())
    assert f"{files[1]} minus {files[0]}" in text
    assert "wer -16.67" in text


def test_seeds(files):
    text = " ".join(said(*files, "--seeds").split())
    assert "over 3 seeds" in text
    assert "asr en wer 16.67 ± 16.67" in text  # 2, 1 and 0 errors of 6 words
    assert "minus" not in text


def test_normalised_average_by_name_and_by_file(files, fails):
    by_name = json.loads(said(*files, "--json", "--lower", "none", "--upper", "text"))["normalised"]
    middle = by_name[str(files[1])]
    assert middle["tasks"]["asr/wer"] == pytest.approx(50)
    assert middle["tasks"]["qa/f1"] == pytest.approx(200 / 3)  # 1 of 2 words said, 1 of 1 wanted
    assert middle["value"] == pytest.approx(sum(middle["tasks"].values()) / 3)
    by_file = json.loads(said(files[1], "--json", "--lower", files[0], "--upper", files[2]))["normalised"]
    assert by_file == {str(files[1]): middle}
    assert "normalised average" in said(files[1], "--lower", files[0], "--upper", files[2])
    assert "reference run 'nune' is neither a file nor one of none: give a path" in fails(
        files[0], "--lower", "nune", "--upper", files[2]
    )
    assert "needs both --lower and --upper" in fails(files[0], "--lower", "none")


def test_whisper_says_that_it_has_no_spelling_map(files, fails):
    assert "norm:whisper-english|spelling:none" in said(files[0], "--normalise", "whisper")
    assert "--spelling has an effect only with --normalise whisper" in fails(files[0], "--spelling", "x.json")


def test_comet_that_cannot_be_had(files, fails):
    message = fails(files[0], "--comet-command", "/nowhere/scorer")
    assert "No such file" in message
    assert "COMET runs in a separate environment" in message


def test_a_broken_line_is_named(files, fails):
    with files[0].open("a") as file:
        file.write('{"id": "3"}\n')
    assert f'{files[0]}:5: "hypothesis" must be a string' in fails(files[0])


@pytest.mark.parametrize("how", [[], ["--shard", "1/2"]])
def test_what_cannot_be_compared_is_named_before_files_are_scored(files, fails, monkeypatch, how):
    for reads in ("score.read_lines", "score_part.read_lines"):
        monkeypatch.setattr(f"ossicle.evaluate.{reads}", lambda *_: pytest.fail("a file was read"))
    missing, same = files[1].with_name("missing.jsonl"), files[1].parent / "." / ".." / files[1].parent.name
    assert "a file is given twice" in fails(files[1], same / files[1].name, *how)
    assert f"{missing}: no such file" in fails(files[1], missing, *how)
    assert "needs at least two runs" in fails(files[1], "--seeds", *how)
    assert "reference run 'nune' is neither" in fails(files[0], "--lower", "nune", "--upper", files[2], *how)


def test_the_scorers_of_the_papers_code(files):
    rows = json.loads(said(files[0], "--official", "--json"))["runs"][str(files[0])]
    [row] = [row for row in rows if row["task"] == "st"]
    assert set(row["scores"]) == {"bleu", "chrf", "official_bleu", "official_sacrebleu"}
    assert "norm:official" in said(files[0], "--normalise", "official")


def test_a_metric_that_fails_is_named_after_the_others(files, monkeypatch, capsys):
    def missing(**options):
        raise RuntimeError

    monkeypatch.setattr("ossicle.evaluate.metrics.BLEU", missing)
    monkeypatch.setattr(sys, "argv", ["ossicle", "score", str(files[1])])
    with pytest.raises(SystemExit) as caught:
        main()
    told = capsys.readouterr()
    assert caught.value.code == 1
    assert "chrf" in told.out
    assert "wer" in told.out
    assert "st en → de: no bleu: BLEU in the language 'de' needs a tokenizer" in " ".join(told.err.split())
    assert "This is a bug" not in told.err
