"""Offline work on Ray gives the bytes of a call without it, and repeats only unfinished parts."""

import json
import os
import socket
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from miniature_work import counted, killed_once
from ossicle.cli.main import app
from ossicle.errors import MissingPackageError, OssicleError
from ossicle.on_ray import run_shards

ray = pytest.importorskip("ray", reason="the extra ray is not installed")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """Two processes on this machine; the workers find the modules of the tests."""
    paths = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {"env_vars": {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}}
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env=environment)
    yield
    ray.shutdown()


def ossicle(*arguments: object) -> str:
    result = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False, standalone_mode=False)
    return result.output


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def test_evaluate(tmp_path, model, task_manifest):
    model.save_pretrained(tmp_path / "model")
    given = ("evaluate", tmp_path / "model", task_manifest, "--batch-size", 2, "--max-new-tokens", 3, "--no-honesty")
    ossicle(*given, "--out", tmp_path / "a" / "h.jsonl")
    ossicle(*given, "--out", tmp_path / "b" / "h.jsonl", "--ray", "local", "--blocks", 2)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert {"h.jsonl", "h.meta.json", "h.scores.json"} <= set(files(tmp_path / "b"))


def test_score(tmp_path):
    lines = [
        {"id": f"u{i}", "language": "en", "hypothesis": "a red car " * (i % 4), "references": ["a blue car"]}
        for i in range(7)
    ]
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "h.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = ("score", "--json", "--resamples", 20)
    printed = [
        ossicle(*given, tmp_path / "a" / "h.jsonl"),
        ossicle(*given, tmp_path / "b" / "h.jsonl", "--ray", "local", "--blocks", 3),
    ]
    whole, divided = (json.JSONDecoder().raw_decode(text, text.index("{\n"))[0]["runs"] for text in printed)
    assert [*divided.values()] == [*whole.values()]
    assert set(files(tmp_path / "b")) == {"h.jsonl"}


def test_prepare_tts_with_the_default_address(tmp_path):
    pytest.importorskip("espeakng_loader")
    (tmp_path / "t.txt").write_text("one red car\ntwo blue cars\nthree good words\n")
    ossicle("prepare-tts", tmp_path / "t.txt", tmp_path / "a")
    ossicle("prepare-tts", "--ray", tmp_path / "t.txt", tmp_path / "b", "--blocks", 2)
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_a_restart_repeats_only_what_has_failed(tmp_path):
    (tmp_path / "bad").touch()
    with pytest.raises(OssicleError, match=r"shard 3/4: block 3 is bad\n.*repeat only these parts"):
        run_shards(counted, (tmp_path,), count=4, address="local", title="counting")
    (tmp_path / "bad").unlink()
    run_shards(counted, (tmp_path,), count=4, address="local", title="counting")
    assert {path.name: path.read_text() for path in tmp_path.glob("done-*")} == {
        "done-1": "x", "done-2": "x", "done-3": "x", "done-4": "x",
    }  # fmt: skip


def test_a_killed_process_is_replaced_and_its_part_is_done_again(tmp_path):
    run_shards(killed_once, (tmp_path,), count=4, address="local", title="counting")
    assert (tmp_path / "killed").exists()
    assert {path.name: path.read_text() for path in tmp_path.glob("done-?")} == {
        "done-1": "x", "done-2": "x", "done-3": "x", "done-4": "x",
    }  # fmt: skip


def test_without_ray_the_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'ossicle\[ray\]'"):
        run_shards(counted, (tmp_path,), count=1, address="local", title="x")


def test_an_address_that_cannot_be_used_is_named(monkeypatch, tmp_path):
    with pytest.raises(OssicleError, match=r"--ray ray://head:1: .* write `auto`, or HOST:PORT"):
        run_shards(counted, (tmp_path,), count=1, address="ray://head:1", title="x")

    def no_token(**_: object) -> None:
        raise ray.exceptions.AuthenticationError("no token")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", no_token)
    with socket.create_server(("127.0.0.1", 0)) as head:  # something must listen
        address = f"127.0.0.1:{head.getsockname()[1]}"
        with pytest.raises(OssicleError, match=rf"--ray {address}: no cluster answers \(no token.*RAY_AUTH_MODE=token"):
            run_shards(counted, (tmp_path,), count=1, address=address, title="x")
