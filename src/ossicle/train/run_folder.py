"""Create the folder of a run, with its settings and the record of how it was made."""

from __future__ import annotations

import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ossicle.errors import ConfigError
from ossicle.files import write_json
from ossicle.objectives import Objective
from ossicle.train import checkpoint
from ossicle.train import recipe as configuration
from ossicle.train.recipe import Config

CONFIG_FILE, VERSIONS_FILE = "config.yaml", "versions.json"


def claim_folder(config: Config, objective: Objective | None, *, resume: bool, first: bool) -> None:
    """Create the run's folder, with its settings and `provenance`; only the ``first`` process writes.

    ``objective`` is the one that was passed to `train`, if any. Raises `ConfigError` if the folder holds a run that is
    not resumed, or if the resumed run had other settings.
    """
    saved = config.folder / CONFIG_FILE
    if resume and not saved.is_file():
        raise ConfigError(f"{config.folder}: there is no run to resume; start it without --resume")
    if resume:
        changed = differences(configuration.to_dict(configuration.load(saved)), configuration.to_dict(config))
        if changed:
            raise ConfigError(
                f"{config.folder} was started with other settings: {', '.join(changed)}; set them back, or choose "
                "another name=…"
            )
    elif checkpoint.latest(config.folder) is not None:
        raise ConfigError(f"{config.folder} holds a run: continue it with --resume, or choose another name=…")
    if first:
        config.folder.mkdir(parents=True, exist_ok=True)
        configuration.save(config, saved)
        record = {**provenance(), "objective": None if objective is None else repr(objective)}
        write_json(config.folder / VERSIONS_FILE, record)


def differences(old: object, new: object, path: str = "") -> list[str]:
    """Return the differences of two trees of plain values, each as its dotted path and both values."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [d for key in old | new for d in differences(old.get(key), new.get(key), f"{path}.{key}".lstrip("."))]
    return [] if old == new else [f"{path} ({old} then, {new} now)"]


def provenance() -> dict[str, Any]:
    """Return the time, the command, the platform, the versions of the main packages, and the commit."""
    packages = ("ossicle", "torch", "transformers", "accelerate", "safetensors", "soundfile", "soxr", "numpy")
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version(name) for name in packages},
        "commit": _commit(),
    }


def _commit() -> str | None:
    """Return the commit of the working directory, with ``-dirty`` for uncommitted changes; None outside git."""
    try:
        found = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()
