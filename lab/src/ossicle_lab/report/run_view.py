"""Collect what the page shows of a single run: its loss, evaluations, configuration and versions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ossicle.train.run_folder import CONFIG_FILE
from ossicle.train.tracking import METRICS_FILE
from ossicle_lab.report.curves import LossCurve, loss_chart
from ossicle_lab.report.json_files import read_object
from ossicle_lab.report.recordings import Recording, recordings

VERSIONS = "versions.json"
SCORES_SUFFIX = ".scores.json"


class RunView:
    """A run's folder, arranged for the template."""

    def __init__(self, folder: Path, *, count: int, audio_folders: Sequence[Path] = ()) -> None:
        self.folder, self.title = folder, folder.name
        self.config = (folder / CONFIG_FILE).read_text(encoding="utf-8")
        versions = folder / VERSIONS
        self.provenance: dict[str, Any] = read_object(versions) if versions.is_file() else {}
        self._scores = {
            path.name.removesuffix(SCORES_SUFFIX): path for path in sorted((folder / "eval").glob(f"*{SCORES_SUFFIX}"))
        }
        files = {name: path.with_name(f"{name}.jsonl") for name, path in self._scores.items()}
        self.recordings: list[Recording] = recordings(files, count, ["asr", "st", "qa"], [folder, *audio_folders])

    def curves(self) -> list[Markup]:
        """Return one chart of the training loss and, if there is one, the development loss."""
        path = self.folder / METRICS_FILE
        chart = loss_chart("Loss", [LossCurve(split, k, path, split) for k, split in enumerate(("train", "dev"), 1)])
        return [] if chart is None else [chart]

    def evaluations(self) -> list[tuple[str, list[dict[str, Any]]]]:
        """Return the name and the rows of each scored file in ``eval/``."""
        return [(name, read_object(path, "rows")["rows"]) for name, path in self._scores.items()]
