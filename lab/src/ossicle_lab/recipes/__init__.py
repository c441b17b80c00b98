"""The recipes and studies of the laboratory, by name: ``lab/asr``, ``lab/paper_table``."""

from __future__ import annotations

from pathlib import Path

import yaml

FOLDER = Path(__file__).parent


def is_study(path: Path) -> bool:
    """Return True if the YAML file ``path`` describes a study, which names recipes, and not a recipe."""
    return "pretraining" in yaml.safe_load(path.read_text(encoding="utf-8"))
