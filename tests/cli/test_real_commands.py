"""Every command once, on recorded speech with published weights: Whisper-tiny.en and SmolLM2-135M."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from ossicle.cli.main import app
from ossicle.data.manifest import read_manifest, write_manifest
from ossicle.errors import ModelError
from ossicle.evaluate.hypotheses import read_hypotheses
from ossicle.train.tracking import read_metrics
from places import SHARED

pytestmark = [pytest.mark.slow, pytest.mark.no_cover]  # coverage does not depend on published weights
SPEECH = SHARED / "data" / "real_speech" / "librispeech_test_other"
COUNT = 4
PROJECTOR = {"name": "qformer", "width": 48, "heads": 2, "layers": 1, "ffn": 48}


def ossicle(*arguments: object) -> str:
    """Run a command in this process and return its output; an error is raised."""
    plain = [str(argument) for argument in arguments]
    return CliRunner().invoke(app, plain, catch_exceptions=False, standalone_mode=False).output


@dataclass
class Runs:
    """Files that earlier commands wrote and later ones read."""

    folder: Path
    recipe: Path
    manifest: Path
    tasks: Path
    pretrained: Path
    tuned: Path
    prepared: str


def shortest(count: int) -> list[dict]:
    manifest = SPEECH / "manifest.jsonl"
    if not manifest.is_file():
        pytest.skip("the recorded speech is missing (shared/data)")
    lines = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    return sorted(lines, key=lambda line: line["duration_s"])[:count]


def write_tasks(manifest: Path, out: Path) -> None:
    """Write a task of each kind about every recording, as a manifest of stage 2."""
    written = []
    for sample in read_manifest(manifest):
        first = (sample.text or "").split()[0]
        for task, instruction, answer, target in (
            ("asr", "Transcribe the speech.", sample.text, None),
            ("st", "Translate the speech to German.", "ein Satz", "de"),
            ("qa", "What is the first word?", first, None),
        ):
            about = {"task": task, "instruction": instruction, "answers": (answer,), "target_language": target}
            written.append(replace(sample, id=f"{sample.id}-{task}", **about))
    write_manifest(out, written)


@pytest.fixture(scope="module")
def runs(real_models, tmp_path_factory) -> Runs:
    """Prepare a folder of recordings, fill the caches and train both stages for two steps."""
    folder = tmp_path_factory.mktemp("real")
    recordings = folder / "recordings"
    recordings.mkdir()
    for line in shortest(COUNT):
        shutil.copy(SPEECH / line["audio"], recordings)
        (recordings / f"{line['id']}.txt").write_text(line["text"], encoding="utf-8")
    prepared = ossicle("prepare", "folder", recordings, folder / "prepared", "--language", "en")
    manifest, tasks = folder / "prepared" / "speech.jsonl", folder / "tasks.jsonl"
    write_tasks(manifest, tasks)
    encoder, llm = (str(real_models[name]) for name in ("whisper-tiny.en", "smollm2-135m-instruct"))
    models = {"encoder": encoder, "llm": llm, "llm_dtype": "bfloat16", "encoder_context": "audio"}
    tree = {
        "name": "pretrained",
        "output_dir": str(folder / "runs"),
        "model": {**models, "projector": PROJECTOR},
        "data": {
            "train": [str(manifest)],
            "batch_size": COUNT,
            "cache_frames": True,
            "cache_text": True,
            "cache_dir": str(folder / "cache"),
        },
        "objective": {"name": "contrastive", "similarity": "wasserstein"},
        "train": {"steps": 2, "cpu": True, "tensorboard": False, "log_every": 1},
    }
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tree), encoding="utf-8")
    ossicle("cache", recipe)
    pretrained = Path(ossicle("train", recipe).strip().splitlines()[-1])
    changes = [f"data.train=[{tasks}]", "data.cache_text=false", "objective={name: next_token}"]
    second = ossicle("train", recipe, "name=tuned", f"train.init_from={pretrained}", *changes)
    tuned = Path(second.strip().splitlines()[-1])
    return Runs(folder, recipe, manifest, tasks, pretrained, tuned, prepared)


def test_a_folder_of_recordings_is_prepared_and_both_stages_train(runs):
    assert len(read_manifest(runs.manifest)) == COUNT
    assert "speech" in runs.prepared
    for folder in (runs.pretrained, runs.tuned):
        losses = [record["loss"] for record in read_metrics(folder / "metrics.jsonl") if record["split"] == "train"]
        assert len(losses) == 2
        assert all(loss is not None and loss > 0 for loss in losses)
    assert list((runs.folder / "cache").glob("frames-*/*.safetensors"))
    found = json.loads(ossicle("stats", runs.manifest, runs.tasks, "--json"))
    assert "asr" in json.dumps(found)


def test_the_doctor_finds_no_error(runs):
    said = ossicle("doctor", runs.recipe, "name=new", "data.cache_frames=false", "data.cache_text=false")
    assert "0 errors" in said


def test_a_resumed_run_goes_on(runs):
    ossicle("train", runs.recipe, "train.steps=3", "--resume")
    assert [r["step"] for r in read_metrics(runs.pretrained / "metrics.jsonl") if r["split"] == "train"] == [1, 2, 3]


def test_tasks_are_decoded_and_scored(runs):
    options = ["--max-new-tokens", "8", "--batch-size", "12"]
    ossicle("evaluate", runs.tuned, runs.tasks, *options)
    ossicle("evaluate", runs.tuned, runs.tasks, "--from-text", *options)
    files = [runs.tuned / "eval" / f"{runs.tasks.stem}{kind}.jsonl" for kind in ("", "-text")]
    for file in files:
        assert {one.id for one in read_hypotheses(file)} == {sample.id for sample in read_manifest(runs.tasks)}
    scores = json.loads(ossicle("score", *files, "--json", "--resamples", "50"))
    metrics = json.dumps(scores)
    assert all(f'"{name}"' in metrics for name in ("wer", "bleu", "f1"))
    ossicle("evaluate", runs.tuned, runs.tasks, "--cascade", *options)  # Whisper brings its decoder


def test_recordings_are_answered(runs, monkeypatch):
    """Two training steps teach nothing, so that only the form of the answers is known; they are cut after 8 tokens."""
    monkeypatch.setattr("ossicle.models.generation.MAX_NEW_TOKENS", 8)
    files = sorted((runs.folder / "recordings").glob("*.flac"))[:2]
    for command in (["transcribe"], ["translate", "--to", "de"], ["ask", "What is the first word?"]):
        lines = ossicle(*command, *files, "--model", runs.tuned).splitlines()
        for file in files:
            assert any(line.startswith(f"{file}: ") for line in lines), (command, lines)


def test_words_are_aligned_by_a_ctc_model_and_not_by_whisper(runs, real_models, tmp_path):
    pytest.importorskip("ossicle_lab", reason="the aligner's model is in the package ossicle-lab")
    out = tmp_path / "aligned.jsonl"
    ossicle("align", runs.manifest, "--out", out)
    for sample in read_manifest(out):
        assert [word for word, _, _ in sample.extra["words"]] == (sample.text or "").split()
    with pytest.raises(ModelError, match="whisper-tiny"):
        ossicle("align", runs.manifest, "--out", out, "--model", real_models["whisper-tiny.en"])


def test_a_run_is_analysed_and_reported(runs, tmp_path):
    pytest.importorskip("ossicle_lab", reason="these commands are in the package ossicle-lab")
    ossicle("analyze", runs.pretrained, runs.manifest, "--out", tmp_path / "analysis", "--no-probes")
    assert list((tmp_path / "analysis").iterdir())
    ossicle("report", runs.pretrained, "--out", tmp_path / "report.html", "--audio", "0")
    assert "pretrained" in (tmp_path / "report.html").read_text(encoding="utf-8")
    changes = ["data.batch_size=2", "objective.layers=[0,1]"]
    out = tmp_path / "gradients.json"
    ossicle("layer-gradients", runs.pretrained, *changes, "--batches", "2", "--out", out)
    assert json.loads(out.read_text(encoding="utf-8"))
