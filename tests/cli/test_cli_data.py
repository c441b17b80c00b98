"""The commands of `ossicle.cli.data`, called as a user calls them."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import typer
from typer.testing import CliRunner

from ossicle.cli.main import app
from ossicle.corpora import CORPORA
from ossicle.data.manifest import read_manifest


def run(*arguments: object) -> str:
    result = CliRunner().invoke(
        app, [str(a) for a in arguments], catch_exceptions=False, standalone_mode=False, env={"COLUMNS": "120"}
    )
    return result.stdout


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    folder = tmp_path / "mine"
    folder.mkdir()
    for name, seconds in (("a", 1.0), ("b", 2.0), ("c", 50.0)):
        soundfile.write(folder / f"{name}.wav", np.zeros(round(16_000 * seconds)), 16_000)
        (folder / f"{name}.txt").write_text(f"Text {name.upper()}")
    return folder


def test_help_names_every_corpus_without_importing_torch():
    program = (
        "import sys; from typer.testing import CliRunner; from ossicle.cli.main import app\n"
        "result = CliRunner().invoke(app, ['prepare', '--help'])\n"
        "assert result.exit_code == 0, result.output\n"
        "print([name for name in ('torch', 'numpy', 'pyarrow') if name in sys.modules])\n"
        "print(result.output)"
    )
    env = {"COLUMNS": "80", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=env)
    said = done.stdout
    assert said.startswith("[]\n")
    lines = [line.strip() for line in said.splitlines()]
    for name, corpus in CORPORA.items():
        assert f"{name:<16}  {corpus.help}" in lines


def test_prepare(recordings, tmp_path):
    said = run("prepare", "folder", recordings, tmp_path / "out", "--language", "en", "--lower", "--max-duration", 45)
    lines = [json.loads(line) for line in (tmp_path / "out/speech.jsonl").read_text().splitlines()]
    assert [(line["text"], line["duration_s"], line["language"]) for line in lines] == [
        ("text a", 1.0, "en"),
        ("text b", 2.0, "en"),
    ]
    assert ["speech.jsonl", "2", "2", "0.00"] in [line.split() for line in said.splitlines()]
    assert "left out, too long: 1 (first: c: " in said
    assert "was prepared before" in run(
        "prepare", "folder", recordings, tmp_path / "out", "--language", "en", "--lower", "--max-duration", 45
    )


def test_relative_paths_count_from_the_working_directory(recordings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run("prepare", "folder", "mine", "out")
    run("prepare", "folder", "mine", "mine")  # below the manifest: relative to it
    outside, below = (read_manifest(Path(folder) / "speech.jsonl")[0].audio for folder in ("out", "mine"))
    assert outside == recordings / "a.wav"
    assert below == Path("mine/a.wav")


def test_prepare_options_that_are_wrong(recordings, tmp_path):
    with pytest.raises(ValueError, match="the corpus folder has no option --target; its own options: --language"):
        run("prepare", "folder", recordings, tmp_path / "out", "--target", "de")
    with pytest.raises(typer.BadParameter, match="--column text: write FIELD=COLUMN"):
        run("prepare", "jsonl", recordings, tmp_path / "out", "--column", "text")


@pytest.mark.parametrize(
    ("command", "option", "values"),
    [
        ("prepare jsonl a b", "--jobs", (0, -1)),
        ("prepare jsonl a b", "--min-duration", (-1,)),
        ("prepare jsonl a b", "--max-duration", (-0.5,)),
        ("prepare-tts a b", "--jobs", (0, -2)),
        ("prepare-tts a b", "--limit", (0, -1)),
        ("align a --out b", "--batch-size", (0, -3)),
    ],
)
def test_numbers_that_no_work_can_be_done_with_are_refused(command, option, values):
    """``align --batch-size -3`` ended without an error and without word times."""
    for value in values:
        with pytest.raises(typer.BadParameter, match=r"greater than or equal|not in the range"):
            run(*command.split(), option, value)


def test_prepare_tts_then_stats(tmp_path):
    pytest.importorskip("espeakng_loader")
    texts = tmp_path / "pairs.jsonl"
    texts.write_text('{"id": "1", "en": "Two words.", "de": "Zwei."}\n{"id": "2", "en": "One.", "de": "Eins."}\n')
    run("prepare-tts", texts, tmp_path / "out", "--limit", 1, "--voices", "test")
    found = json.loads(run("stats", tmp_path / "out/pairs.jsonl", tmp_path / "out/pairs.st-de.jsonl", "--json"))
    assert [figures["lines"] for figures in found["manifests"].values()] == [1, 1]
    assert found["leaks"] == []


def test_spoken_texts_train_and_are_scored(tmp_path, recipe):
    """asr, st and qa of one text corpus, in one run of stage 2."""
    pytest.importorskip("espeakng_loader")
    pairs, questions = tmp_path / "pairs.jsonl", tmp_path / "questions.jsonl"
    pairs.write_text("".join(f'{{"id": "{i}", "en": "Number {i}.", "de": "Nummer {i}."}}\n' for i in range(4)))
    questions.write_text('{"id": "q", "context": "Rome fell.", "question": "What fell?", "answers": ["Rome"]}\n')
    run("prepare-tts", pairs, tmp_path / "spoken")
    run("prepare-tts", questions, tmp_path / "asked")
    manifests = [
        tmp_path / path for path in ("spoken/pairs.jsonl", "spoken/pairs.st-de.jsonl", "asked/questions.qa.jsonl")
    ]
    stage1 = recipe(data={"train": [str(manifests[0])]}, train={"steps": 1}, name="stage1")
    run("train", stage1)
    data = {"train": [str(path) for path in manifests], "mixture": {"asr": 1, "st": 1, "qa": 1}}
    folder = run("train", recipe(objective={"name": "next_token"}, data=data, train={"steps": 2})).strip()
    for path, task in zip(manifests, ("asr", "st", "qa"), strict=True):
        run("evaluate", folder, path, "--max-new-tokens", 4)
        scores = json.loads((Path(folder) / "eval" / f"{path.stem}.scores.json").read_text())
        assert [(row["task"], row["n"]) for row in scores["rows"]] == [(task, 1 if task == "qa" else 4)]
