"""A piece of a study that one process does: a stage 1, a trial, a cell of the table, or the text-only bound.

Each has its own folder. ``stamp.json`` says what decides its result; the record (``cell.json``) repeats it, is written
last and appears whole or not at all. So what is on the disk tells what is done, and with which settings.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from ossicle.models.frozen import resolve
from ossicle.train import recipe as config
from ossicle.train.loop import differences

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
"""What training leaves in a job's folder; all else there is measured on its result."""
MEASURED = ("test", "alignment", "decoding")
"""Keys of a stamp that training does not depend on: where only they change, what is trained stays."""
HASH_AT_MOST_BYTES = 200_000_000
"""Weights up to this size are told apart by their content, larger ones by their size."""


class StudyError(RuntimeError):
    """A study cannot go on; the message names the folder and what to do."""


@dataclass(frozen=True)
class Job:
    """What one process does, and where."""

    kind: Kind
    label: str
    """For people, e.g. ``asr, 10%, seed 0``."""
    folder: Path
    recipe: Path
    overrides: tuple[str, ...] = ()
    steps: int = 0
    cost_key: str = ""
    """Jobs of one kind and key cost about the same a step."""
    start: Path | None = None
    """Folder of the pretraining that must be done, and whose projector this one starts from."""
    test: tuple[str, ...] = ()
    """Task manifests to decode and score."""
    alignment: tuple[str, ...] = ()
    """Manifests on which to measure retrieval by layer."""
    cache: Path = Path("cache")
    device: str = "cpu"
    decode_batch: int = 64
    max_new_tokens: int = 80

    @property
    def record_path(self) -> Path:
        """The file that says that it is done."""
        return self.folder / RECORDS[self.kind]

    @property
    def run_folder(self) -> Path:
        """Of its training."""
        return self.folder / RUN

    def settings(self) -> config.Config:
        """The configuration of its training. Raises `ConfigError`."""
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
        """Everything that decides its result, as plain values; paths do not count, the contents of manifests do."""
        settings = self.settings()
        tree = config.to_dict(settings)
        for name in ("name", "output_dir"):
            del tree[name]
        for name in ("cache_dir", "train", "dev", "cache_frames", "cache_text", "cache_text_gb", "workers"):
            tree["data"].pop(name)
        for name in ("init_from", "save_every", "keep", "log_every", "tensorboard", "eval_every"):
            tree["train"].pop(name)
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
        """Whether its record is there."""
        return self.record_path.is_file()

    def record(self) -> dict[str, Any]:
        """What it found."""
        return read_record(self.record_path)

    def changes(self) -> list[str]:
        """In what the settings that it was done with differ from those of today; empty if that cannot be told yet."""
        unknown = self.start is not None and not (self.start / PRETRAINED).is_file()
        if unknown or not self.is_done():
            return []
        return differences(self.record()["stamp"], _plain(self.stamp()))

    def prepare(self) -> None:
        """Make the folder; what is there from other settings is deleted, but for training that they do not touch."""
        stamp, path = _plain(self.stamp()), self.folder / STAMP
        before = _read_or_none(path) if path.is_file() else None
        if self.folder.is_dir() and before != stamp:
            keep = TRAINING if before is not None and _trained(before) == _trained(stamp) else ()
            for entry in self.folder.iterdir():
                if entry.name not in keep:
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(path, stamp)


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` so that a kill leaves the old file or the new one."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)


def read_record(path: Path) -> dict[str, Any]:
    """A record. Raises `StudyError` for one that a person damaged: jobs write theirs whole."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise StudyError(f"{path}: cannot be read ({error}); delete {path.parent} to have it done again") from error
    return found


@cache
def digest(manifest: str) -> str:
    """Hash of a manifest's content."""
    return hashlib.sha256(Path(manifest).read_bytes()).hexdigest()[:16]


@cache
def _weights(name: str, part: str) -> str:
    """Identity of a model: of its files where it is a folder, else its name."""
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
    """The part of a stamp that decides what training leaves."""
    return {key: value for key, value in stamp.items() if key not in MEASURED}


def _plain(content: Any) -> Any:
    return json.loads(json.dumps(content))


def _read_or_none(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError:  # cut short by a kill: as if it were not there
        return None
