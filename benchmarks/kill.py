"""Kill training with SIGKILL again and again, and compare the resumed run with one that was never stopped.

Usage: python benchmarks/kill.py [--kills 10] [--processes 1 2] [--workers 1] [--seed 0] [--out kill.json]

Tiny random models train in both stages (contrastive, then next-token from the projector of stage 1), with dropout, a
data worker and cached frames. The kills take turns among three moments:

- start: a random time after the process has started, before the first step;
- step: a random time within one of the next steps;
- save: while the folder of a partial checkpoint exists, so that the kill is inside saving.

All ranks receive the signal in random order; their data workers do not, as under the out-of-memory killer. The run is
then resumed at once. Every recorded number of every step (losses, their parts, gradient norm, learning rate) and the
bytes of the projector must equal those of the uninterrupted run. Exits with 1 if any differs.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: the models are too small for threads

from rich.console import Console
from rich.table import Table

from ossicle.testing import tiny_encoder, tiny_llm, tiny_manifest
from ossicle.train.loop import train
from ossicle.train.recipe import parse
from ossicle.train.tracking import METRICS_FILE, read_metrics

MOMENTS = ("step", "save", "start")
SAVE_EVERY = 3
START_S = 1.0
"""Longest delay of a kill at the start in seconds; loading tiny models and the first step take about this long."""
HANG_S = 300.0
"""Seconds after which a training counts as hung."""
TIMES = {"time_s", "audio_s_per_s"}
"""Recorded values that depend on the machine."""
PROJECTOR = {"name": "qformer", "width": 16, "heads": 2, "layers": 2, "ffn": 24, "queries": 2, "window_s": 0.1}


@dataclass
class Start:
    """One start of a run: its settings, its number of processes, and whether it is resumed."""

    tree: dict[str, Any]
    processes: int
    resume: bool


@dataclass
class Result:
    """Count the outcomes of the kills of one stage with one number of processes."""

    stage: int
    processes: int
    moments: dict[str, int] = field(default_factory=dict)
    killed_after_steps: list[int] = field(default_factory=list)
    steps: int = 0
    unequal_steps: list[int] = field(default_factory=list)
    equal_projector: bool = False
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        return self.equal_projector and not self.unequal_steps


def run_rank(rank: int, port: int, start: Start, log: Path) -> None:
    """Train in this process, as one rank."""
    multiprocessing.set_start_method("fork", force=True)  # for data workers, as after `ossicle train`
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    if start.processes > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(start.processes)}
        os.environ["LOCAL_WORLD_SIZE"] = str(max(1, start.processes // 2))  # as on two machines
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        train(parse(start.tree), resume=start.resume)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


class Training:
    """The processes of one start of a run."""

    def __init__(self, tree: dict[str, Any], processes: int) -> None:
        folder = Path(tree["output_dir"]) / tree["name"]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        context = multiprocessing.get_context("forkserver")  # imports torch once for all starts
        context.set_forkserver_preload(["__main__", "ossicle.train.loop"])
        self.folder, self.log = folder, folder.with_suffix(".log")
        self._before = inode(folder / METRICS_FILE)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        start = Start(tree, processes, resume=(folder / "config.yaml").is_file())
        self.ranks = [context.Process(target=run_rank, args=(rank, port, start, self.log)) for rank in range(processes)]
        for process in self.ranks:
            process.start()

    @property
    def runs(self) -> bool:
        return all(process.exitcode is None for process in self.ranks)

    def step(self) -> int:
        """Return the last step that this start has recorded, or 0 before its first one."""
        path = self.folder / METRICS_FILE
        if inode(path) == self._before:  # every start begins with a new file
            return 0
        return max((record["step"] for record in read_metrics(path)), default=0)

    def wait(self, until: Callable[[], bool]) -> bool:
        """Return True once ``until()`` is true, or False if a process has ended before."""
        deadline_s = time.monotonic() + HANG_S
        while self.runs:
            if until():
                return True
            if time.monotonic() > deadline_s:
                raise SystemExit(f"{self.folder}: hangs; see {self.log}")
            time.sleep(0.0002)
        return False

    def kill(self, draw: random.Random) -> None:
        for process in draw.sample(self.ranks, len(self.ranks)):
            os.kill(process.pid or 0, signal.SIGKILL)
        for process in self.ranks:
            process.join()

    def finish(self) -> None:
        """Wait for the end. Exits with the log if a process fails."""
        deadline_s = time.monotonic() + HANG_S
        for process in self.ranks:
            process.join(timeout=max(0.0, deadline_s - time.monotonic()))
        codes = [process.exitcode for process in self.ranks]
        for process in self.ranks:
            process.kill()
        if any(codes):
            raise SystemExit(f"{self.folder}: exit codes {codes}\n{self.log.read_text()[-3000:]}")


def inode(path: Path) -> int:
    return path.stat().st_ino if path.is_file() else 0


def newest(folder: Path) -> int:
    """Return the step of the newest checkpoint."""
    checkpoints = [name for name in names(folder / "checkpoints") if name.startswith("step-")]
    return int(max(checkpoints).partition("-")[2]) if checkpoints else 0


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []


def kill_at(moment: str, training: Training, began: int, draw: random.Random, *, step_s: float) -> bool:
    """Kill ``training``, which goes on after step ``began``, at ``moment``; return False if it has ended before."""
    if moment == "start":
        time.sleep(draw.uniform(0, START_S))
        reached = training.runs
    elif moment == "save":
        checkpoints = training.folder / "checkpoints"
        for name in names(checkpoints):  # what an earlier kill has left
            if name.startswith(".step-"):
                shutil.rmtree(checkpoints / name, ignore_errors=True)
        reached = training.wait(lambda: any(name.startswith(".step-") for name in names(checkpoints)))
    else:
        wanted = draw.randint(1, 3 * SAVE_EVERY)
        reached = training.wait(lambda: training.step() >= began + wanted)
        time.sleep(draw.uniform(0, step_s))
    if reached and training.runs:
        training.kill(draw)
        return True
    return False


def run_stage(stage: int, tree: dict[str, Any], processes: int, kills: int, seed: int) -> Result:
    """Run the settings ``tree`` once as a whole and once with ``kills`` kills, and compare."""
    begun_s, draw = time.monotonic(), random.Random(f"{seed}-{stage}-{processes}")
    whole = Training({**tree, "name": f"whole-{stage}-{processes}"}, processes)
    whole.finish()
    records = [r for r in read_metrics(whole.folder / METRICS_FILE) if r["split"] == "train"]
    step_s = (records[-1]["time_s"] - records[0]["time_s"]) / max(1, len(records) - 1)
    killed = {**tree, "name": f"killed-{stage}-{processes}"}
    folder = Path(tree["output_dir"]) / killed["name"]
    result = Result(stage, processes, steps=whole.step())
    turns = cycle(MOMENTS)
    while len(result.killed_after_steps) < kills:
        moment, began = next(turns), newest(folder)
        training = Training(killed, processes)
        if not kill_at(moment, training, began, draw, step_s=step_s):
            training.finish()  # shows the error, if that is why it ended
            break
        result.moments[moment] = result.moments.get(moment, 0) + 1
        result.killed_after_steps.append(max(began, training.step()))
    last = Training(killed, processes)
    last.finish()
    found = [r for r in read_metrics(last.folder / METRICS_FILE) if r["split"] == "train"]
    by_step = [{r["step"]: {k: v for k, v in r.items() if k not in TIMES} for r in rs} for rs in (records, found)]
    result.unequal_steps = [n for n in sorted(by_step[0] | by_step[1]) if by_step[0].get(n) != by_step[1].get(n)]
    projectors = [(one.folder / "projector.safetensors").read_bytes() for one in (whole, last)]
    result.equal_projector = projectors[0] == projectors[1]
    result.seconds = time.monotonic() - begun_s
    return result


def settings(folder: Path, stage: int, steps: int, workers: int) -> dict[str, Any]:
    """Return the recipe of a stage with models and data in ``folder``, which are made where they are missing."""
    if not (folder / "llm").is_dir():
        tiny_encoder(folder / "encoder", "hubert")
        tiny_llm(folder / "llm", "llama", layers=3)
    tasks = () if stage == 1 else ("asr", "st", "qa")
    manifest = tiny_manifest(folder / f"stage{stage}", 14, tasks=tasks, seed=stage)
    # Epochs have an odd number of batches and steps have two, so that checkpoints fall inside epochs.
    return {
        "output_dir": str(folder / "runs"),
        "model": {"encoder": str(folder / "encoder"), "llm": str(folder / "llm"), "projector": PROJECTOR},
        "data": {"train": [str(manifest)], "batch_size": 2, "workers": workers, "cache_frames": stage == 1}
        | {"cache_dir": str(folder / "cache"), "cache_text": stage == 1},
        "objective": {"name": "contrastive" if stage == 1 else "next_token"},
        "optim": {"lr": 3e-3},
        "train": {"steps": steps, "accumulate": 2, "save_every": SAVE_EVERY, "log_every": 1, "cpu": True}
        | {"tensorboard": False},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=10, help="kills in each stage for each number of processes")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="numbers of processes")
    parser.add_argument("--workers", type=int, default=1, help="data workers of each process")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    arguments = parser.parse_args()
    steps = 6 + 4 * arguments.kills
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for processes in arguments.processes:
            for stage in (1, 2):
                tree = settings(folder, stage, steps, arguments.workers)
                if stage == 2:
                    tree["train"]["init_from"] = str(folder / "runs" / f"whole-1-{processes}")
                results.append(run_stage(stage, tree, processes, arguments.kills, arguments.seed))
                print(results[-1], file=sys.stderr)
    table = Table("stage", "processes", "kills", "moments", "killed after step", "equal steps", "projector", "seconds")
    for one in results:
        table.add_row(
            *map(str, (one.stage, one.processes, len(one.killed_after_steps))),
            ", ".join(f"{count} {moment}" for moment, count in one.moments.items()),
            " ".join(map(str, one.killed_after_steps)),
            f"{one.steps - len(one.unequal_steps)} of {one.steps}",
            "equal" if one.equal_projector else "DIFFERS",
            f"{one.seconds:.0f}",
        )
    Console(width=140).print(table)
    if arguments.out:
        arguments.out.write_text(json.dumps([asdict(one) | {"passed": one.passed} for one in results], indent=2))
    sys.exit(not all(one.passed for one in results))


if __name__ == "__main__":
    main()
