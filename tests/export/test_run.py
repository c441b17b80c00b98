"""`ossicle export`: from a saved checkpoint to a folder, with its refusals."""

from __future__ import annotations

import subprocess
import sys

import pytest
import typer
from exported import clips, exported_ids, heard, load, original_ids
from typer.testing import CliRunner

from ossicle.cli.export import add_to
from ossicle.errors import CheckpointError, ConfigError, ModelError
from ossicle.export.run import export

QFORMER = {"name": "qformer", "width": 16, "heads": 2, "layers": 1, "ffn": 24, "queries": 2, "window_s": 0.1}


@pytest.fixture
def checkpoint(speaker, tmp_path):
    model = speaker("hubert", "llama", QFORMER)
    model.instructions = {"asr": "Repeat it."}
    model.save(tmp_path / "run")
    return model, tmp_path / "run"


def app():
    program = typer.Typer()
    program.command()(lambda: None)
    add_to(program)
    return program


def test_a_checkpoint_is_exported_by_the_command(checkpoint, tmp_path):
    model, run = checkpoint
    done = CliRunner().invoke(app(), ["export", str(run), str(tmp_path / "out"), "--merge"])
    assert done.exit_code == 0, done.output
    assert "out: custom, " in done.output and "MB" in done.output
    exported, processor = load(tmp_path / "out")
    batch = clips(3)
    assert exported_ids(exported, processor, model, batch) == original_ids(model, heard(model, batch))


def test_the_card_says_how_the_export_is_used(checkpoint, tmp_path):
    _, run = checkpoint
    card = (export(run, tmp_path / "out") / "README.md").read_text()
    assert "AutoModelForMultimodalLM" in card and "from ossicle import" not in card
    assert '"text": "Repeat it."' in card and "library_name: transformers" in card
    (run / "README.md").write_text("# Mine\n\nWords.\n")
    own = (export(run, tmp_path / "own") / "README.md").read_text()
    assert own.startswith("# Mine\n\nWords.") and "AutoModelForMultimodalLM" in own


def test_the_code_in_the_card_runs(checkpoint, tmp_path, monkeypatch, capsys):
    import re

    import soundfile

    model, run = checkpoint
    card = (export(run, tmp_path / "out") / "README.md").read_text()
    [code] = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    soundfile.write("recording.wav", clips(1)[0], 16_000, subtype="FLOAT")
    exec(code.replace("FOLDER OR HUB ID", str(tmp_path / "out")), {})
    said = capsys.readouterr().out.split("\n")[0].strip()
    assert said == model.llm.generate(heard(model, clips(1)))[0]


def test_a_folder_with_files_is_replaced_only_on_demand(checkpoint, tmp_path):
    _, run = checkpoint
    out = tmp_path / "out"
    export(run, out)
    (out / "old").touch()
    with pytest.raises(ConfigError, match="is not empty: name a new folder, or add --force"):
        export(run, out)
    assert (out / "old").exists()
    export(run, out, force=True)
    assert not (out / "old").exists() and (out / "config.json").exists()


def test_nothing_but_an_export_is_deleted(checkpoint, tmp_path):
    _, run = checkpoint
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").touch()
    for place in (tmp_path / "mine", run, tmp_path):
        with pytest.raises(ConfigError, match="which --force would delete"):
            export(run, place, force=True)
    (run / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="which --force would delete"):
        export(run, run, force=True)
    with pytest.raises(ConfigError, match="is a file"):
        export(run, tmp_path / "mine" / "letter.txt")


def test_a_failed_export_leaves_nothing(checkpoint, tmp_path):
    _, run = checkpoint
    with pytest.raises(ModelError, match="Ultravox has the projector stack-mlp"):
        export(run, tmp_path / "out", form="ultravox")
    assert not (tmp_path / "out").exists()
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        export(tmp_path / "none", tmp_path / "out")


def test_base_models_that_moved_are_named_in_the_export(checkpoint, bases, tmp_path):
    import json
    import shutil

    _, run = checkpoint
    moved = shutil.copytree(bases("llama"), tmp_path / "moved")
    export(run, tmp_path / "out", llm=str(moved))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["text_model_id"] == str(moved) and config["audio_model_id"] == str(bases("hubert"))


def test_the_help_does_not_import_torch():
    program = (
        "import sys, typer; from typer.testing import CliRunner; from ossicle.cli.export import add_to\n"
        "app = typer.Typer(); app.command()(lambda: None); add_to(app)\n"
        "done = CliRunner().invoke(app, ['export', '--help']); assert '--merge' in done.output, done.output\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
