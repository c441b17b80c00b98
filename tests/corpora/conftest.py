"""Fixtures that prepare a miniature corpus."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ossicle.corpora.items import Options
from ossicle.corpora.prepare import prepare
from ossicle.corpora.report import Report
from ossicle.data.manifest import read_manifest
from ossicle.errors import CorpusError


def litter(folder: Path) -> None:
    """Write a hidden file beside every file of a corpus, as macOS does on disks of other systems."""
    for path in [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]:
        (path.parent / f"._{path.name}").write_bytes(b"\x00\x05\x16\x07")


@pytest.fixture
def prepared(tmp_path: Path) -> Callable[..., tuple[dict[str, list[dict[str, Any]]], Report]]:
    """``prepared("mustc", source, targets=("de",))`` returns the lines of each manifest and the report."""

    def run(name: str, source: Path, **options: Any) -> tuple[dict[str, list[dict[str, Any]]], Report]:
        out = tmp_path / "out"
        if source.is_relative_to(tmp_path):
            litter(source)
        report = prepare(name, source, out, Options(**options), jobs=2, show=False)
        files = {path.name.removesuffix(".jsonl"): path for path in sorted(out.glob("*.jsonl"))}
        for manifest in report.manifests:
            read_manifest(files[manifest])  # every line is valid
        return {
            name: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            for name, path in files.items()
        }, report

    return run


@pytest.fixture
def refused(tmp_path: Path) -> Callable[..., str]:
    """``refused("mustc", source, splits=("dev",))`` returns the error message, and checks that nothing is written."""

    def run(name: str, source: Path, **options: Any) -> str:
        with pytest.raises(CorpusError) as caught:
            prepare(name, source, tmp_path / "refused", Options(**options), jobs=2, show=False)
        assert not list(tmp_path.glob("refused/*.jsonl"))
        return str(caught.value)

    return run
