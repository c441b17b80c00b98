"""What the page shows of a single run: its loss, its evaluations, its configuration and versions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ossicle.train.loop import CONFIG_FILE
from ossicle.train.tracking import METRICS_FILE, read_metrics
from ossicle_lab.report.curves import LossCurve, loss_chart
from ossicle_lab.report.recordings import Recording, recordings

VERSIONS = "versions.json"


class RunView:
    """A run's folder, arranged for the template."""

    def __init__(self, folder: Path, *, count: int) -> None:
        self.folder, self.title = folder, folder.name
        self.config = (folder / CONFIG_FILE).read_text(encoding="utf-8")
        versions = folder / VERSIONS
        self.provenance: dict[str, Any] = json.loads(versions.read_text(encoding="utf-8")) if versions.is_file() else {}
        self._scores = sorted((folder / "eval").glob("*.scores.json"))
        files = {path.name.removesuffix(".scores.json"): self._hypotheses(path) for path in self._scores}
        self.recordings: list[Recording] = recordings(files, count, ["asr", "st", "qa"])

    def curves(self) -> list[Markup]:
        """Training loss, and that on the development data where there is one."""
        path = self.folder / METRICS_FILE
        records = read_metrics(path) if path.is_file() else []
        splits = [split for split in ("train", "dev") if any(r["split"] == split for r in records)]
        lines = [LossCurve(split, look, path, split) for look, split in enumerate(splits, start=1)]
        return [loss_chart("Loss", lines)] if lines else []

    def evaluations(self) -> list[tuple[str, list[dict[str, Any]]]]:
        """Scored files of ``eval/`` with their rows."""
        return [
            (path.name.removesuffix(".scores.json"), json.loads(path.read_text(encoding="utf-8"))["rows"])
            for path in self._scores
        ]

    def _hypotheses(self, scores: Path) -> Path:
        return scores.with_name(scores.name.replace(".scores.json", ".jsonl"))
