"""Run trainings in two processes that communicate by gloo, and record what each of them did."""

import multiprocessing
import os
import socket
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from ossicle.batch import Batch, LossOutput
from ossicle.errors import OssicleError
from ossicle.models.saving import WEIGHTS_FILE
from ossicle.models.speech_llm import SpeechLLM
from ossicle.objectives import Objective
from ossicle.train.loop import train
from ossicle.train.recipe import Config
from ossicle.train.tracking import read_metrics

HANG_S = 400.0
"""Seconds after which processes count as hung: ten times what they take, because busy machines are slow."""


class Killed(Exception):
    """Raised in place of a kill of the process, so that no code cleans up."""


@dataclass
class Watched:
    """Objective that records the utterances of every call, and dies or receives a signal in call ``at`` of a rank."""

    objective: Objective
    at: int = 0
    rank: int | None = None
    number: int | None = None
    needs_mixed: bool = False
    ids: list[list[str]] = field(default_factory=list)

    @property
    def needs_negatives(self) -> bool:
        return self.objective.needs_negatives

    def __call__(self, model: SpeechLLM, batch: Batch) -> LossOutput:
        self.ids.append([sample.id for sample in batch.samples])
        if len(self.ids) == self.at and self.rank in (None, int(os.environ.get("RANK", 0))):
            if self.number is None:
                raise Killed
            os.kill(os.getpid(), self.number)
        return self.objective(model, batch)


@dataclass
class Run:
    """One call of `train` in both processes."""

    config: Config
    objective: Objective | None = None
    resume: bool = False


def run_all(rank: int, count: int, ports: list[int], runs: list[Run], out: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": "2"}
    AcceleratorState._reset_state(reset_partial_state=True)
    results = []
    for port, run in zip(ports, runs, strict=True):  # a process may otherwise reach the store of the run before
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        error = ""
        try:
            train(run.config, objective=run.objective, resume=run.resume)
        except Killed:
            error = "killed"
        except OssicleError as found:
            error = f"{type(found).__name__}: {found}"
        results.append({"error": error, "ids": getattr(run.objective, "ids", [])})
    torch.save(results, out / f"{rank}.pt")


def in_two(runs: list[Run], out: Path, count: int = 2) -> list[list[dict]]:
    """Run all ``runs`` one after the other in ``count`` processes; return what each recorded, by run and rank.

    For ``train.fsdp=node``, two processes are a machine.
    """
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in runs]
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        ports = [free.getsockname()[1] for free in sockets]
    context = multiprocessing.get_context("spawn")  # a fork of a process that has used threads can hang
    workers = [context.Process(target=run_all, args=(rank, count, ports, runs, out)) for rank in range(count)]
    for worker in workers:
        worker.start()
    deadline_s = time.monotonic() + HANG_S
    for worker in workers:
        worker.join(timeout=max(0.0, deadline_s - time.monotonic()))
    for worker in workers:
        worker.kill()
    assert [worker.exitcode for worker in workers] == [0] * count
    each = [torch.load(out / f"{rank}.pt", weights_only=True) for rank in range(count)]
    return [list(ranks) for ranks in zip(*each, strict=True)]


def losses(folder: Path, split: str = "train") -> dict[int, float]:
    return {r["step"]: r["loss"] for r in read_metrics(folder / "metrics.jsonl") if r["split"] == split}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / WEIGHTS_FILE)
