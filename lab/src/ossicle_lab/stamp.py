"""Keep runs of different sizes or recipes out of one folder."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ossicle.errors import ConfigError
from ossicle.files import write_json
from ossicle_lab.recipes import is_study

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def claim_folder(stamp_file: Path, scale: DataclassInstance, recipes: Path) -> None:
    """Write ``scale`` and the recipes (not the studies) of a folder to ``stamp_file``, or compare with what it holds.

    Raises `ConfigError` if the folder of ``stamp_file`` belongs to a run with another scale or other recipes.
    """
    paths = (path for path in sorted(recipes.glob("*.yaml")) if not is_study(path))
    texts = {path.stem: path.read_text(encoding="utf-8") for path in paths}
    stamp = json.loads(json.dumps({"scale": asdict(scale), "recipes": texts}))
    if stamp_file.is_file() and json.loads(stamp_file.read_text(encoding="utf-8")) != stamp:
        raise ConfigError(
            f"{stamp_file.parent}: holds a run of another size or with other recipes; delete it or give another --out"
        )
    stamp_file.parent.mkdir(parents=True, exist_ok=True)
    write_json(stamp_file, stamp)
