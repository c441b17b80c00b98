"""The program `ossicle`: all commands, and what the user sees when one fails.

Every command imports what it needs when it runs, so that ``--help`` does not wait for PyTorch.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, metadata
from typing import Annotated, Any

import typer

from ossicle import __version__
from ossicle.cli import answers, data, evaluate, export, listen, serve, train
from ossicle.errors import MissingPackageError, OssicleError

COMMANDS_GROUP = "ossicle.commands"
"""Entry points by which installed packages add commands: command name -> function for typer."""
LAB_COMMANDS = ("analyze", "demo", "layer-gradients", "report", "study")
ANY_ARGUMENTS = {"allow_extra_args": True, "ignore_unknown_options": True}
MEMORY_HINT = "Reduce data.batch_size or --batch-size, or close other programs on the device."


def create_app() -> typer.Typer:
    """Return the program with the commands of Ossicle and of all installed packages."""
    app = typer.Typer(
        name="ossicle",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_callback)
    for group in (train, listen, serve, export, evaluate, data, answers):
        group.add_to(app)
    app.command()(version)
    _add_commands_of_packages(app)
    return app


def version() -> None:
    """Print the version."""
    print(__version__)


def main() -> None:
    """Run a command and exit with its status.

    An error that the user can fix is printed as one message. Any other exception is a bug, and the message says how to
    report it. The status is 1 for both, and 130 for an interrupt. ``OSSICLE_DEBUG=1`` shows the traceback instead.
    """
    default = warnings.formatwarning
    if not os.environ.get("OSSICLE_DEBUG"):
        warnings.formatwarning = _format_warning
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if os.environ.get("OSSICLE_DEBUG"):
            raise
        _print_error(error)
        sys.exit(1)
    finally:
        warnings.formatwarning = default


def _format_warning(message: Warning | str, category: type[Warning], *place: object, **line: object) -> str:
    """Return a warning as one line for users, without the place in the code."""
    return f"warning: {message}\n" if category is UserWarning else f"{category.__name__}: {message}\n"


def _show_version(wanted: bool) -> None:
    if wanted:
        version()
        raise typer.Exit


def _callback(
    show_version: Annotated[
        bool, typer.Option("--version", "-V", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Teach a frozen LLM to listen: contrastive SpeechLLM pretraining."""


def _add_commands_of_packages(app: typer.Typer) -> None:
    """Add the commands that packages register, and a hint for each command of the laboratory if it is missing."""
    found = {entry.name: entry for entry in entry_points(group=COMMANDS_GROUP)}
    for name, entry in sorted(found.items()):
        try:
            command = entry.load()
        except Exception as error:  # a broken package must not take `ossicle train` with it
            app.command(name, hidden=True, context_settings=ANY_ARGUMENTS)(_unloadable(entry, error))
        else:
            app.command(name, rich_help_panel="Other packages")(command)
    for name in LAB_COMMANDS:
        if name not in found:
            app.command(name, hidden=True, context_settings=ANY_ARGUMENTS)(_missing(name))


def _unloadable(entry: EntryPoint, error: Exception) -> Callable[[], None]:
    def run() -> None:
        package = entry.dist.name if entry.dist else entry.value
        raise OssicleError(
            f"`ossicle {entry.name}` cannot be loaded from the package {package} ({error}): reinstall the package"
        ) from error

    return run


def _missing(name: str) -> Callable[[], None]:
    def run() -> None:
        raise MissingPackageError(
            f"`ossicle {name}` is part of the package ossicle-lab, which is not installed: "
            "run `pip install ./lab` in a checkout of Ossicle"
        )

    return run


def _print_error(error: Exception) -> None:
    """Print ``error`` on the standard error stream; only exceptions that a user cannot cause are called bugs."""
    from rich.console import Console

    console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    if isinstance(error, OssicleError | OSError):
        lines = [_describe(error)]
    elif type(error).__name__ == "OutOfMemoryError":  # PyTorch's class, which must not be imported here
        lines = [f"{str(error).splitlines()[0]} {MEMORY_HINT}"]
    else:
        lines = [
            f"{type(error).__name__}: {error}",
            f"This is a bug in Ossicle. Please report the command and its traceback{_report_address()}.",
        ]
    console.print("error: ", style="bold red", end="")
    for line in lines:
        console.print(line)
    console.print("Set OSSICLE_DEBUG=1 to see the traceback.", style="dim")


def _describe(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__


def _report_address() -> str:
    """Return `` at ADDRESS`` of the issue tracker, or nothing if the metadata of the package is not installed."""
    try:
        urls: list[Any] = metadata("ossicle").get_all("Project-URL") or []
    except PackageNotFoundError:
        return ""
    found = dict(str(url).split(", ", 1) for url in urls)
    return f" at {found['Issues']}" if "Issues" in found else ""


app = create_app()

if __name__ == "__main__":
    main()
