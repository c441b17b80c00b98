"""A study of two rows on tiny random models: everything real but the size."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ossicle.testing import tiny_manifest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Measure the coverage of the core by its own tests alone, which makes these a third faster."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.no_cover)


@pytest.fixture
def study_tree(tree: Callable[..., dict[str, Any]], manifest: Path, tmp_path: Path) -> dict[str, Any]:
    """The study as plain values; its recipes lie beside ``tmp_path / "study.yaml"``."""
    tasks = tiny_manifest(tmp_path / "tasks", 12, tasks=("asr", "st", "qa"), seed=2)
    test = tiny_manifest(tmp_path / "test", 12, tasks=("asr", "st", "qa"), seed=3)
    lines = [json.loads(line) for line in test.read_text().splitlines()]
    count = {"task": "count", "instruction": "how many words", "answer": "two", "target_language": None}
    unseen = [{**line, "id": f"{line['id']}-count", **count} for line in lines[::3]]
    test.write_text("".join(json.dumps(line) + "\n" for line in [*lines, *unseen]))
    for name, objective in (("contrastive", {"name": "contrastive"}), ("finetune", {"name": "next_token"})):
        recipe = tree(objective=objective)
        for generated in ("name", "output_dir"):
            del recipe[generated]
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
    return {
        "name": "mini",
        "output_dir": str(tmp_path / "runs"),
        "data": {
            "pretrain": [str(manifest)],
            "finetune": [str(tasks)],
            "dev": [str(tasks)],
            "test": [str(test)],
            "alignment": [str(manifest)],
            "unseen": ["count"],
        },
        "pretraining": {
            "none": {"recipe": None, "finetune_steps": {1.0: 3}},
            "contr": {"recipe": "contrastive.yaml", "seeds": [0, 1]},
        },
        "stage1": {"steps": 3},
        "finetuning": {"recipe": "finetune.yaml", "steps": {0.5: 1, 1.0: 2}},
        "seeds": [0],
        "claim": {"contrastive": ["contr"], "fraction": 0.5},
        "max_new_tokens": 3,
    }


@pytest.fixture
def study_file(study_tree: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(study_tree))
    return path
