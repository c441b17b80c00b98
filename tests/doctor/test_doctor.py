"""The doctor runs on every recipe, and finds faults that the tests insert."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from rich.console import Console
from typer.testing import CliRunner

from ossicle.audio import SAMPLE_RATE_HZ
from ossicle.cli.main import app
from ossicle.doctor import Report, diagnose, step
from ossicle.doctor.cost import Shapes
from ossicle.models.speech_llm import ModelConfig
from ossicle.testing import tiny_encoder, tiny_llm, tiny_manifest
from ossicle.train.recipe import Config, load, parse
from ossicle_lab.recipes import is_study
from places import CORE_RECIPES, LAB_RECIPES

RECIPES = sorted(
    path for folder in (CORE_RECIPES, LAB_RECIPES) for path in folder.glob("*/*.yaml") if not is_study(path)
)
SMALL = {"name": "qformer", "width": 16, "heads": 2, "layers": 1, "ffn": 16, "dropout": 0.0}


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "OVERFIT_STEPS", 3)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tiny_encoder(folder / "encoder")
    tiny_encoder(folder / "group", norm="group")
    tiny_llm(folder / "llm")
    return folder


@pytest.fixture
def make(models: Path, tmp_path: Path) -> Callable[..., Config]:
    """Return a function that makes a run on tiny models and eight utterances, with the settings of a test."""

    def made(*, model: dict | None = None, objective: str = "next_token", **data: object) -> Config:
        manifest = tiny_manifest(tmp_path / "data", 8, tasks=("asr",) if objective == "next_token" else ())
        parts = {"encoder": str(models / "encoder"), "llm": str(models / "llm"), "projector": SMALL, **(model or {})}
        tree = {"name": "run", "output_dir": str(tmp_path), "model": parts, "objective": {"name": objective}}
        tree["data"] = {"train": [str(manifest)], "batch_size": 4, **data}
        return parse({**tree, "train": {"cpu": True, "tensorboard": False}})

    return made


def examined(config: Config, **options: bool) -> tuple[Report, str]:
    out = io.StringIO()
    return diagnose(config, console=Console(file=out, width=120), **options), out.getvalue()


def change_lines(config: Config, change: Callable[[int, dict], dict]) -> None:
    path = Path(config.data.train[0])
    lines = [change(i, json.loads(line)) for i, line in enumerate(path.read_text().splitlines())]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.no_cover  # other tests reach the same lines
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_it_runs_on_every_recipe(recipe):
    report, printed = examined(load(recipe), tiny=True)
    assert not report.of("error"), printed
    assert {"data", "models", "checkpoint", "spelling", "labels", "loss", "memory", "time", "disk"} <= {
        finding.check for finding in report.findings
    }


@pytest.mark.parametrize("objective", ["next_token", "contrastive"])
def test_a_sound_run_has_neither_errors_nor_warnings(make, objective):
    report, printed = examined(make(objective=objective))
    assert not report.of("error") and not report.of("warning"), printed
    assert "8 utterances" in printed


def only_error(report: Report) -> str:
    (error,) = report.of("error")
    assert error.fix
    return f"{error.check}: {error.message}"


def test_a_wrong_sample_rate_is_found(make):
    config = make()

    def halve(i: int, line: dict) -> dict:
        if i == 3:
            path = Path(config.data.train[0]).parent / line["audio"]
            soundfile.write(path, soundfile.read(path)[0], SAMPLE_RATE_HZ // 2)  # the header has half of the rate
        return line

    change_lines(config, halve)
    report, _ = examined(config)
    assert "sample rate: 1 of 8" in only_error(report) and "manifest-0.jsonl:4" in only_error(report)
    assert [finding.check for finding in report.of("warning")] == ["sample rate"]  # because the rate is below 16 kHz


def test_a_wrong_sample_rate_shows_in_the_pace_where_no_duration_is_stated(make):
    config = make(max_duration_s=300)

    def slow(i: int, line: dict) -> dict:
        del line["duration_s"]
        if len(line["text"]) >= 20:
            path = Path(config.data.train[0]).parent / line["audio"]
            soundfile.write(path, np.tile(soundfile.read(path)[0], 2), 1000)
        return line

    change_lines(config, slow)
    report, _ = examined(config)
    assert "pace" in only_error(report)


def test_masked_labels_are_found(make):
    config = make()
    change_lines(config, lambda i, line: {k: v for k, v in line.items() if k in ("id", "audio", "duration_s")} if i == 2
                 else line)  # fmt: skip
    report, _ = examined(config)
    assert "labels: 1 of 8 samples have no answer" in only_error(report)
    assert "manifest-0.jsonl:3" in only_error(report)


def test_text_outside_the_vocabulary_is_found(make, models, tmp_path):
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    llm = tiny_llm(tmp_path / "llm")
    old = AutoTokenizer.from_pretrained(llm)
    words = ["<unk>", "<s>", "<|end|>", "<|user|>", "<|assistant|>", "one", "two", "three", "repeat"]
    words += ["four", "five", "six", "seven", "eight", "nine", "ten", "red", "green", "blue", "dog", "bird"]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="<|end|>",
        additional_special_tokens=["<|user|>", "<|assistant|>"],
    )  # fmt: skip
    fast.chat_template = old.chat_template
    fast.save_pretrained(llm)
    report, _ = examined(make(model={"llm": str(llm)}))
    assert "spelling: the LLM's tokenizer cannot spell" in only_error(report)


def test_an_encoder_that_padding_disturbs_is_found(make, models):
    report, _ = examined(make(model={"encoder": str(models / "group")}))
    (warning,) = report.of("warning")
    assert warning.check == "padding" and "cannot promise" in warning.message
    assert not report.of("error")


def test_an_llm_that_trains_is_found(make):
    report, _ = examined(make(model={"trainable": ["llm.*.mlp.*"]}))
    assert "frozen LLM" in only_error(report) and "of the LLM's own weights train" in only_error(report)


def test_missing_audio_is_found(make):
    config = make()
    change_lines(config, lambda i, line: {**line, "audio": "nowhere.wav"} if i == 5 else line)
    report, _ = examined(config)
    assert "files: 1 of 8 utterances" in only_error(report)
    assert "manifest-0.jsonl:6" in only_error(report) and "nowhere.wav" in only_error(report)


def test_files_that_are_to_be_skipped_are_a_warning(make):
    config = make(on_error="skip")
    change_lines(config, lambda i, line: {**line, "audio": "nowhere.wav"} if i == 5 else line)
    report, _ = examined(config)
    assert not report.of("error") and [finding.check for finding in report.of("warning")] == ["files"]


def test_silence_and_clipping_are_found(make):
    config = make()
    folder = Path(config.data.train[0]).parent
    for i, value in ((0, 0.0), (1, 1.0)):
        samples = len(soundfile.read(folder / f"0-{i}.wav")[0])
        soundfile.write(folder / f"0-{i}.wav", np.full(samples, value, np.float32), SAMPLE_RATE_HZ, "FLOAT")
    _, printed = examined(config)
    assert "1 of 8 are silent" in printed and "1 of 8 are clipped" in printed


def test_channels_that_cancel_each_other_are_a_warning(make):
    config = make()

    def invert(i: int, line: dict) -> dict:
        if i in (2, 5):
            path = Path(config.data.train[0]).parent / line["audio"]
            wave = soundfile.read(path)[0]
            soundfile.write(path, np.stack([wave, -wave], axis=1), SAMPLE_RATE_HZ)
        return line

    change_lines(config, invert)
    report, _ = examined(config)
    (warning,) = report.of("warning")
    assert warning.check == "channels"
    assert "in 2 of 8 the channels cancel each other" in warning.message
    assert not report.of("error")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": "so \ud83d sad"}, "manifest-0.jsonl:3: holds half a character"),
        ({"duration_s": 10**400}, 'manifest-0.jsonl:3: "duration_s" is 1000'),
        ({"audio": "a\0b"}, 'manifest-0.jsonl:3: "audio" is'),
    ],
)
def test_an_odd_line_is_found(make, change, message):
    config = make()
    change_lines(config, lambda i, line: {**line, **change} if i == 2 else line)
    report, _ = examined(config)
    assert message in only_error(report)


def test_a_model_that_cannot_be_loaded_ends_it(make):
    report, _ = examined(make(model={"llm": "no/such-model-here"}))
    assert only_error(report).startswith("models")
    assert "loss" not in {finding.check for finding in report.findings}


def test_the_cost_by_shapes(models):
    shapes = Shapes.of(ModelConfig(encoder=str(models / "encoder"), llm=str(models / "llm")).build())
    assert (shapes.width, shapes.ffn, shapes.queries, shapes.keys, shapes.layers) == (32, 48, 32, 16, 2)
    # float32: gate, up and product; query, key and value; 2.2 widths of norms
    assert shapes.token_b(checkpointing=False) == pytest.approx(4 * (3 * 48 + 32 + 2 * 16 + 2.2 * 32))
    assert shapes.token_b(checkpointing=True) == 4 * 32


def test_the_command_exits_with_1_on_errors(make, tmp_path):
    recipe = tmp_path / "broken.yaml"
    recipe.write_text("data: {train: [here.jsonl]}\n")
    result = CliRunner().invoke(app, ["doctor", str(recipe)])
    assert result.exit_code == 1 and "here.jsonl" in result.output
    assert CliRunner().invoke(app, ["doctor", str(recipe), "--tiny"]).exit_code == 0
