"""The two wheels: small, complete, and usable outside the repository."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from ossicle.testing import tiny_encoder, tiny_llm, tiny_manifest
from places import CORE_RECIPES, LAB_RECIPES, ROOT

CORE_AT_MOST_BYTES = 690_000  # server, page and export are 160 kB of it, data at scale and many processes 50 kB
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheels of the core and of the laboratory, built from this checkout."""
    pytest.importorskip("hatchling", reason="needs pip install hatchling build")
    out = tmp_path_factory.mktemp("wheels")
    for project in (ROOT, ROOT / "lab"):
        command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(project)]
        subprocess.run(command, check=True, capture_output=True)
    return {path.name.split("-")[0]: path for path in out.glob("*.whl")}


@pytest.fixture(scope="module")
def outside(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Run]:
    """``outside("ossicle", ...)``: run commands of an environment that holds just these wheels, away from the checkout.

    Dependencies are linked from this environment, all but Ossicle itself: to install them again would take minutes.
    """

    def make(*names: str) -> Run:
        home = tmp_path_factory.mktemp("-".join(names))
        venv.create(home / "env", with_pip=False)
        packages = next((home / "env").glob("lib/python*/site-packages"))
        for place in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
            for entry in Path(place).iterdir():
                if "ossicle" not in entry.name and not (packages / entry.name).exists():
                    (packages / entry.name).symlink_to(entry)
        pip = [sys.executable, "-m", "pip", "--python", str(home / "env/bin/python"), "install", "--no-deps", "--quiet"]
        subprocess.run([*pip, *(str(wheels[name]) for name in names)], check=True)
        (home / "work").mkdir()

        def run(*arguments: str) -> subprocess.CompletedProcess[str]:
            environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
            command = [str(home / "env/bin/python"), *arguments]
            return subprocess.run(
                command, cwd=home / "work", env=environment, capture_output=True, text=True, check=False
            )

        return run

    return make


@pytest.fixture(scope="module")
def core(outside: Callable[..., Run]) -> Run:
    return outside("ossicle")


@pytest.fixture(scope="module")
def both(outside: Callable[..., Run]) -> Run:
    return outside("ossicle", "ossicle_lab")


def test_the_core_is_small_and_has_its_recipes(wheels: dict[str, Path]) -> None:
    assert wheels["ossicle"].stat().st_size < CORE_AT_MOST_BYTES
    names = zipfile.ZipFile(wheels["ossicle"]).namelist()
    recipes = {f"ossicle/recipes/{path.relative_to(CORE_RECIPES)}" for path in CORE_RECIPES.rglob("*.yaml")}
    assert recipes <= set(names)
    assert not [name for name in names if "/weights/" in name or "ossicle_lab" in name]


def test_the_laboratory_brings_weights_recipes_and_templates(wheels: dict[str, Path]) -> None:
    names = zipfile.ZipFile(wheels["ossicle_lab"]).namelist()
    weights = [name for name in names if name.endswith("model.safetensors")]
    assert len(weights) == 2
    assert {f"ossicle_lab/recipes/{path.relative_to(LAB_RECIPES)}" for path in LAB_RECIPES.rglob("*.yaml")} <= set(
        names
    )
    assert [name for name in names if name.endswith(".j2")]


def test_the_core_alone_trains_and_names_the_package_of_the_demo(core: Run, tmp_path: Path) -> None:
    assert core("-c", "import ossicle_lab").returncode != 0
    demo = core("-m", "ossicle", "demo", "--quick")
    assert demo.returncode == 1 and "ossicle-lab" in demo.stderr
    manifest = tiny_manifest(tmp_path / "data", 8)
    encoder, llm = tiny_encoder(tmp_path / "encoder"), tiny_llm(tmp_path / "llm")
    sizes = ["width=16", "heads=2", "layers=1", "ffn=16"]
    trained = core(
        *("-m", "ossicle", "train", "laptop/pretrain", "name=run", f"data.train=[{manifest}]", "data.batch_size=4"),
        *(f"model.encoder={encoder}", f"model.llm={llm}", *(f"model.projector.{size}" for size in sizes)),
        *("train.steps=2", "train.cpu=true", "train.tensorboard=false", "data.dev=[]", "objective.layers=all"),
    )
    assert trained.returncode == 0, trained.stderr
    assert trained.stdout.strip().endswith("run")


def test_the_laboratory_adds_its_commands_models_and_recipes(both: Run) -> None:
    commands = both("-m", "ossicle", "--help").stdout
    assert all(name in commands for name in ("demo", "study", "report", "analyze", "prepare", "train"))
    names = both("-m", "ossicle", "recipes").stdout.split()
    assert {"lab/contr-cos-all", "paper/contr-cos-all"} <= set(names)
    plan = both("-m", "ossicle", "study", "lab/paper_table", "--quick", "--dry-run")
    assert plan.returncode == 0, plan.stderr
    tiny = both("-c", DEMO)
    assert tiny.returncode == 0, tiny.stderr
    assert "no pretraining" in tiny.stdout


DEMO = """
from pathlib import Path
from ossicle_lab.demo.run import Scale, run
if __name__ == "__main__":
    scale = Scale(train=40, dev=2, test=6, stage1_steps={"contrastive": 2, "asr": 2}, stage2_steps=2)
    run(Path("demo"), scale, processes=0)
"""
