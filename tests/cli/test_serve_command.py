"""The command `ossicle serve`: its options, its errors, and a server that stops in good order."""

import os
import re
import signal
import subprocess
import sys

import pytest
from typer.testing import CliRunner

typer = pytest.importorskip("typer")
from ossicle.cli import serve  # noqa: E402
from ossicle.errors import ConfigError, MissingPackageError  # noqa: E402

HELP = (
    "import sys, typer; from typer.testing import CliRunner; from ossicle.cli.serve import serve; app = typer.Typer(); "
    "app.command()(serve); found = CliRunner().invoke(app, ['--help']); assert found.exit_code == 0; "
    "assert '--llm-url' in found.output; assert not {'torch', 'fastapi', 'pydantic'} & set(sys.modules)"
)
START = "import sys; from ossicle.cli.serve import serve; import typer; typer.run(serve)"


@pytest.fixture
def app():
    program = typer.Typer()
    program.command()(serve.serve)
    return program


def test_help_needs_no_torch():
    done = subprocess.run(
        [sys.executable, "-c", HELP], capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"}
    )
    assert done.returncode == 0, done.stderr


def test_another_host_needs_a_key(app, monkeypatch):
    monkeypatch.delenv("OSSICLE_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="OSSICLE_API_KEY"):
        CliRunner().invoke(app, ["run", "--host", "0.0.0.0"], catch_exceptions=False)


def test_settings_reach_the_server(app, monkeypatch):
    given = {}
    monkeypatch.setattr("ossicle.serve.run.run_server", lambda run, settings, **more: given.update(s=settings, **more))
    monkeypatch.setenv("OSSICLE_API_KEY", "one two")
    options = ["runs/mine", "--host", "0.0.0.0", "--max-batch", "3", "--max-upload-mb", "1.5", "--llm", "moved"]
    found = CliRunner().invoke(app, options, catch_exceptions=False)
    assert found.exit_code == 0
    assert given["s"].api_keys == ("one", "two")
    assert (given["s"].name, given["s"].max_rows, given["s"].max_upload_bytes) == ("mine", 3, 1_500_000)
    assert (given["host"], given["llm"], given["llm_url"]) == ("0.0.0.0", "moved", None)
    CliRunner().invoke(app, ["run", "--api-key", "a", "--speed", "0.9", "--speed", "1.1"], catch_exceptions=False)
    assert given["s"].speeds == (0.9, 1.1)
    CliRunner().invoke(app, ["run", "--api-key", "a", "--api-key", "b"], catch_exceptions=False)
    assert given["s"].api_keys == ("a", "b")


def test_the_place_and_the_name_of_an_llm_elsewhere_reach_the_server(app, monkeypatch):
    given = {}
    monkeypatch.setattr("ossicle.serve.run.run_server", lambda run, settings, **more: given.update(more))
    options = ["run", "--llm-url", "http://127.0.0.1:8001/v1", "--llm-model", "the-llm"]
    assert CliRunner().invoke(app, options, catch_exceptions=False).exit_code == 0
    assert (given["llm_url"], given["llm_model"]) == ("http://127.0.0.1:8001/v1", "the-llm")
    refused = CliRunner().invoke(app, [*options, "--speed", "0.9"])
    assert refused.exit_code == 2
    assert "--speed has no effect with --llm-url" in refused.output


def test_missing_packages_are_named(monkeypatch):
    from ossicle.serve.run import require_packages

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"fastapi.*ossicle\[serve\]"):
        require_packages()


@pytest.mark.slow
def test_a_server_starts_answers_and_stops(build, tmp_path):
    import httpx2 as httpx

    pytest.importorskip("uvicorn")
    build().save(tmp_path / "mine")
    process = subprocess.Popen(
        [sys.executable, "-c", START, str(tmp_path / "mine"), "--port", "0"], stderr=subprocess.PIPE, text=True
    )
    try:
        lines = iter(process.stderr.readline, "")
        port = next(found[1] for line in lines if (found := re.search(r"running on http://127.0.0.1:(\d+)", line)))
        assert httpx.get(f"http://127.0.0.1:{port}/v1/models").json()["data"][0]["id"] == "mine"
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) in (0, -signal.SIGTERM)  # uvicorn raises the signal again after it has stopped
    finally:
        process.kill()
        process.wait()
