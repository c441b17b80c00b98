"""Test README and docs: their Python runs, their commands parse, and the files that they name exist.

The Python blocks of a page run in order in one namespace, in a folder that `workplace` fills with the files that
the pages name. A line ``print(...)  # → text`` must print that text. A block ```` ```python no-run ```` does not run.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from accelerate.state import AcceleratorState
from typer.main import get_command

import ossicle_lab.models
from ossicle.cli.main import app
from ossicle.data.manifest import read_manifest
from ossicle.evaluate import metrics
from ossicle.models.projectors import QFormerConfig
from ossicle.models.speech_llm import ModelConfig
from ossicle.testing import tiny_encoder, tiny_llm, tiny_manifest
from ossicle.train import recipe as config
from places import CORE_RECIPES, ROOT

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted(CORE_RECIPES.glob("*/*.md")),
    ROOT / "lab" / "README.md",
]
# Folders in which a path such as `data/manifest.py` may be, besides the folder of the page.
CODE = [ROOT, ROOT / "src" / "ossicle", ROOT / "lab" / "src" / "ossicle_lab"]
FENCE = re.compile(r"^```(\S*)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PRINTS = re.compile(r"^ *print\(.*\)  # → (.*)$", re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:)([^)#]+)")
CODE_PATH = re.compile(r"`([\w./-]+\.(?:py|md|yaml|toml|svg)|[\w./-]+/)`")
MADE_BY_USE = ("runs/", "my/", "corpus/", "tour/")


@dataclass(frozen=True)
class Block:
    """Hold one fenced block; ``line`` is the line of its first line in the page."""

    language: str
    info: str
    text: str
    line: int


def blocks(page: Path, language: str) -> list[Block]:
    """Return the fenced blocks of ``page`` in ``language``."""
    text = page.read_text(encoding="utf-8")
    found = [Block(m[1], m[2].strip(), m[3], text[: m.start()].count("\n") + 2) for m in FENCE.finditer(text)]
    return [block for block in found if block.language == language]


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


def runnable(page: Path) -> list[Block]:
    return [block for block in blocks(page, "python") if block.info != "no-run"]


def yaml_files(page: Path) -> dict[str, str]:
    """Return the recipes on a page by name: YAML blocks that begin with ``# name.yaml``."""
    named = [(re.match(r"# (\S+\.yaml)\n", block.text), block.text) for block in blocks(page, "yaml")]
    return {match[1]: text for match, text in named if match}


def commands(page: Path) -> list[tuple[int, str]]:
    """Return every ``ossicle ...`` command with its line: those in shell blocks, and inline ones with a subcommand."""
    found = []
    for block in blocks(page, "sh"):
        for match in re.finditer(r"^ossicle (?:.*\\\n)*.*", block.text, re.MULTILINE):
            found.append((block.line + block.text[: match.start()].count("\n"), match[0].replace("\\\n", " ")))
    text = FENCE.sub(lambda match: "\n" * match[0].count("\n"), page.read_text(encoding="utf-8"))
    for match in re.finditer(r"`(ossicle [a-z][^`]*)`", text):
        found.append((text[: match.start()].count("\n") + 1, match[1]))
    return found


@pytest.fixture(scope="module")
def lab_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make tiny random models, which replace the laboratory's to save time."""
    folder = tmp_path_factory.mktemp("weights")
    tiny_encoder(folder / "encoder")
    tiny_llm(folder / "llm")
    return folder


@pytest.fixture
def workplace(tmp_path: Path, lab_weights: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Make the working directory of a reader who ran the demo and has two recordings and two manifests."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ossicle_lab.models, "weights", lambda part: str(lab_weights / part))
    monkeypatch.setattr(metrics, "METRICS", dict(metrics.METRICS))
    tiny_manifest(Path("my"), 8).rename("my/speech.jsonl")
    tiny_manifest(Path("my"), 6, tasks=("asr", "st", "qa"), seed=1).rename("my/tasks.jsonl")
    shutil.copy("my/0-0.wav", "recording.wav")
    shutil.copy("my/0-1.wav", "another.wav")
    tiny_manifest(Path("corpus"), 3)
    rows = [f"0-{i}.wav\tspeaker{i}\tone two" for i in range(3)]
    Path("corpus/transcripts.tsv").write_text("\n".join(rows) + "\n")
    for folder in ("runs/demo/model", "ears"):  # a folder of this name is preferred to the packaged checkpoint
        ModelConfig(projector=QFormerConfig(width=16, heads=2, layers=1, ffn=16)).build().save(folder)
    AcceleratorState._reset_state(True)  # other tests in this process may have set another precision
    yield tmp_path
    AcceleratorState._reset_state(True)


@pytest.mark.parametrize("page", [page for page in PAGES if runnable(page)], ids=page_id)
def test_python_on_the_page_runs_and_prints_what_it_says(
    page: Path, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    namespace: dict[str, object] = {"__name__": "__main__"}
    for block in runnable(page):
        capsys.readouterr()
        padded = "\n" * (block.line - 1) + block.text  # so that a traceback names the line of the page
        exec(compile(padded, page_id(page), "exec", dont_inherit=True), namespace)
        promised = PRINTS.findall(block.text)
        assert capsys.readouterr().out.splitlines()[: len(promised)] == promised, f"{page_id(page)}:{block.line}"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_commands_parse(page: Path, workplace: Path) -> None:
    for name, text in yaml_files(page).items():
        Path(name).write_text(text)
    for line, command in commands(page):
        _, name, *arguments = shlex.split(command, comments=True)
        where = f"{page_id(page)}:{line}: {command}"
        subcommand = get_command(app).commands.get(name)  # type: ignore[attr-defined]
        assert subcommand is not None, f"{where}: there is no such command"
        if not arguments:  # a sentence names the command without its arguments
            continue
        context = subcommand.make_context(name, arguments)  # raises for options that do not exist
        if name == "train":
            config.load(context.params["recipe"], context.params["overrides"])


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_recipes_on_the_page_are_valid(page: Path, workplace: Path) -> None:
    for name, text in yaml_files(page).items():
        Path(name).write_text(text)
        assert config.load(name).objective.name == yaml.safe_load(text)["objective"]["name"]


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_manifest_lines_on_the_page_are_valid(page: Path, workplace: Path) -> None:
    for block in (block for block in blocks(page, "json") if '"audio"' in block.text):
        Path("shown.jsonl").write_text(block.text, encoding="utf-8")
        assert len(read_manifest("shown.jsonl")) == len(block.text.splitlines())


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_files_that_the_page_names_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for link in LINK.findall(text):
        assert (page.parent / link).exists(), f"{page_id(page)}: link to {link}"
    for name in CODE_PATH.findall(FENCE.sub("", text)):
        found = any((folder / name).exists() for folder in (*CODE, page.parent))
        assert found or name.startswith(MADE_BY_USE), f"{page_id(page)}: there is no {name}"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_make_targets_that_the_page_names_exist(page: Path) -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    named = re.findall(r"(?:`|^)make ([a-z]+)", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(named) <= set(targets)


def test_every_page_of_docs_is_in_the_navigation_of_the_site() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    assert pages <= set(re.findall(r": (\S+\.md)$", navigation, re.MULTILINE))


def test_the_picture_is_well_formed_and_brings_its_own_background() -> None:
    root = ElementTree.parse(ROOT / "docs" / "method.svg").getroot()
    shapes = [element for element in root if element.tag.endswith("rect")]
    _, _, width, height = root.attrib["viewBox"].split()
    assert (shapes[0].get("width"), shapes[0].get("height")) == (width, height)
