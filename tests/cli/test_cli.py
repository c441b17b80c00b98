import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from ossicle.cli.main import app, main
from ossicle.data.manifest import read_manifest
from ossicle.errors import OssicleError
from ossicle.evaluate.hypotheses import read_hypotheses
from ossicle.testing import ENCODERS, LLMS
from ossicle.train.tracking import METRICS_FILE, read_metrics


@pytest.fixture
def ossicle():
    """``ossicle("train", ...)``: run a command in this process and return its output; an error is raised."""

    def run(*arguments: object) -> str:
        return (
            CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False, standalone_mode=False).stdout
        )

    return run


@pytest.fixture
def fails(monkeypatch, capsys):
    """``fails("train", ...)``: the error message of a command that is expected to fail."""

    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["ossicle", *(str(argument) for argument in arguments)])
        monkeypatch.delenv("OSSICLE_DEBUG", raising=False)
        with pytest.raises(SystemExit) as caught:
            main()
        assert caught.value.code == 1
        said = capsys.readouterr().err
        assert "Traceback" not in said
        assert "This is a bug" not in said
        return " ".join(said.split())

    return run


def test_help_imports_no_torch():
    program = (
        "import sys; from typer.testing import CliRunner; from ossicle.cli.main import app\n"
        "result = CliRunner().invoke(app, ['--help'])\n"
        "assert result.exit_code == 0 and 'transcribe' in result.output, result.output\n"
        "print([name for name in ('torch', 'transformers', 'numpy', 'pydantic') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("command", sorted(get_command(app).commands))
def test_every_command_has_a_help_page(command):
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert "Usage" in result.output


@pytest.mark.no_cover  # other tests reach the same lines
@pytest.mark.parametrize("llm", LLMS)
@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_pair_of_families_trains_and_decodes(ossicle, recipe, folders, task_manifest, encoder, llm):
    path = recipe(objective={"name": "next_token"}, data={"train": [str(task_manifest)]})
    models = [f"model.encoder={folders[encoder]}", f"model.llm={folders[llm]}"]
    folder = Path(ossicle("train", path, "train.steps=2", f"name={encoder}-{llm}", *models).strip())
    assert folder.name == f"{encoder}-{llm}"
    ossicle("evaluate", folder, task_manifest, "--max-new-tokens", "4")
    out = folder / "eval" / f"{task_manifest.stem}.jsonl"
    assert {hypothesis.id for hypothesis in read_hypotheses(out)} == {s.id for s in read_manifest(task_manifest)}


@pytest.fixture
def trained(ossicle, recipe, task_manifest) -> str:
    path = recipe(objective={"name": "next_token"}, data={"train": [str(task_manifest)]}, train={"steps": 1})
    return ossicle("train", path).strip()


def test_evaluate_scores_each_task_and_the_upper_bound(ossicle, trained, task_manifest, tmp_path):
    ossicle("evaluate", trained, task_manifest, "--max-new-tokens", "4", "--batch-size", "2")
    ossicle("evaluate", trained, task_manifest, "--max-new-tokens", "4", "--from-text")
    folder = tmp_path / "runs" / "run" / "eval"
    speech, text = (read_hypotheses(folder / f"{task_manifest.stem}{kind}.jsonl") for kind in ("", "-text"))
    assert {hypothesis.task for hypothesis in speech} == {"asr", "st", "qa"}
    assert [h.hypothesis for h in speech] != [h.hypothesis for h in text]
    for kind in ("", "-text"):
        scores = json.loads((folder / f"{task_manifest.stem}{kind}.scores.json").read_text())
        assert {row["task"] for row in scores["rows"]} == {"asr", "st", "qa"}


def test_a_missing_tokenizer_is_named_before_decoding_and_hides_no_score(trained, task_manifest, monkeypatch):
    from ossicle.evaluate import metrics

    available = metrics.BLEU

    def without_mecab(tokenize):
        if "mecab" in tokenize:
            raise RuntimeError
        return available(tokenize=tokenize)

    monkeypatch.setattr(metrics, "BLEU", without_mecab)
    lines = [json.loads(line) for line in task_manifest.read_text().splitlines()]
    japanese = task_manifest.with_name("japanese.jsonl")
    renamed = [{**line, "target_language": "jpn"} if line.get("task") == "st" else line for line in lines]
    japanese.write_text("".join(json.dumps(line) + "\n" for line in renamed))
    result = CliRunner().invoke(app, ["evaluate", trained, str(japanese), "--max-new-tokens", "2"])
    assert isinstance(result.exception, OssicleError)
    assert "no bleu: BLEU in the language 'ja'" in str(result.exception)
    said = " ".join(result.stderr.split())
    assert said.index("pip install 'sacrebleu[ja]'") < said.index("decoded")
    scores = json.loads((Path(trained) / "eval" / "japanese.scores.json").read_text())
    assert {row["task"]: sorted(row["scores"]) for row in scores["rows"]}["st"] == ["chrf"]


def test_transcribe_translate_and_ask(ossicle, trained, task_manifest):
    files = [sample.audio for sample in read_manifest(task_manifest)[:2]]
    heard = ("--model", trained, "--vad", "off")  # the recordings are tones
    several = ossicle("transcribe", *files, *heard, "--batch-size", "1")
    one = ossicle("transcribe", files[0], *heard)
    assert several.splitlines()[0].startswith(f"{files[0]}: ")
    assert not one.startswith(str(files[0]))
    assert several.startswith(f"{files[0]}: {one.splitlines()[0] if one.strip() else ''}")
    translated = ossicle("translate", files[0], "--to", "de", *heard)
    asked = ossicle("ask", "translate to german", files[0], "--model", trained)
    assert translated == asked  # the instruction of st/de in the training data
    assert translated != one


def test_folders_patterns_and_standard_input(trained, task_manifest, tmp_path, monkeypatch):
    for number, sample in enumerate(read_manifest(task_manifest)[:3]):
        place = tmp_path / "talks" / "deep" if number else tmp_path / "talks"
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(sample.audio, place / f"{number}.WAV")
        (place / f"._{number}.WAV").write_bytes(b"hidden, as macOS writes them on other disks")
    (tmp_path / "talks" / "notes.txt").write_text("no recording")
    monkeypatch.chdir(tmp_path)

    def told(*arguments, given=None):
        result = CliRunner().invoke(
            app, ["transcribe", *arguments, "--model", trained, "-f", "json", "--vad", "off"], input=given
        )
        assert result.exit_code == 0, result.output
        return {line["file"]: line["text"] for line in map(json.loads, result.stdout.splitlines())}

    folder = told("talks")
    assert list(folder) == ["talks/0.WAV", "talks/deep/1.WAV", "talks/deep/2.WAV"]
    assert told("talks/**/*.WAV") == folder
    assert told("talks", "--batch-size", "3") == folder
    assert told("-", given=(tmp_path / "talks/0.WAV").read_bytes()) == {"-": folder["talks/0.WAV"]}


def test_answers_in_a_file_and_one_bad_recording_in_a_batch(trained, task_manifest, tmp_path):
    files = [str(sample.audio) for sample in read_manifest(task_manifest)[:2]]
    (tmp_path / "bad.wav").write_text("not audio")
    recordings = [files[0], str(tmp_path / "bad.wav"), files[1]]
    arguments = ["transcribe", *recordings, "--model", trained, "--batch-size", "3", "--vad", "off"]

    lines = {}
    for form in ("tsv", "json", "text"):
        result = CliRunner().invoke(app, [*arguments, "--format", form, "--out", str(tmp_path / form)])
        assert result.exit_code == 1
        assert "bad.wav: is not an audio file" in result.stderr
        lines[form] = (tmp_path / form).read_text().splitlines()

    assert [line.split("\t")[0] for line in lines["tsv"]] == files
    assert [line.split(": ")[0] for line in lines["text"]] == files
    told = [json.loads(line) for line in lines["json"]]
    assert [line.keys() - {"file"} for line in told] == [{"text"}, {"error"}, {"text"}]


def test_further_speeds_need_a_model_that_spells(fails, trained, task_manifest):
    recording = str(read_manifest(task_manifest)[0].audio)
    said = fails("transcribe", recording, "--model", trained, "--vad", "off", "--speed", "0.9")
    assert "speeds: only models that spell (projector ctc) use them" in said


def test_an_empty_path_is_not_the_current_folder(fails, trained, task_manifest, monkeypatch):
    monkeypatch.chdir(Path(read_manifest(task_manifest)[0].audio).parent)
    assert "a path is empty" in fails("transcribe", "", "--model", trained)


@pytest.mark.parametrize("paths", [("none/*.wav",), ("-", "-", "-")])
def test_paths_without_recordings_are_named(fails, trained, tmp_path, monkeypatch, paths):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    said = fails("transcribe", *paths, "empty", "--model", trained)
    assert f"{paths[0]}: matches no files" in said if paths[0] != "-" else "empty: has no recordings (.3gp" in said


def test_a_typo_in_a_field_is_named(fails, recipe):
    said = fails("train", recipe(), "train.stepz=3")
    assert said.startswith("error: ")
    assert "recipe.yaml: train.stepz: unknown field; did you mean 'steps'?" in said


def test_errors_keep_their_brackets(fails, recipe):
    assert "override 'train.steps=[1'" in fails("train", recipe(), "train.steps=[1")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data.train=[nowhere.jsonl]", "nowhere.jsonl"),
        ("model.llm=nowhere/at/all", "nowhere/at/all"),
        ("objective.layers=9", "the model has hidden states 0..3"),
    ],
)
def test_what_is_wrong_with_a_run_is_said_without_a_traceback(fails, recipe, change, message):
    assert message in fails("train", recipe(objective={"name": "contrastive"}), change)


def test_a_folder_that_is_no_run_is_named(fails, tmp_path, task_manifest):
    assert "is not a checkpoint of Ossicle" in fails("evaluate", tmp_path, task_manifest)
    assert "is not a checkpoint of Ossicle" in fails("transcribe", "a.wav", "--model", tmp_path)


def test_a_missing_default_model_says_what_to_do(fails, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ossicle.models.saving.entry_points", lambda **_: [])  # without ossicle-lab
    assert "there is no model: install ossicle-lab, which brings one, or give" in fails("transcribe", "a.wav")


def test_a_broken_recording_does_not_end_the_batch(trained, task_manifest, tmp_path):
    good = read_manifest(task_manifest)[0].audio
    broken = tmp_path / "broken.wav"
    broken.write_text("not audio")
    files = [str(broken), str(good), "gone.wav", str(good)]
    result = CliRunner().invoke(app, ["transcribe", *files, "--model", trained, "--vad", "off"])
    assert result.exit_code == 1
    assert [line.partition(": ")[0] for line in result.stdout.splitlines()] == [str(good), str(good)]
    assert "broken.wav" in result.stderr
    assert "gone.wav" in result.stderr
    assert "2 of 4 recordings have no answer" in result.stderr


@pytest.mark.parametrize(
    ("to", "warning"),
    [
        ("de", None),
        ("deu", None),
        ("de_AT", None),
        ("fr", "was not trained to translate to fr; it was trained on de"),
        ("klingon", "--to klingon is not a language code that Ossicle knows; this model was trained on de"),
    ],
)
def test_an_unknown_target_language_gets_a_warning(ossicle, trained, task_manifest, caplog, to, warning):
    ossicle("translate", read_manifest(task_manifest)[0].audio, "--to", to, "--model", trained)
    assert warning is None or warning in caplog.text
    assert warning is not None or "language" not in caplog.text


def test_a_pretrained_model_gets_a_warning(ossicle, recipe, task_manifest, caplog):
    folder = ossicle("train", recipe(objective={"name": "contrastive"}, train={"steps": 1})).strip()
    file = read_manifest(task_manifest)[0].audio
    for command in (["translate"], ["ask", "who"]):
        caplog.clear()
        ossicle(*command, file, "--model", folder)
        assert "only pretrained (stage 1): fine-tune it first" in caplog.text
    with pytest.warns(UserWarning, match="has not learned to answer"):
        ossicle("transcribe", file, "--model", folder, "--vad", "off")


def test_a_missing_recording_is_named(fails, trained):
    assert "gone.wav" in fails("transcribe", "gone.wav", "--model", trained)


def test_a_second_run_of_the_same_name_is_refused(fails, trained, recipe, task_manifest):
    assert "continue it with --resume" in fails("train", recipe())


def test_resume_with_other_settings_is_refused(fails, trained, recipe):
    assert "was started with other settings" in fails("train", recipe(), "optim.lr=0.5", "--resume")


def test_a_filled_cache_leaves_nothing_to_compute(ossicle, recipe, tmp_path, monkeypatch):
    """A training run after `ossicle cache` has the same losses as without caches, for frames and texts."""
    plain = recipe(objective={"name": "contrastive", "layers": [0, 2]}, train={"steps": 3})
    caches = [f"data.cache_dir={tmp_path / 'cache'}", "data.cache_text=true"]
    ossicle("cache", plain, *caches)
    stored = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")}
    assert stored
    read = []
    monkeypatch.setattr("ossicle.models.llm.LLM.read", lambda *_, **__: read.append(1))
    ossicle("train", plain, *caches, "name=cached")
    monkeypatch.undo()
    ossicle("train", plain, "name=plain")
    assert read == []
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")} == stored
    cached, without = (
        [record["loss"] for record in read_metrics(tmp_path / "runs" / name / METRICS_FILE)]
        for name in ("cached", "plain")
    )
    assert cached == pytest.approx(without, rel=1e-6)


def test_a_cache_of_nothing_is_refused(fails, recipe):
    assert "set data.cache_text=true" in fails("cache", recipe())
    wrong = recipe(objective={"name": "next_token"}, data={"cache_text": True})
    assert "data.cache_text: this objective does not compare" in fails("cache", wrong)
