"""Create the folder of a run, with its settings and the record of how it was made."""

from __future__ import annotations

import logging
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from filelock import BaseFileLock, FileLock, Timeout

from ossicle.errors import ConfigError, OssicleError
from ossicle.files import write_json
from ossicle.models.saving import WEIGHTS_FILE
from ossicle.objectives import Objective
from ossicle.train import checkpoint
from ossicle.train import recipe as configuration
from ossicle.train.recipe import Config

logger = logging.getLogger(__name__)

CONFIG_FILE, VERSIONS_FILE, LOCK_FILE = "config.yaml", "versions.json", ".lock"
FREE = {
    "name",
    "output_dir",
    *(f"model.{name}" for name in ("encoder", "llm")),
    *(f"data.{name}" for name in ("train", "dev", "workers", "cache_dir", "cache_text_gb")),
    *(f"train.{name}" for name in ("steps", "epochs", "save_every", "keep", "log_every", "tensorboard")),
    *(f"train.{name}" for name in ("eval_every", "analyze_every", "max_nonfinite_steps")),
}
"""Settings that a resumed run may change. The checkpoint has fingerprints of the models and of the data, so that these
may have moved."""


@contextmanager
def claimed(config: Config, objective: Objective | None, accelerator: Accelerator, *, resume: bool) -> Iterator[None]:
    """Create the run's folder with its settings and `provenance`, and lock it for the block.

    ``objective`` is the one that was passed to `train`, if any. The first process does the work, and every process
    raises its `ConfigError`: if the folder holds a run that is not resumed, if the resumed run had other settings, or
    if another process trains in it. The operating system releases the lock of a process that ends in any way.
    """
    lock: BaseFileLock | None = None
    found: list[OssicleError | None] = [None]
    if accelerator.is_main_process:
        try:
            lock = _claim(config, objective, resume=resume)
        except OssicleError as error:
            found = [error]
    if accelerator.num_processes > 1:
        broadcast_object_list(found)
    if found[0] is not None:
        raise found[0]
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def _claim(config: Config, objective: Objective | None, *, resume: bool) -> BaseFileLock:
    folder = config.folder
    saved = folder / CONFIG_FILE
    if resume and not saved.is_file():
        raise ConfigError(f"{folder}: there is no run to resume; start it without --resume")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK_FILE)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ConfigError(
            f"{folder}: another process trains in this folder: wait for its end, stop it, or choose another name=…"
        ) from error
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{folder}: the run's folder cannot be created or locked ({error}): change output_dir or name"
        ) from error
    try:
        _check_run(config, saved, resume=resume)
        with checkpoint.disk_errors(folder):
            if not resume:
                shutil.rmtree(folder / checkpoint.BEST, ignore_errors=True)
            configuration.save(config, saved)
            record = {**provenance(), "objective": None if objective is None else repr(objective)}
            write_json(folder / VERSIONS_FILE, record)
    except BaseException:
        lock.release()
        raise
    return lock


def _check_run(config: Config, saved: Path, *, resume: bool) -> None:
    """Raise `ConfigError` if the folder holds a run that is not resumed, or if the run had other settings."""
    folder = config.folder
    if not resume:
        if checkpoint.latest(folder) is not None or (folder / WEIGHTS_FILE).is_file():
            raise ConfigError(f"{folder} holds a run: continue it with --resume, or choose another name=…")
        return
    old, new = (_comparable(one) for one in (configuration.load(saved), config))
    changed = [(line.partition(" ")[0], line) for line in differences(old, new)]
    if refused := [line for name, line in changed if name not in FREE]:
        raise ConfigError(
            f"{folder} was started with other settings: {', '.join(refused)}; set them back, or choose another name=…"
        )
    if longer := [line for name, line in changed if name in ("train.steps", "train.epochs")]:
        logger.warning("%s: %s: the learning rate follows the new length from here on", folder, ", ".join(longer))


def _comparable(config: Config) -> dict[str, Any]:
    """Return the settings as plain values, with the start of the projector as an absolute path."""
    tree = configuration.to_dict(config)
    start = tree["train"]["init_from"]
    tree["train"]["init_from"] = start and str(Path(start).expanduser().resolve())
    return tree


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
