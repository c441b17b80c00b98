"""The structure of the code: every module can be imported first, and the command line starts without torch."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import pytest

from places import ROOT

PACKAGES = {"ossicle": ROOT / "src", "ossicle_lab": ROOT / "lab" / "src"}
# For our modules, a fork of a process that has imported only other people's packages is a fresh interpreter.
IMPORT_EACH = """
import os, sys
import accelerate, peft, pydantic, torch, transformers, typer
failed = []
for module in sys.argv[1:]:
    assert not any(name.split(".")[0].startswith("ossicle") for name in sys.modules)
    if (child := os.fork()) == 0:
        try:
            __import__(module)
        except BaseException as error:
            print(f"{module}: {error!r}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        failed.append(module)
sys.exit(f"cannot be imported first: {failed}" if failed else 0)
"""
OPTIONAL = {"ossicle.losses.sinkhorn_triton": "triton"}
"""Modules that need a package which the tests do not install."""


def modules() -> list[str]:
    found = []
    for package, folder in PACKAGES.items():
        for path in sorted((folder / package).rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            found.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    absent = {name for name, package in OPTIONAL.items() if find_spec(package) is None}
    return [name for name in found if not name.endswith("__main__") and name not in absent]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=ROOT.parent, check=False)


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="needs os.fork")
def test_every_module_can_be_imported_first() -> None:
    names = modules()
    assert len(names) > 150
    done = run("-c", IMPORT_EACH, *names)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "code",
    [
        "import ossicle",
        "import ossicle.cli.main",
        "from typer.testing import CliRunner; from ossicle.cli.main import app; "
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0",
        "from typer.testing import CliRunner; from ossicle.cli.main import app; "
        "assert CliRunner().invoke(app, ['train', '--help']).exit_code == 0",
    ],
)
def test_the_command_line_starts_without_torch(code: str) -> None:
    done = run("-c", f"import sys; {code}; assert not {{'torch', 'transformers'}} & set(sys.modules)")
    assert done.returncode == 0, done.stderr
