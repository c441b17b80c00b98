"""Create the folder of a run, with its settings and the record of how it was made."""

from __future__ import annotations

import logging
import os
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
from ossicle.models import saving
from ossicle.models.saving import ADAPTERS_FILE, WEIGHTS_FILE, absolute_name
from ossicle.objectives import Objective
from ossicle.train import checkpoint
from ossicle.train import recipe as configuration
from ossicle.train.recipe import Config
from ossicle.train.tracking import EVENTS, METRICS_FILE

logger = logging.getLogger(__name__)

CONFIG_FILE, VERSIONS_FILE, LOCK_FILE = "config.yaml", "versions.json", ".lock"
FREE = {
    "name",
    "output_dir",
    *(f"model.{name}" for name in ("encoder", "llm")),
    *(f"data.{name}" for name in ("train", "dev", "workers", "cache_dir", "cache_text_gb")),
    *(f"train.{name}" for name in ("steps", "epochs", "save_every", "keep", "log_every", "tensorboard", "profile")),
    *(f"train.{name}" for name in ("eval_every", "analyze_every", "max_nonfinite_steps", "fsdp")),
}
"""Settings that a resumed run may change. The checkpoint has fingerprints of the models and of the data, so that these
may have moved."""
STARTS = ("train.init_from", "data.augment.noise")
"""Settings with paths that a resumed run may change only if the old files are gone, because they may have moved."""


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
        _check_files(config)
        _check_run(config, saved, resume=resume)
        with checkpoint.disk_errors(folder):
            if not resume:
                shutil.rmtree(folder / checkpoint.BEST, ignore_errors=True)
            (folder / METRICS_FILE).touch()
            configuration.save(configuration.parse(_absolute(config)), saved)
            record = {**provenance(), "objective": None if objective is None else repr(objective)}
            write_json(folder / VERSIONS_FILE, record)
    except BaseException:
        lock.release()
        raise
    return lock


def _check_files(config: Config) -> None:
    """Raise `ConfigError` for a file in the run's folder where training needs a folder, and the reverse.

    The same holds for what may not be written. Files that are replaced as a whole only need a writable folder.
    """
    folder = config.folder
    files = (CONFIG_FILE, VERSIONS_FILE, METRICS_FILE, WEIGHTS_FILE, ADAPTERS_FILE, saving.CONFIG_FILE)
    folders = (checkpoint.CHECKPOINTS, checkpoint.BEST, *([EVENTS] if config.train.tensorboard else []))
    for path in (folder / name for name in (*files, *folders)):
        is_file = path.name in files
        if path.exists() and path.is_dir() == is_file:
            found, needed = ("folder", "file") if is_file else ("file", "folder")
            raise ConfigError(
                f"{path}: is a {found}, and training writes a {needed} of this name: move it, or choose another name=…"
            )
        if path.exists() and (path.is_dir() or path.name == METRICS_FILE) and not os.access(path, os.W_OK):
            raise ConfigError(f"{path}: may not be written: change its permissions, or choose another name=…")


def _check_run(config: Config, saved: Path, *, resume: bool) -> None:
    """Raise `ConfigError` if the folder holds a run that is not resumed, or if the run had other settings."""
    folder = config.folder
    if not resume:
        if checkpoint.latest(folder) is not None or (folder / WEIGHTS_FILE).is_file():
            raise ConfigError(f"{folder} holds a run: continue it with --resume, or choose another name=…")
        return
    old, new = (_absolute(one) for one in (configuration.load(saved), config))
    changed = [(line.partition(" ")[0], line) for line in differences(old, new)]
    changed = [(name, line) for name, line in changed if name not in STARTS or not _moved(*_values(name, old, new))]
    if refused := [line for name, line in changed if name not in FREE]:
        raise ConfigError(
            f"{folder} was started with other settings: {', '.join(refused)}; set them back, or choose another name=…"
        )
    if longer := [line for name, line in changed if name in ("train.steps", "train.epochs")]:
        logger.warning("%s: %s: the learning rate follows the new length from here on", folder, ", ".join(longer))


def _absolute(config: Config) -> dict[str, Any]:
    """Return the settings as plain values with absolute paths, which hold in every working directory."""
    tree = configuration.to_dict(config)
    model, data, train = tree["model"], tree["data"], tree["train"]
    model |= {part: absolute_name(model[part]) for part in ("encoder", "llm")}
    data |= {name: [_resolved(path) for path in data[name]] for name in ("train", "dev")}
    data["augment"]["noise"] = [_resolved(path) for path in data["augment"]["noise"]]
    data["cache_dir"] = _resolved(data["cache_dir"])
    train["init_from"] = train["init_from"] and _resolved(train["init_from"])
    return tree | {"output_dir": _resolved(tree["output_dir"])}


def _resolved(path: str) -> str:
    return str(Path(path).resolve())


def _values(name: str, *trees: dict[str, Any]) -> list[list[str]]:
    """Return the paths of the setting ``name`` in each of ``trees``."""
    found: list[list[str]] = []
    for tree in trees:
        value: Any = tree
        for part in name.split("."):
            value = value[part]
        found.append(value if isinstance(value, list) else [value] if value else [])
    return found


def _moved(old: list[str], new: list[str]) -> bool:
    """Return True if the paths end in the same names and none of the old ones exists any more."""
    same = [Path(path).name for path in old] == [Path(path).name for path in new]
    return same and not any(Path(path).exists() for path in old)


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
