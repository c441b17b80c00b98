"""Train with two processes: same losses as one process, exact resume, and an end without a hang."""

import json
import multiprocessing
import os
import signal
import socket
import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from ossicle.batch import Batch, LossOutput
from ossicle.data.manifest import read_manifest, write_manifest
from ossicle.errors import CheckpointError, OssicleError
from ossicle.models.saving import WEIGHTS_FILE
from ossicle.models.speech_llm import SpeechLLM
from ossicle.objectives import Contrastive, NextToken, Objective
from ossicle.train.cache_store import CacheStore
from ossicle.train.loop import train
from ossicle.train.recipe import Config
from ossicle.train.tracking import read_metrics

pytestmark = pytest.mark.slow
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
        if len(self.ids) == self.at and self.rank in (None, int(os.environ["RANK"])):
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


def run_all(rank: int, ports: list[int], runs: list[Run], out: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
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


def in_two(runs: list[Run], out: Path) -> list[list[dict]]:
    """Run all ``runs`` one after the other in two processes; return what each recorded, by run and rank."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in runs]
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        ports = [free.getsockname()[1] for free in sockets]
    context = multiprocessing.get_context("spawn")  # a fork of a process that has used threads can hang
    workers = [context.Process(target=run_all, args=(rank, ports, runs, out)) for rank in (0, 1)]
    for worker in workers:
        worker.start()
    deadline_s = time.monotonic() + HANG_S
    for worker in workers:
        worker.join(timeout=max(0.0, deadline_s - time.monotonic()))
    for worker in workers:
        worker.kill()
    assert [worker.exitcode for worker in workers] == [0, 0]
    both = [torch.load(out / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    return [list(pair) for pair in zip(*both, strict=True)]


def losses(folder: Path, split: str = "train") -> dict[int, float]:
    return {r["step"]: r["loss"] for r in read_metrics(folder / "metrics.jsonl") if r["split"] == split}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / WEIGHTS_FILE)


@pytest.fixture
def unequal(manifest, tmp_path) -> Path:
    """Write seven utterances whose answers differ much in length."""
    samples = read_manifest(manifest)[:7]
    words = [1, 30, 1, 2, 12, 1, 4]
    path = tmp_path / "unequal.jsonl"
    write_manifest(path, [replace(s, text="a b " * n, task=None) for s, n in zip(samples, words, strict=True)])
    return path


def test_two_processes(config, manifest, unequal, tmp_path):
    quiet = {"projector": {**config().model.projector.__dict__, "dropout": 0.0}}
    token = {"name": "next_token"}
    four = tmp_path / "four.jsonl"
    write_manifest(four, read_manifest(unequal)[:4])
    # One batch of four utterances, in one process and divided between two.
    step = {"model": quiet, "objective": token, "train": {"steps": 1, "eval_every": 1}}
    data = {"train": [str(four)], "dev": [str(unequal)], "order": "random"}
    alone = config(name="alone", **step, data={**data, "batch_size": 4})
    shared = config(name="shared", **step, data={**data, "batch_size": 2})
    # Dropout is on, epochs have two batches for each process, and steps two.
    stopped = {"objective": token, "data": {"batch_size": 2, "dev": [str(unequal)]}}
    stopped["train"] = {"steps": 6, "accumulate": 1, "save_every": 2, "eval_every": 3}
    names = {name: config(name=name, **stopped) for name in ("whole", "killed", "signalled")}
    pairs = config(name="pairs", data={"batch_size": 3, "dev": [str(unequal)]}, train={"steps": 1, "eval_every": 1})
    diverging = config(name="diverging", objective=token, optim={"lr": 1e30, "warmup": 0.0}, train={"steps": 4})
    cache = {"batch_size": 2, "cache_frames": True, "cache_dir": str(tmp_path / "cache"), "workers": 1}
    cached = config(name="cached", objective=token, data=cache, train={"steps": 1})
    results = in_two(
        [
            Run(shared, Watched(NextToken())),
            Run(names["whole"], Watched(NextToken())),
            Run(names["killed"], Watched(NextToken(), at=6)),
            Run(names["killed"], Watched(NextToken()), resume=True),
            Run(names["signalled"], Watched(NextToken(), at=3, rank=1, number=signal.SIGTERM)),
            Run(names["signalled"], Watched(NextToken())),  # refused: the folder holds a run
            Run(names["signalled"], Watched(NextToken()), resume=True),
            Run(pairs, Watched(Contrastive(layers=[0]))),
            Run(diverging, Watched(NextToken())),
            Run(cached, Watched(NextToken())),
        ],
        tmp_path,
    )
    errors = [[rank["error"] for rank in run] for run in results]
    assert [both for i, both in enumerate(errors) if i not in (2, 5, 8)] == [["", ""]] * 7
    assert errors[2] == ["killed"] * 2
    assert all("holds a run: continue it with --resume" in error for error in errors[5])
    assert all("TrainingError" in error and "is not finite" in error for error in errors[8])

    train(alone, objective=NextToken())
    torch.testing.assert_close(weights(alone.folder), weights(shared.folder), atol=1e-4, rtol=1e-3)
    assert losses(shared.folder) == pytest.approx(losses(alone.folder), rel=1e-5)
    assert losses(shared.folder, "dev") == pytest.approx(losses(alone.folder, "dev"), rel=1e-5)

    for name in ("killed", "signalled"):
        assert losses(names[name].folder) == losses(names["whole"].folder)
        for key, tensor in weights(names["whole"].folder).items():
            assert torch.equal(tensor, weights(names[name].folder)[key])

    # The evaluation follows the call of step 1: every line once, although 7 is odd and a contrastive batch needs 2.
    for run in (results[0], results[7]):
        evaluated = [one for rank in run for ids in rank["ids"][1:] for one in ids]
        assert sorted(evaluated) == sorted(sample.id for sample in read_manifest(unequal))

    with pytest.raises(CheckpointError, match=r"the run had 2 processes and now has 1, .* start 2 processes"):
        train(names["killed"], objective=NextToken(), resume=True)

    # Each utterance is encoded by one of the processes.
    [folder] = (tmp_path / "cache").glob("frames-*")
    store = CacheStore(folder, json.loads((folder / "about.json").read_text()), shard_rows=1)
    assert len(store.keys) == 8
    rows = [len(load_file(path)["values"]) for path in folder.glob("*.safetensors")]
    assert sum(rows) == sum(len(store[key]) for key in store.keys)
