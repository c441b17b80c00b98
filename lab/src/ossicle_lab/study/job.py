"""Describe the jobs of a study: a stage 1, a trial, a cell of the table, or the text-only bound.

Each job has its own folder. ``stamp.json`` holds everything that decides its result. The record (``cell.json``) repeats
the stamp and is written last and atomically. The files therefore show which jobs are done, and with which settings.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from ossicle.errors import ConfigError, OssicleError
from ossicle.files import write_json
from ossicle.models.frozen import resolve
from ossicle.train import recipe as config
from ossicle.train.run_folder import differences

Kind = Literal["pretraining", "trial", "cell", "bound"]
RECORDS: dict[Kind, str] = {
    "pretraining": "pretraining.json",
    "trial": "trial.json",
    "cell": "cell.json",
    "bound": "bound.json",
}
PRETRAINED = RECORDS["pretraining"]
STAMP, HYPOTHESES, UTTERANCES, LOG = "stamp.json", "hypotheses.jsonl", "utterances.json", "log.txt"
RUN, COST = "run", "cost.json"
TRAINING = (RUN, COST, LOG)
"""Files in a job's folder that training writes; all others are measured on its result."""
MEASURED = ("test", "alignment", "decoding")
"""Keys of a stamp that training does not depend on. If only they change, the trained model is kept."""
NOT_DECIDING = {
    "": ("name", "output_dir"),
    "data": ("cache_dir", "train", "dev", "cache_frames", "cache_text", "cache_text_gb", "workers"),
    "train": ("init_from", "save_every", "keep", "log_every", "tensorboard", "eval_every"),
}
"""Settings that a stamp does not have, by section; manifests count by their content."""
HASH_AT_MOST_BYTES = 200_000_000
"""Weights up to this size are identified by their content, larger ones by their size alone."""


class StudyError(OssicleError, RuntimeError):
    """A study cannot continue; the message names the folder or the job and what to do."""


@dataclass(frozen=True)
class Job:
    """The work of one process, and its folder."""

    kind: Kind
    label: str
    """Name for messages, e.g. ``asr, 0.1 of the data, seed 0``."""
    folder: Path
    recipe: Path
    overrides: tuple[str, ...] = ()
    steps: int = 0
    cost_key: str = ""
    """Jobs of the same kind and key take about the same time per step."""
    start: Path | None = None
    """Folder of the pretraining whose projector this job starts from; it must be done first."""
    test: tuple[str, ...] = ()
    """Manifests of task lines to decode and score."""
    alignment: tuple[str, ...] = ()
    """Manifests on which to measure retrieval by layer."""
    cache: Path = Path("cache")
    device: str = "cpu"
    decode_batch: int = 64
    max_new_tokens: int = 80

    @property
    def record_path(self) -> Path:
        """The file whose presence means that the job is done."""
        return self.folder / RECORDS[self.kind]

    @property
    def run_folder(self) -> Path:
        """The folder of its training run."""
        return self.folder / RUN

    def settings(self) -> config.Config:
        """Return the configuration of its training. Raises `ConfigError` if the recipe or an override is invalid."""
        start = () if self.start is None else (f"train.init_from={self.start / RUN}",)
        return config.load(
            self.recipe,
            [
                *self.overrides,
                *start,
                f"train.steps={max(self.steps, 1)}",
                f"name={RUN}",
                f"output_dir={self.folder}",
                f"data.cache_dir={self.cache}",
                f"train.cpu={'true' if self.device == 'cpu' else 'false'}",
                "train.tensorboard=false",
                "train.keep=1",
            ],
        )

    def stamp(self) -> dict[str, Any]:
        """Return everything that decides its result, as plain values: contents of manifests, but no paths."""
        settings = self.settings()
        tree = _deciding(settings)
        trained = {} if self.kind == "bound" else {"config": tree, "data": [digest(m) for m in settings.data.train]}
        return {
            **trained,
            "models": {part: _weights(str(tree["model"][part]), part) for part in ("encoder", "llm")},
            "start": None if self.start is None else _hash(_trained(read_record(self.start / PRETRAINED)["stamp"])),
            "test": [digest(manifest) for manifest in self.test],
            "alignment": [digest(manifest) for manifest in self.alignment],
            "decoding": {"max_new_tokens": self.max_new_tokens} if self.test else {},
        }

    def is_done(self) -> bool:
        """Return True if its record exists."""
        return self.record_path.is_file()

    def record(self) -> dict[str, Any]:
        """Return its record. Raises `StudyError` if the file is damaged."""
        return read_record(self.record_path)

    def changes(self) -> list[str]:
        """Return the differences between the settings that it was done with and the current ones.

        The list is empty if the job is not done, or if the pretraining that it starts from is not.
        """
        unknown = self.start is not None and not (self.start / PRETRAINED).is_file()
        if unknown or not self.is_done():
            return []
        return differences(_updated(self.record()["stamp"]), _plain(self.stamp()))

    def prepare(self) -> None:
        """Create the folder and delete files from other settings in it.

        Training is kept if only settings of the measurement changed.
        """
        stamp, path = _plain(self.stamp()), self.folder / STAMP
        before = _updated(_read_or_none(path)) if path.is_file() else None
        if self.folder.is_dir() and before != stamp:
            keep = TRAINING if before is not None and _trained(before) == _trained(stamp) else ()
            for entry in self.folder.iterdir():
                if entry.name not in keep:
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(path, stamp)


def read_record(path: Path) -> dict[str, Any]:
    """Return a record. Raises `StudyError` if the file is missing or damaged."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise StudyError(f"{path}: cannot be read ({error}); delete {path.parent} to repeat the job") from error
    return found


@cache
def digest(manifest: str) -> str:
    """Return a hash of a manifest's content."""
    return hashlib.sha256(Path(manifest).read_bytes()).hexdigest()[:16]


@cache
def _weights(name: str, part: str) -> str:
    """Return the identity of a model: a hash of its files if it is a folder, its name otherwise."""
    folder = Path(resolve(name, part))
    if not folder.is_dir():
        return name
    sha = hashlib.sha256()
    for path in sorted(folder.glob("*")):
        if path.suffix in (".safetensors", ".bin", ".json"):
            size = path.stat().st_size
            sha.update(f"{path.name} {size} ".encode())
            sha.update(path.read_bytes() if size <= HASH_AT_MOST_BYTES else b"")
    return sha.hexdigest()[:16]


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _trained(stamp: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a stamp that decides the result of training."""
    return {key: value for key, value in stamp.items() if key not in MEASURED}


def _deciding(settings: config.Config) -> dict[str, Any]:
    """Return the settings that decide the result of training, as plain values."""
    tree = config.to_dict(settings)
    for section, names in NOT_DECIDING.items():
        for name in names:
            del (tree[section] if section else tree)[name]
    return tree


def _updated(stamp: Any) -> Any:
    """Return a stamp with the defaults of settings that are newer than it."""
    if not isinstance(stamp, dict) or "config" not in stamp:
        return stamp
    tree = {**stamp["config"], "name": RUN, "data": {**stamp["config"]["data"], "train": ["-"]}}
    try:
        return {**stamp, "config": _plain(_deciding(config.parse(tree)))}
    except ConfigError:  # it has settings that do not exist any more
        return stamp


def _plain(content: Any) -> Any:
    return json.loads(json.dumps(content))


def _read_or_none(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError:  # truncated by a kill: treated as missing
        return None
