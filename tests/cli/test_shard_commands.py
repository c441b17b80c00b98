"""Commands in parts: ``--shard I/N`` gives the files of one call."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from ossicle.cli.main import app
from ossicle.errors import ConfigError


def ossicle(*arguments: object):
    return CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False, standalone_mode=False)


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


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


def test_prepare_tts(tmp_path):
    pytest.importorskip("espeakng_loader")
    texts = tmp_path / "t.txt"
    texts.write_text("".join(f"number {i % 5} is {word}.\n" for i, word in enumerate(["red", "blue", "good"] * 3)))
    ossicle("prepare-tts", texts, tmp_path / "a", "--limit", 7)
    ossicle("prepare-tts", texts, tmp_path / "b", "--limit", 7, "--shard", "2/2")
    assert len(list(tmp_path.glob("b/audio/*.wav"))) == 3  # a part speaks its own texts only
    ossicle("prepare-tts", texts, tmp_path / "b", "--limit", 7, "--shard", "1/2")
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert len(files(tmp_path / "b")) == 7 + 2  # t.jsonl and prepare.json


@pytest.mark.parametrize(
    ("arguments", "address"),
    [
        (("jsonl", "SOURCE", "OUT", "--ray"), "local"),
        (("--ray", "jsonl", "SOURCE", "OUT"), "local"),
        (("jsonl", "SOURCE", "--ray", "OUT"), "local"),
        (("jsonl", "SOURCE", "OUT", "--ray", "--blocks", "7"), "local"),
        (("--ray", "local", "jsonl", "SOURCE", "OUT"), "local"),
        (("--ray", "auto", "jsonl", "SOURCE", "OUT"), "auto"),
        (("--ray", "10.0.0.1:6379", "jsonl", "SOURCE", "OUT"), "10.0.0.1:6379"),
        (("--ray", "ray://head:10001", "jsonl", "SOURCE", "OUT"), "ray://head:10001"),
        (("--ray=head:1", "--", "jsonl", "SOURCE", "OUT"), "head:1"),
    ],
)
def test_the_address_of_ray_may_be_left_out(tmp_path, task_manifest, monkeypatch, arguments, address):
    places, addresses = {"SOURCE": task_manifest.parent, "OUT": tmp_path / "out"}, []
    monkeypatch.setattr("ossicle.on_ray.run_shards", lambda *given, **settings: addresses.append(settings["address"]))
    ossicle("prepare", *(places.get(argument, argument) for argument in arguments))
    assert addresses == [address]
    assert (tmp_path / "out" / "prepare.json").exists()


def test_options_that_exclude_each_other(tmp_path, task_manifest):
    given = ("prepare", "jsonl", task_manifest.parent, tmp_path / "a")
    with pytest.raises(Exception, match="--shard and --ray exclude each other"):
        ossicle(*given, "--shard", "1/2", "--ray", "local")
    with pytest.raises(ConfigError, match="write I/N"):
        ossicle(*given, "--shard", "half")
    assert not (tmp_path / "a").exists()
