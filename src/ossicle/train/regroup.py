"""Resume a run with another number of processes than it was started with, with the same utterances in each step.

The batches stay those that were planned for the first number of processes; `ossicle.data.dividing` divides them.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from ossicle.data.sampler import BatchSampler
from ossicle.errors import CheckpointError
from ossicle.train.state import Position, Trainer

CHECKED_EPOCHS = 1000
"""Largest number of epochs whose batches are planned before the first step, to find one that cannot be divided."""


class Mismatch(CheckpointError):
    """The checkpoint is valid but does not fit the run, and older ones would not fit either."""


def planned_for(trainer_files: Iterable[Path]) -> int:
    """Return the number of processes for which the run of the first readable file was planned, or 0 without one."""
    for path in trainer_files:
        try:
            state = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
            return int(state.get("planned_for", len(state["ranks"])))
        except Exception:  # `checkpoint.restore` explains the fault
            continue
    return 0


def state_of_rank(folder: Path, state: dict[str, Any], trainer: Trainer, rank: int, processes: int) -> dict[str, Any]:
    """Return the state of process ``rank`` of ``processes`` from a checkpoint of another number of processes.

    Its position is that of all of them, and its random states are those of one of them. A process that has to share
    them with another gets a ``seed_offset`` too. Raises `Mismatch` if the processes of the checkpoint had different
    positions.
    """
    ranks = state["ranks"]
    first = ranks[0]["position"]
    rounds, rest = divmod(first["batch"], state.get("batches_per_round", 1))
    if rest or any(one["position"] != first for one in ranks):
        raise Mismatch(
            f"{folder}: {len(ranks)} processes were at different positions in the data, because utterances that cannot "
            f"be read left batches out, so that {processes} cannot continue: start {len(ranks)} processes (torchrun "
            "--nproc_per_node), or start a new run with another name=…"
        )
    own = dict(ranks[rank % len(ranks)])
    own["position"] = {**first, "batch": rounds * trainer.batches_per_round}
    own["seed_offset"] = rank if rank >= len(ranks) else 0
    return own


def check_division(data: BatchSampler, dev: BatchSampler | None, position: Position, batches: int) -> None:
    """Raise `ConfigError` if the next ``batches`` of a process, or those of ``dev``, cannot be divided."""
    if data.planned_for == data.world_size:
        return
    if dev is not None:
        dev.set_epoch(0)
        len(dev)  # plans them
    left = batches + position.batch
    for epoch in range(position.epoch, position.epoch + CHECKED_EPOCHS):
        if left <= 0:
            return
        data.set_epoch(epoch)
        left -= len(data)


def describe(data: BatchSampler) -> str | None:
    """Return a line on how the batches are divided, or None if nothing has changed."""
    if data.planned_for == data.world_size:
        return None
    return (
        f"started with {data.planned_for} processes and resumed with {data.world_size}: every step keeps its "
        f"utterances, in {data.batches_per_round} times as many batches per process"
    )
