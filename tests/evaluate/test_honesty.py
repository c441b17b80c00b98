"""The comparison with cascade, text-only bound and other audio, with decoders whose answers are known."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from ossicle.batch import Sample
from ossicle.cli.main import app
from ossicle.errors import ModelError
from ossicle.evaluate.honesty import CASCADE, OTHER_AUDIO, RECOGNISER, TEXT, honesty
from ossicle.evaluate.other_audio import with_other_audio
from ossicle.evaluate.references import hypothesis_of
from ossicle.evaluate.score import ScoreOptions
from ossicle.evaluate.tables import print_honesty
from ossicle.testing import WORDS


def sample(number, **about):
    text = f"{WORDS[number % 19]} {WORDS[(number + 7) % 19]} {WORDS[(3 * number) % 19]} {number}"
    known = {"audio": Path(f"{number}.wav"), "text": text, "speaker": f"s{number % 6}", "language": "en", "task": "asr"}
    return Sample(id=str(number), **{**known, **about})


class Model:
    """Answers by ``answer(kind, sample, text of the audio)`` and records what it decodes."""

    def __init__(self, answer, samples):
        self.answer, self.said, self.decoded = answer, {s.audio: s.text for s in samples}, {}

    def __call__(self, kind, samples, path):
        self.decoded[kind] = [s.id for s in samples]
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [hypothesis_of(s, self.answer(kind, s, self.said[s.audio])).to_json() for s in samples]
        path.write_text("\n".join(lines) + "\n")


def compared(answer, samples, folder, **options):
    model = Model(answer, samples)
    model("speech", samples, folder / "answers.jsonl")
    rows = honesty(folder / "answers.jsonl", samples, model, **options)
    return rows, model


def test_other_audio_is_another_recording_with_another_answer():
    samples = [
        sample(0),
        sample(1, audio=Path("0.wav")),  # a second line about the first recording
        sample(2, text=sample(0).text),  # the same sentence, read again
        sample(3, task="st", answers=("x",), target_language="de"),
        sample(4, task="st", answers=("y",), target_language="de"),
        sample(5, task="st", answers=("z",), target_language="fr"),  # the only one of its group
    ]
    other = {s.id: s for s in with_other_audio(samples)}
    assert set(other) == {"1", "2", "3", "4"}  # the others of 0 are its own recording and its own sentence
    assert (other["3"].audio, other["4"].audio) == (samples[4].audio, samples[3].audio)
    for each in other.values():
        mine = samples[int(each.id)]
        assert each.audio != mine.audio
        assert (each.text, each.answers, each.instruction, each.task) == (
            mine.text, mine.answers, mine.instruction, mine.task,
        )  # fmt: skip
    assert with_other_audio(samples[::-1]) == with_other_audio(samples)[::-1]


def test_other_audio_is_never_a_recording_of_the_same_sentence():
    samples = [sample(0), sample(1, text=sample(0).text)]
    assert with_other_audio(samples) == []
    answers = [sample(0, task="voice", answers=("the woman",)), sample(1, task="voice", answers=("the woman",))]
    assert with_other_audio(answers) == []


def test_the_segment_of_the_other_recording_comes_along():
    samples = [sample(0, start_s=1.0, end_s=2.0, duration_s=1.0), sample(1, audio=Path("0.wav"), duration_s=0.5)]
    first, second = with_other_audio(samples)
    assert (first.start_s, first.end_s, first.duration_s) == (0.0, None, 0.5)
    assert (second.start_s, second.end_s, second.duration_s) == (1.0, 2.0, 1.0)


def test_a_model_that_listens(tmp_path):
    def answer(kind, sample, heard):
        return {TEXT: sample.text, CASCADE: "one", RECOGNISER: f"{heard} well"}.get(kind, heard)

    [row], model = compared(answer, [sample(i) for i in range(24)], tmp_path)
    assert (row.task, row.language, row.n, row.of, row.metric) == ("asr", "en", 24, 24, "wer")
    assert (row.speech, row.scores[TEXT]) == (0, 0)
    assert row.scores[CASCADE] > 70
    assert row.scores[RECOGNISER] == 25  # one word more than four
    assert row.scores[OTHER_AUDIO] > 70
    assert row.other_minus_speech.difference == row.scores[OTHER_AUDIO]
    assert row.other_minus_speech.interval.low > 0
    assert row.units == "6 speakers"
    assert row.ignores_audio is False
    assert row.missing == {}
    assert model.decoded[OTHER_AUDIO] == [str(i) for i in range(24)]


@pytest.mark.parametrize(
    ("task", "metric", "answer"),
    [
        ("asr", "wer", lambda kind, sample, heard: "one two three"),  # always the same
        ("asr", "wer", lambda kind, sample, heard: sample.text),  # knows the answer without the audio
        ("qa", "f1", lambda kind, sample, heard: WORDS[int(sample.id) % 2]),
        ("qa", "f1", lambda kind, sample, heard: sample.text if kind == OTHER_AUDIO else "no"),  # better with another
    ],
)
def test_a_model_that_ignores_its_audio_is_flagged(tmp_path, task, metric, answer):
    samples = [sample(i, task=task, answers=(sample(i).text,)) for i in range(24)]
    [row], _ = compared(answer, samples, tmp_path)
    assert (row.metric, row.ignores_audio) == (metric, True)
    text = io.StringIO()
    print_honesty([row], Console(file=text, width=200))
    assert f"warning: {task} en: the model ignores its audio, as far as 24 lines show" in text.getvalue()
    assert "all 24 answers" in text.getvalue()


def test_the_columns_have_the_same_lines_of_a_subset(tmp_path):
    tasks = [("asr", None), ("st", "de")]
    samples = [
        sample(i, task=task, answers=(sample(i).text,), target_language=target)
        for task, target in tasks
        for i in range(40)
    ]
    rows, model = compared(lambda kind, sample, heard: heard, samples, tmp_path, lines=20)
    assert [(row.task, row.n, row.of, row.metric) for row in rows] == [("asr", 10, 40, "wer"), ("st", 10, 40, "bleu")]
    assert len(model.decoded[TEXT]) == len(model.decoded[CASCADE]) == len(model.decoded[OTHER_AUDIO]) == 20
    assert sorted(model.decoded[TEXT]) == sorted(model.decoded[OTHER_AUDIO])
    text = io.StringIO()
    print_honesty(rows, Console(file=text, width=200))
    assert len(model.decoded[RECOGNISER]) == 10
    assert RECOGNISER not in rows[1].scores
    assert "20 of 80 answers, a seeded subset" in text.getvalue()


def test_what_cannot_be_had_is_said(tmp_path):
    class WithoutCascade(Model):
        def __call__(self, kind, samples, path):
            if kind in (CASCADE, RECOGNISER):
                raise ModelError("the encoder cannot transcribe")
            super().__call__(kind, samples, path)

    samples = [sample(i, text=None, task="qa", answers=(sample(i).text,)) for i in range(6)]
    model = WithoutCascade(lambda kind, sample, heard: str(sample.audio), samples)
    model("speech", samples, tmp_path / "a.jsonl")
    [row] = honesty(tmp_path / "a.jsonl", samples, model)
    assert row.missing == {TEXT: "too few lines have a transcript", CASCADE: "the encoder cannot transcribe"}
    assert set(row.scores) == {OTHER_AUDIO}
    text = io.StringIO()
    print_honesty([row], Console(file=text, width=200))
    assert "no cascade: the encoder cannot transcribe" in text.getvalue()
    [alone] = honesty(tmp_path / "a.jsonl", samples[:1], model)
    assert (alone.n, alone.ignores_audio) == (1, None)
    assert alone.missing[OTHER_AUDIO] == "too few lines differ in recording, transcript and answer"


def test_a_few_lines_without_a_transcript_are_left_out_of_all_columns(tmp_path):
    samples = [sample(i, task="qa", answers=(sample(i).text,)) for i in range(10)]
    samples[0] = replace(samples[0], text=None)
    [row], _ = compared(lambda kind, sample, heard: heard or "", samples, tmp_path)
    assert (row.n, row.of) == (9, 10)
    assert set(row.scores) == {TEXT, CASCADE, OTHER_AUDIO}


def test_without_resamples_nothing_is_claimed(tmp_path):
    samples = [sample(i) for i in range(6)]
    [row], _ = compared(lambda kind, sample, heard: "x", samples, tmp_path, options=ScoreOptions(resamples=0))
    assert row.ignores_audio is None


def test_a_task_without_a_score_has_no_row(tmp_path):
    """BLEU and chrF are there for every language, but the leaderboard's normalisation knows English only."""
    (tmp_path / "normalizer").mkdir()
    (tmp_path / "normalizer" / "normalizer.py").write_text(
        "class EnglishTextNormalizer:\n    def __call__(self, text):\n        return text\n"
    )
    pytest.importorskip("kaldialign", reason="needs pip install 'ossicle[score]'")
    samples = [sample(i, language=language) for i, language in enumerate(["en", "de"] * 6)]
    options = ScoreOptions(normalise="open-asr", leaderboard=tmp_path)
    [row], _ = compared(lambda kind, sample, heard: heard, samples, tmp_path, options=options)
    assert (row.language, row.metric, row.n) == ("en", "wer", 6)


def run(*arguments):
    result = CliRunner().invoke(app, ["evaluate", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_command_compares_resumes_and_can_be_told_not_to(build, task_manifest, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    model = build()
    model.save(tmp_path / "model")
    command = (tmp_path / "model", task_manifest, "--max-new-tokens", 4)
    out = tmp_path / "model" / "eval" / f"{task_manifest.stem}.jsonl"
    assert "honesty" not in run(*command, "--no-honesty")
    assert json.loads(out.with_suffix(".scores.json").read_text())["honesty"] == []

    text = run(*command)
    assert "honesty: every column has the same lines (all 6 answers)" in text
    assert "no cascade and no recogniser: the encoder cannot transcribe" in " ".join(text.split())
    rows = json.loads(out.with_suffix(".scores.json").read_text())["honesty"]
    assert [(row["task"], row["metric"], row["n"]) for row in rows] == [
        ("asr", "wer", 2),
        ("qa", "f1", 2),
        ("st", "bleu", 2),
    ]
    assert all({TEXT, OTHER_AUDIO} == set(row["scores"]) for row in rows)
    folder = out.with_name(f"{out.stem}.honesty")
    first = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.jsonl")}
    assert set(first) == {"text.jsonl", "other-audio.jsonl"}
    run(*command)
    assert {path.name: path.stat().st_mtime_ns for path in folder.glob("*.jsonl")} == first

    with torch.no_grad():  # another checkpoint: the answers themselves must be moved, the comparison follows
        next(model.projector.parameters()).add_(1.0)
    model.save(tmp_path / "model")
    out.unlink()
    run(*command)
    meta = json.loads((folder / "other-audio.meta.json").read_text())
    assert meta == json.loads(out.with_suffix(".meta.json").read_text())


def test_a_run_from_text_is_not_compared(build, task_manifest, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    build().save(tmp_path / "model")
    text = run(tmp_path / "model", task_manifest, "--max-new-tokens", 4, "--from-text")
    assert "wer" in text
    assert "honesty" not in text
