"""Save and load checkpoints, from which a run continues with the losses that it would have had without a stop.

A checkpoint is a folder with the files of `SpeechLLM.save`, and ``trainer.pt`` with the optimiser, the schedule, and
the random states and the position in the data of every process.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import random
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from safetensors import SafetensorError

from ossicle.batch import Batch
from ossicle.errors import CheckpointError, ContextError, OssicleError, TrainingError
from ossicle.files import atomic_folder, write_json
from ossicle.models.speech_llm import SpeechLLM
from ossicle.train import regroup
from ossicle.train.batches import Data
from ossicle.train.recipe import Config
from ossicle.train.regroup import Mismatch
from ossicle.train.state import Position, Trainer, trainable

logger = logging.getLogger(__name__)

CHECKPOINTS, BEST, TRAINER_FILE = "checkpoints", "best", "trainer.pt"
FULL = (errno.ENOSPC, errno.EDQUOT)
"""Numbers of the errors of a full disk and of a used-up quota."""
DEAD_WORKER = "DataLoader worker"
"""Words of PyTorch's error for a data worker that was killed."""
_PARTS = {"optimizer", "schedule", "progress", "objective", "scaler", "data", "ranks"}
_PER_RANK = ("epoch", "batch")
"""Fields of `Position` that differ between processes, because each skips its own unreadable batches."""


def save(run_folder: Path, model: SpeechLLM, trainer: Trainer, accelerator: Accelerator, *, keep: int) -> Path:
    """Write ``checkpoints/step-N`` atomically, delete all but the ``keep`` newest, and return the folder.

    Every process must call this; the first one writes. Raises `TrainingError` if the disk is full or a weight is not
    finite.
    """
    step = trainer.position.step
    folder = run_folder / CHECKPOINTS / f"step-{step:07d}"
    ranks = gather_object([_rank_state(trainer.position)])
    if not accelerator.is_main_process:
        return folder
    check_finite(run_folder, model)
    with disk_errors(run_folder), atomic_folder(folder) as partial:
        model.save(partial)
        torch.save({**_state(trainer), "ranks": ranks}, partial / TRAINER_FILE)
    # Checkpoints of later steps are damaged ones: the run was resumed from an older checkpoint.
    kept = [path for path in _all(run_folder) if _step(path) <= step][-keep:]
    for old in _all(run_folder):
        if old not in kept:
            shutil.rmtree(old)
    return folder


def save_best(run_folder: Path, model: SpeechLLM, position: Position) -> None:
    """Write ``best`` atomically: the projector that did best on the development data, and its position."""
    check_finite(run_folder, model)
    with disk_errors(run_folder), atomic_folder(run_folder / BEST) as partial:
        model.save(partial)
        write_json(partial / "progress.json", asdict(position))


def save_final(run_folder: Path, model: SpeechLLM) -> None:
    """Write the trained model to the run's folder. Raises `TrainingError` as `save` does."""
    check_finite(run_folder, model)
    with disk_errors(run_folder):
        model.save(run_folder)


def latest(run_folder: Path) -> Path | None:
    """Return the newest complete checkpoint of a run, or None. Its files are not read."""
    found = _all(run_folder)
    return found[-1] if found else None


def planned_for(run_folder: Path) -> int:
    """Return the number of processes with which the run was started, or 0 if it has no checkpoint that can be read."""
    return regroup.planned_for(folder / TRAINER_FILE for folder in reversed(_all(run_folder)))


def restore(
    run_folder: Path, model: SpeechLLM, trainer: Trainer, accelerator: Accelerator, *, allow_changed_data: bool
) -> Path | None:
    """Restore the newest valid checkpoint of a run and return its folder, or return None if the run has none yet.

    A damaged checkpoint is reported and the next older one is used. Raises `CheckpointError` if all are damaged, if
    another number of processes cannot continue, and if the data differ, unless ``allow_changed_data``; the epoch then
    starts again.
    """
    errors: list[OssicleError] = []
    for folder in reversed(_all(run_folder)):
        try:
            state = _read(folder)
            rank = _own_state(folder, state, trainer, accelerator)
            model.load_projector(folder)
            changed = state["data"] != trainer.data
            if not (changed and not allow_changed_data):
                _apply(folder, trainer, state, rank)
        except Mismatch:
            raise
        except OssicleError as error:
            errors.append(error)
            logger.warning("%s; the next older checkpoint is tried", error)
            continue
        if changed and not allow_changed_data:
            raise Mismatch(_changed(folder, state["data"], trainer.data))
        if changed:
            trainer.position.batch = 0
        return folder
    if errors:
        raise CheckpointError(
            f"{errors[0]}; no other checkpoint in {run_folder / CHECKPOINTS} can be loaded: start the run without "
            "--resume and with another name=…"
        ) from errors[0]
    return None


def check_finite(run_folder: Path, model: SpeechLLM) -> None:
    """Raise `TrainingError` if a trained weight is NaN or infinite."""
    if not all(bool(parameter.isfinite().all()) for parameter in trainable(model)):
        raise TrainingError(
            f"{run_folder}: a trained weight is not finite, so that nothing was saved: lower optim.lr and start again"
            f"{describe_newest(run_folder)}"
        )


@contextmanager
def disk_errors(run_folder: Path) -> Iterator[None]:
    """Raise `TrainingError`, with the newest checkpoint and what to do, if the block cannot write a file."""
    try:
        yield
    except OssicleError:
        raise
    except (OSError, RuntimeError, SafetensorError) as error:  # torch raises RuntimeError if it cannot write
        if DEAD_WORKER in str(error):  # the death of a data worker interrupts whatever runs
            raise
        raise _unwritable(run_folder, error) from error


@contextmanager
def machine_errors(run_folder: Path, batch: Callable[[], Batch | None]) -> Iterator[None]:
    """Raise `TrainingError`, with what to do, for a full disk, full memory or a dead data worker in the block.

    ``batch`` returns the batch of the running step. Other errors pass.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise _unwritable(run_folder, error) from error
    except ContextError as error:
        raise ContextError(f"{error}{_longest(batch())}") from error
    except RuntimeError as error:
        if DEAD_WORKER in str(error):
            raise TrainingError(
                f"{run_folder}: a data worker has died ({str(error).splitlines()[0]:.200}): memory may be short, "
                f"or /dev/shm too small; lower data.workers, and run the same command with --resume"
                f"{describe_newest(run_folder)}"
            ) from error
        if isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error):
            raise TrainingError(
                f"{run_folder}: the memory is full, with {_shape(batch())} ({str(error).splitlines()[0]:.200}): lower "
                "data.max_batch_s or data.batch_size and raise train.accumulate, or set "
                "train.gradient_checkpointing=true, and start again with another name=…"
                f"{describe_newest(run_folder)}"
            ) from error
        raise


def _longest(batch: Batch | None) -> str:
    """Return which lines of the manifest have the longest text and the longest recording of ``batch``."""
    if batch is None or not batch.samples:
        return ""
    text = max(batch.samples, key=lambda s: len(" ".join([s.text or "", s.instruction or "", *s.answers])))
    audio = max(batch.samples, key=lambda s: s.duration_s or 0.0)
    return f" (the longest text of the batch is in {text.source}, the longest recording in {audio.source})"


def _shape(batch: Batch | None) -> str:
    if batch is None:
        return "no batch yet"
    speech = batch.waveforms or batch.frames
    shape = "" if speech is None else f", padded to {tuple(speech.values.shape)}"
    return f"a batch of {len(batch)} utterances ({batch.audio_s:.1f} s of audio{shape})"


def _unwritable(run_folder: Path, error: Exception) -> TrainingError:
    full = isinstance(error, OSError) and error.errno in FULL
    fix = "free some space" if full else "check the disk and its free space"
    first = str(error).splitlines()[0] if str(error) else type(error).__name__
    return TrainingError(
        f"{run_folder}: cannot be written: {first}; {fix}, and run the same command with --resume"
        f"{describe_newest(run_folder)}"
    )


def fingerprints(config: Config, data: Data, dev: Data | None) -> dict[str, str]:
    """Return fingerprints of the training and of the development data (``train``, ``dev``).

    They depend on the content of the manifests and on the lengths of the usable utterances. The names and folders of
    the manifests do not count.
    """
    parts = {"train": (config.data.train, data), "dev": (config.data.dev, dev)}
    return {
        name: _fingerprint(manifests, part.sampler.durations_s)
        for name, (manifests, part) in parts.items()
        if part is not None
    }


def _fingerprint(manifests: Sequence[str], durations_s: Sequence[float]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for manifest in manifests:
        with Path(manifest).expanduser().open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    digest.update(np.asarray(durations_s, dtype=np.float64).tobytes())
    return digest.hexdigest()


def describe_newest(run_folder: Path) -> str:
    """Return the newest checkpoint in parentheses, to end a message with."""
    newest = latest(run_folder)
    return f" (newest checkpoint: {newest})" if newest is not None else " (there is no checkpoint yet)"


def _state(trainer: Trainer) -> dict[str, Any]:
    return {
        "optimizer": trainer.optimizer.state_dict(),
        "schedule": trainer.schedule.state_dict(),
        "progress": asdict(trainer.position),
        "objective": None if trainer.objective is None else trainer.objective.state_dict(),
        "scaler": None if trainer.scaler is None else trainer.scaler.state_dict(),
        "data": trainer.data,
        "planned_for": trainer.planned_for,
        "batches_per_round": trainer.batches_per_round,
    }


def _rank_state(position: Position) -> dict[str, Any]:
    """Return the random states of this process and its position in the data, as plain values and tensors."""
    _, keys, index, has_gauss, gauss = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "numpy": [torch.from_numpy(np.asarray(keys).astype(np.int64)), int(index), int(has_gauss), float(gauss)],
        "python": list(random.getstate()),
        "position": {name: getattr(position, name) for name in _PER_RANK},
    }


def _read(folder: Path) -> dict[str, Any]:
    """Return the content of ``trainer.pt``. Raises `CheckpointError` if it is missing or damaged."""
    path = folder / TRAINER_FILE
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file; the checkpoint is incomplete")
    try:
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
        state = None if damaged else torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # the kinds of errors of damaged files are not documented
        raise CheckpointError(f"{path}: the file is damaged ({type(error).__name__})") from error
    if damaged:
        raise CheckpointError(f"{path}: the file is damaged (wrong checksum)")
    if not isinstance(state, dict) or not state.keys() >= _PARTS:
        missing = sorted(_PARTS - state.keys()) if isinstance(state, dict) else sorted(_PARTS)
        raise CheckpointError(f"{path}: the file lacks {', '.join(missing)}; it is damaged or of another version")
    return state


def _own_state(folder: Path, state: dict[str, Any], trainer: Trainer, accelerator: Accelerator) -> Any:
    """Return the state of this process. Raises `CheckpointError` if the number of processes differs and cannot."""
    ranks, rank, now = state["ranks"], accelerator.process_index, accelerator.num_processes
    if not isinstance(ranks, list) or not ranks:
        raise CheckpointError(f"{folder / TRAINER_FILE}: the file is damaged (no process)")
    return ranks[rank] if len(ranks) == now else regroup.state_of_rank(folder, state, trainer, rank, now)


def _apply(folder: Path, trainer: Trainer, state: dict[str, Any], rank: Any) -> None:
    """Restore the state of ``trainer`` and of this process. Raises `CheckpointError` if a part does not fit."""
    try:
        position = Position(**{**state["progress"], **rank["position"]})
        if any(not isinstance(getattr(position, name), type(start)) for name, start in asdict(Position()).items()):
            raise TypeError("progress")
        trainer.optimizer.load_state_dict(state["optimizer"])
        trainer.schedule.load_state_dict(state["schedule"])
        if trainer.objective is not None:
            trainer.objective.load_state_dict(state["objective"])
        if trainer.scaler is not None and state["scaler"]:
            trainer.scaler.load_state_dict(state["scaler"])
        _follow_schedule(trainer)
        torch.set_rng_state(rank["torch"])
        if rank["cuda"] is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(rank["cuda"])
        keys, index, has_gauss, gauss = rank["numpy"]
        np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), index, has_gauss, gauss))
        version, internal, gauss_next = rank["python"]
        random.setstate((version, tuple(internal), gauss_next))
        if offset := rank.get("seed_offset"):
            set_seed((torch.initial_seed() + position.step + offset) % 2**32)
    except (AttributeError, KeyError, IndexError, RuntimeError, TypeError, ValueError) as error:
        first = str(error).splitlines()[0] if str(error) else ""
        raise CheckpointError(
            f"{folder / TRAINER_FILE}: the file is damaged or of another version ({type(error).__name__}: {first})"
        ) from error
    trainer.position = position


def _follow_schedule(trainer: Trainer) -> None:
    """Set the learning rate of the next step, which differs from the saved one if the number of steps has changed."""
    schedule: Any = trainer.schedule
    for group, base, factor in zip(trainer.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True):
        group["lr"] = base * factor(schedule.last_epoch)


def _changed(folder: Path, then: Any, now: dict[str, str]) -> str:
    names = [f"data.{name}" for name in now if not isinstance(then, dict) or then.get(name) != now[name]]
    return (
        f"{folder}: the content of {' and '.join(names) or 'the data'} has changed since this checkpoint: restore the "
        "manifests and their files, or add --allow-changed-data to start the epoch again with the new data"
    )


def _all(run_folder: Path) -> list[Path]:
    """Return all complete checkpoints, oldest first; partial ones have names that start with a dot."""
    found = [path for path in (run_folder / CHECKPOINTS).glob("step-*") if re.fullmatch(r"step-\d+", path.name)]
    return sorted((path for path in found if path.is_dir()), key=_step)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.partition("-")[2])
