"""Commands in parts: ``--shard I/N`` gives the files of one call."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from ossicle.cli.main import app
from ossicle.errors import ConfigError


def ossicle(*arguments: object):
    return CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False, standalone_mode=False)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.endswith(".lock")}


def test_evaluate(tmp_path, model, task_manifest):
    model.save_pretrained(tmp_path / "model")
    given = ("evaluate", tmp_path / "model", task_manifest, "--batch-size", 2, "--max-new-tokens", 3, "--no-honesty")
    ossicle(*given, "--out", tmp_path / "a" / "h.jsonl")
    out = tmp_path / "b" / "h.jsonl"
    first = ossicle(*given, "--out", out, "--shard", "2/2")
    assert "shard 2/2 is finished; 1 of 2 are not: 1" in " ".join(first.stderr.split())
    assert not out.exists()
    ossicle(*given, "--out", out, "--shard", "1/2")
    assert files(tmp_path / "b") == files(tmp_path / "a")
    assert {"h.jsonl", "h.meta.json", "h.scores.json"} <= set(files(tmp_path / "b"))
    ossicle(*given, "--out", out, "--shard", "2/2")  # a job that runs again finds the result
    assert files(tmp_path / "b") == files(tmp_path / "a")


def test_prepare(tmp_path, task_manifest):
    ossicle("prepare", "jsonl", task_manifest.parent, tmp_path / "a")
    said = ossicle("prepare", "jsonl", task_manifest.parent, tmp_path / "b", "--shard", "1/2").stdout
    assert "shard 1/2 is finished; 1 of 2 are not: 2" in " ".join(said.split())
    ossicle("prepare", "jsonl", task_manifest.parent, tmp_path / "b", "--shard", "2/2")
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_options_that_exclude_each_other(tmp_path, task_manifest):
    given = ("prepare", "jsonl", task_manifest.parent, tmp_path / "a")
    with pytest.raises(Exception, match="--shard and --ray exclude each other"):
        ossicle(*given, "--shard", "1/2", "--ray", "local")
    with pytest.raises(ConfigError, match="write I/N"):
        ossicle(*given, "--shard", "half")
    assert not (tmp_path / "a").exists()
