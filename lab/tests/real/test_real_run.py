"""A whole real run on tiny random models and a miniature folder of recordings, and its table."""

from __future__ import annotations

import io
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import typer
import yaml
from rich.console import Console
from typer.testing import CliRunner

from ossicle.data.manifest import read_manifest, write_manifest
from ossicle.errors import ConfigError, TrainingError
from ossicle.evaluate.hypotheses import Hypothesis
from ossicle.evaluate.run import EvalOptions
from ossicle.models.llm import LLM
from ossicle.models.speech_llm import SpeechLLM
from ossicle.testing import tiny_manifest
from ossicle_lab.real import __main__ as command
from ossicle_lab.real import run as real_run
from ossicle_lab.real.corpus import Corpus, Sizes
from ossicle_lab.real.decoding import OPEN_INSTRUCTIONS
from ossicle_lab.real.run import FULL, SHORT, Scale, run, train
from ossicle_lab.real.table import Entry, entries, show

PROJECTOR = {"name": "qformer", "width": 16, "heads": 2, "layers": 1, "ffn": 24, "queries": 2, "window_s": 0.1}


@pytest.fixture
def scale(folders: dict[str, Path], tmp_path: Path) -> Scale:
    """A run of two steps per stage on tiny random models."""
    for name, objective in (("pretrain", "contrastive"), ("finetune", "next_token")):
        recipe = {
            "model": {"projector": PROJECTOR},
            "data": {"train": ["none.jsonl"], "batch_size": 4, "cache_frames": True},
            "objective": {"name": objective},
            "train": {"steps": 2, "log_every": 1, "tensorboard": False, "cpu": True},
        }
        (tmp_path / "recipes").mkdir(exist_ok=True)
        (tmp_path / "recipes" / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
    return Scale(
        encoder=str(folders["hubert"]),
        llm=str(folders["llama"]),
        pretrain=str(tmp_path / "recipes" / "pretrain.yaml"),
        finetune=str(tmp_path / "recipes" / "finetune.yaml"),
        sizes=Sizes(questions=4, test_questions=3, unseen=2),
        own_answers=4,
        max_new_tokens=3,
    )


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """Twenty-four recordings of six speakers, without texts for generated voices."""
    folder = tmp_path / "recordings" / "tones"
    samples = read_manifest(tiny_manifest(folder, 24))
    words, rng = [f"{letter}able" for letter in "bcdfghkst"], random.Random(0)
    said = [
        replace(sample, text=f"{sample.text} {' '.join(rng.sample(words, 4))}", speaker=f"p{i // 4}")
        for i, sample in enumerate(samples)
    ]
    write_manifest(folder / "manifest.jsonl", said)
    return folder.parent


def test_whole_run_in_miniature(
    scale: Scale, recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    # The answers of a random LLM do not end by themselves, and those that are cut are no targets.
    monkeypatch.setattr(LLM, "stop_ids", property(lambda llm: sorted(llm.end_ids | set(range(0, 400, 2)))))

    record = run(recordings, out, scale)

    assert record == json.loads((out / "results.json").read_text())
    assert [(row["test"], row["task"]) for row in record["rows"]] == [
        ("recordings", "asr"),
        ("recordings", "asr"),
        ("qa", "qa-words"),
        ("qa", "qa-words"),
        ("unseen", "capitals"),
        ("unseen", "count"),
        ("unseen", "count"),
    ]
    assert all(row["text"] is not None and row["whisper"] is None for row in record["rows"])
    own = read_manifest(out / "data" / "own-answers.jsonl")
    said = {(line.id, line.text) for line in read_manifest(out / "data" / "own-answers-transcripts.jsonl")}
    assert own and len(said) == 4
    assert {(line.id.removesuffix(f"-answer-{line.id[-1]}"), line.text) for line in own} <= said
    assert {line.instruction for line in own} <= set(OPEN_INSTRUCTIONS)
    model = SpeechLLM.from_pretrained(out / "model")
    assert model.objectives == ("next_token",)
    trained = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}

    again = run(recordings, out, scale)

    assert again["rows"] == record["rows"]
    kept = {path: path.stat().st_mtime_ns for path in trained if out / "model" not in path.parents}
    assert kept.items() <= trained.items(), "a finished step was done again"
    with pytest.raises(ConfigError, match="holds a run of another size"):
        run(recordings, out, replace(scale, max_new_tokens=4))


def test_a_stopped_training_is_an_error_that_says_how_to_continue(
    scale: Scale, recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ossicle.train.train", lambda config, *, resume: config.folder)
    with pytest.raises(TrainingError, match=r"pretrain: training was interrupted; the same command continues it"):
        run(recordings, tmp_path / "out", scale)


def test_a_stopped_training_continues_from_its_checkpoint(
    scale: Scale, recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resumed = []

    def fake(config: object, *, resume: bool) -> None:
        resumed.append(resume)

    overrides = [f"model.encoder={scale.encoder}", f"model.llm={scale.llm}", f"output_dir={tmp_path}", "name=r"]
    overrides.append(f"data.train=[{recordings / 'tones' / 'manifest.jsonl'}]")
    monkeypatch.setattr("ossicle.train.train", fake)
    for _ in range(2):
        with pytest.raises(TrainingError):
            train(scale.pretrain, overrides)
        (tmp_path / "r" / "checkpoints" / "step-1").mkdir(parents=True, exist_ok=True)
        (tmp_path / "r" / "checkpoints" / "step-1" / "training.pt").touch()
    assert resumed == [False, True]


@pytest.mark.parametrize(
    ("size", "multiplies", "expected"),
    [("auto", True, FULL), ("auto", False, SHORT), ("full", False, FULL), ("short", True, SHORT)],
)
def test_the_size_is_what_the_machine_can_do_or_the_one_given(
    size: str, multiplies: bool, expected: Scale, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found: list[Scale] = []
    monkeypatch.setattr(real_run, "multiplies", lambda kind: multiplies)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(command, "run", lambda recordings, out, scale, source: found.append(scale))
    app = typer.Typer()
    app.command()(command.main)

    shown = CliRunner().invoke(app, [str(tmp_path), "--size", size])

    assert shown.exit_code == 0
    assert found == [expected]
    assert ("short run" in shown.output) == (size == "auto" and not multiplies)


def test_seconds_of_stopped_calls_are_added(tmp_path: Path) -> None:
    console = Console(file=io.StringIO())
    for _ in range(2):
        with real_run._Seconds(tmp_path / "seconds.json").timed("step", console, "Step"):
            pass
    kept = json.loads((tmp_path / "seconds.json").read_text())
    assert set(kept) == {"step"}


def test_whisper_is_compared_on_every_test_and_its_transcript_is_read_by_the_llm_where_it_is_asked_something(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[tuple[str, str]] = []

    def ours(model: Path, manifest: Path, out: Path, options: EvalOptions) -> None:
        decoded.append((out.name, "cascade" if options.cascade else "speech"))

    monkeypatch.setattr("ossicle.evaluate.run.evaluate", ours)
    monkeypatch.setattr("ossicle_lab.real.decoding.decode_text", lambda *_, **__: None)
    monkeypatch.setattr("ossicle_lab.real.whisper.is_whisper", lambda folder: True)
    monkeypatch.setattr(
        "ossicle_lab.real.whisper.decode_whisper", lambda folder, manifest, out: decoded.append((out.name, "decoder"))
    )
    monkeypatch.setattr("ossicle_lab.real.table.entries", lambda name, speech, *, text, whisper: [whisper.name])
    corpus = Corpus(tmp_path)
    (tmp_path / "test-books.jsonl").touch()

    scored = real_run._test(tmp_path / "model", tmp_path / "whisper", corpus, tmp_path, 20)

    assert scored == ["books.whisper.jsonl", "qa.whisper.jsonl", "unseen.whisper.jsonl"]
    assert [x for x in decoded if "whisper" in x[0]] == [
        ("books.whisper.jsonl", "decoder"),
        ("qa.whisper.jsonl", "cascade"),
        ("unseen.whisper.jsonl", "cascade"),
    ]


# The table ---------------------------------------------------------------------------------------------------------


def hypotheses(path: Path, answers: dict[str, list[tuple[str, str]]]) -> Path:
    lines = [
        Hypothesis(id=f"{task}-{i}", task=task, language="en", hypothesis=said, references=(right,)).to_json()
        for task, pairs in answers.items()
        for i, (said, right) in enumerate(pairs)
    ]
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_entries_score_each_task_with_its_metric(tmp_path: Path) -> None:
    right = {"asr": [("a b c d", "a b c d")], "capitals": [("A B", "A B"), ("A B", "A B")], "count": [("4", "4")]}
    heard = {"asr": [("a b x d", "a b c d")], "capitals": [("A B", "A B"), ("a b", "A B")], "count": [("5", "4")]}
    speech = hypotheses(
        tmp_path / "speech.jsonl", {**heard, "qa": [("It is the dog.", "dog"), ("It was a dogma!", "dog")]}
    )
    text = hypotheses(tmp_path / "text.jsonl", right)
    own = hypotheses(tmp_path / "whisper.jsonl", {"asr": [("a x x d", "a b c d")]})

    found = {(e.task, e.metric): e for e in entries("mine", speech, text=text, whisper=own)}

    assert found["asr", "WER ↓"] == Entry("mine", "asr", "WER ↓", 1, 25.0, 0.0, 50.0)
    assert found["asr", "WER, Whisper's normalisation ↓"].speech == 25.0
    case = found["capitals", "word accuracy, with case ↑"]
    assert (case.speech, case.text, case.whisper) == (50.0, 100.0, None), "case counts"
    count = found["count", "answer contained ↑"]
    assert (count.speech, count.text) == (0.0, 100.0)
    assert found["qa", "answer contained ↑"].speech == 50.0, "whole words count"
    assert found["qa", "F1 ↑"].speech == 25.0


def test_whisper_normalisation_equates_titles_and_numbers(tmp_path: Path) -> None:
    own = hypotheses(tmp_path / "a.jsonl", {"asr": [("Mr. Hale isn't 20.", "mister hale is not twenty")]})
    found = {entry.metric: entry.speech for entry in entries("mine", own)}
    assert found["WER, Whisper's normalisation ↓"] == 0.0
    assert found["WER ↓"] > 0.0


def test_the_table_marks_what_the_llm_cannot_do_with_text() -> None:
    shown = io.StringIO()
    rows = [Entry("a", "asr", "WER ↓", 3, 20.0, 5.0, 10.0), Entry("b", "count", "F1 ↑", 3, 1.0, 4.0, 2.0)]
    show(rows, Console(file=shown, width=200))
    text = shown.getvalue()
    assert "4.0*" in text
    assert "5.0*" not in text
    assert "the LLM reads its transcript" in text
    assert "* below 10: the LLM cannot do this task with text either" in text
