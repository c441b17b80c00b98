"""The program around the commands: version, error messages, exit statuses, and commands of other packages."""

import errno
import sys
import warnings
from importlib.metadata import EntryPoint, PackageNotFoundError

import pytest
from typer.testing import CliRunner

from ossicle import __version__
from ossicle.cli import main as program
from ossicle.errors import DataError


class OutOfMemoryError(RuntimeError):
    """Named like PyTorch's class."""


@pytest.fixture
def outcome(monkeypatch, capsys):
    """``outcome("COMMAND", ...)``: the exit status and the text on standard error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["ossicle", *arguments])
        with pytest.raises(SystemExit) as caught:
            program.main()
        return caught.value.code, " ".join(capsys.readouterr().err.split())

    monkeypatch.delenv("OSSICLE_DEBUG", raising=False)
    return run


@pytest.fixture
def failing(monkeypatch):
    """``failing(error)``: add a command ``fail`` that raises ``error``."""

    def add(error):
        def fail() -> None:
            raise error

        app = program.create_app()
        app.command()(fail)
        monkeypatch.setattr(program, "app", app)

    return add


def only(monkeypatch, *entries):
    """Install a program for which ``entries`` are the only entry points."""
    monkeypatch.setattr(program, "entry_points", lambda group: entries)
    monkeypatch.setattr(program, "app", program.create_app())


@pytest.mark.parametrize("arguments", [["--version"], ["-V"], ["version"]])
def test_version(arguments):
    result = CliRunner().invoke(program.app, arguments)
    assert (result.exit_code, result.stdout.strip()) == (0, __version__)


def test_without_a_command_the_help_is_shown():
    assert "transcribe" in CliRunner().invoke(program.app, []).output


def test_an_expected_error_is_one_message(outcome, failing):
    failing(DataError("a.jsonl:3: no [text]; add one"))
    status, said = outcome("fail")
    assert status == 1
    assert said == "error: a.jsonl:3: no [text]; add one Set OSSICLE_DEBUG=1 to see the traceback."


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a.wav"), "error: a.wav: No such file"),
        (OSError(errno.ENOSPC, "No space left on device"), "error: [Errno 28] No space left on device"),
        (OSError("a/b is not a local folder"), "error: a/b is not a local folder"),
        (OutOfMemoryError("CUDA out of memory.\nDetails"), "error: CUDA out of memory. Reduce data.batch_size"),
    ],
)
def test_errors_of_the_machine_are_no_bugs(outcome, failing, error, message):
    failing(error)
    status, said = outcome("fail")
    assert status == 1
    assert said.startswith(message)
    assert "bug" not in said


def test_any_other_exception_is_reported_as_a_bug(outcome, failing, monkeypatch):
    failing(ZeroDivisionError("division by zero"))
    status, said = outcome("fail")
    assert status == 1
    assert said.startswith("error: ZeroDivisionError: division by zero This is a bug in Ossicle.")
    assert "/issues" in said
    assert "Traceback" not in said

    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(program, "metadata", missing)
    assert "its traceback. Set OSSICLE_DEBUG=1" in outcome("fail")[1]


@pytest.mark.parametrize("error", [DataError("wrong"), ZeroDivisionError("division by zero")])
def test_debug_shows_the_traceback(failing, monkeypatch, error):
    failing(error)
    monkeypatch.setattr(sys, "argv", ["ossicle", "fail"])
    monkeypatch.setenv("OSSICLE_DEBUG", "1")
    with pytest.raises(type(error)):
        program.main()


def test_an_interrupt_exits_with_130(outcome, failing, monkeypatch):
    failing(KeyboardInterrupt())
    assert outcome("fail")[0] == 130

    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(program, "app", interrupt)
    assert outcome("version")[0] == 130


def test_usage_errors_exit_with_2(outcome):
    assert outcome("trian")[0] == 2
    assert outcome("train", "--no-such-option")[0] == 2
    status, said = outcome("evaluate", "model", "manifest.jsonl", "--from-text", "--cascade")
    assert status == 2
    assert "exclude each other" in said


@pytest.mark.parametrize("command", [["demo", "--quick"], ["study", "lab/paper_table"], ["report"], ["analyze"]])
def test_without_the_laboratory_its_commands_name_the_package(outcome, monkeypatch, command):
    only(monkeypatch)
    status, said = outcome(*command)
    assert status == 1
    assert f"`ossicle {command[0]}` is part of the package ossicle-lab" in said
    assert "pip install" in said


def test_packages_add_commands(monkeypatch):
    only(monkeypatch, EntryPoint("where", "os:getcwd", program.COMMANDS_GROUP))
    assert "where" in CliRunner().invoke(program.app, ["--help"]).output
    assert CliRunner().invoke(program.app, ["where"]).exit_code == 0


def test_a_broken_package_breaks_only_its_own_command(outcome, monkeypatch):
    only(monkeypatch, EntryPoint("extra", "no_such_package:run", program.COMMANDS_GROUP))
    status, said = outcome("extra", "--anything")
    assert status == 1
    assert "`ossicle extra` cannot be loaded from the package no_such_package:run" in said
    assert CliRunner().invoke(program.app, ["version"]).exit_code == 0


def test_a_warning_is_one_line_without_the_place_in_the_code(outcome, monkeypatch):
    def warn() -> None:
        warnings.warn("look out", stacklevel=1)
        raise DataError("and now it failed")

    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    app = program.create_app()
    app.command("warn")(warn)
    monkeypatch.setattr(program, "app", app)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", lambda *w, **_: sys.stderr.write(warnings.formatwarning(*w[:4])))
        assert outcome("warn")[1].startswith("warning: look out error: and now it failed")
