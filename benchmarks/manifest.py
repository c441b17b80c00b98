"""Measure what it costs to open a manifest of a million lines: time, and memory of a trainer with its data workers.

Usage: python benchmarks/manifest.py [--lines 1000000] [--workers 8] [--read 20000] [--ways list,table] [--json FILE]

The manifest is generated. Two ways are measured, each in a process of its own:

- list: every line becomes a `Sample` (`read_manifest`), as it was done before there was an index;
- table: `open_manifests` with the index; the first call makes the index, and the second one maps it.

Then a sampler plans an epoch in random order, and WORKERS forked processes read READ samples each, in that order.
Memory is the proportional set size (PSS), in which a page that n processes share counts 1/n in each. "own" is what the
manifest adds: the PSS minus that of the same processes without a manifest. Audio is not read.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

WAYS = ("nothing", "list", "index", "table")
"""The ways in which a measured process opens a manifest; ``index`` is the first call of ``table``."""


def generate(path: Path, lines: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        for i in range(lines):
            line = {
                "id": f"speaker{i % 977:04d}-{i:08d}",
                "audio": f"train/{i % 977:04d}/{i:08d}.flac",
                "text": "the quick brown fox jumps over the lazy dog " * (1 + i % 3),
                "language": "en",
                "speaker": f"speaker{i % 977:04d}",
                "duration_s": 1 + (i * 7919 % 2000) / 100,
                "task": "st",
                "instruction": "Translate to German.",
                "answer": "der schnelle braune Fuchs springt",
                "target_language": "de",
            }
            file.write(json.dumps(line) + "\n")


def pss_mb() -> float:
    """Return the proportional set size of this process in MB."""
    rollup = Path("/proc/self/smaps_rollup").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")) / 1e3


def opened(way: str, path: Path) -> Sequence[Any]:
    from ossicle.data.manifest import read_manifest
    from ossicle.data.table import open_manifests

    if way == "nothing":
        return range(1000)
    return read_manifest(path) if way == "list" else open_manifests([path], large_bytes=0)


def measure(way: str, path: Path, workers: int, read: int) -> dict[str, float]:
    """Open ``path``, plan an epoch, read in ``workers`` processes, and return seconds and MB."""
    import numpy as np

    from ossicle.data import table
    from ossicle.data.sampler import BatchSampler

    started = time.perf_counter()
    samples = opened(way, path)
    found = {"open_s": time.perf_counter() - started}
    if way == "index":
        return found
    if way == "nothing":
        durations_s = [1.0] * len(samples)
    else:
        durations_s = [seconds for _, seconds in table.stated(samples, 0, len(samples))]
    sampler = BatchSampler(durations_s=durations_s, batch_size=16, seed=1)
    order = np.concatenate(list(sampler))
    forking = multiprocessing.get_context("fork")  # as the data workers of the training
    barrier = forking.Barrier(workers + 1)
    queue: Any = forking.Queue()

    def work(number: int) -> None:
        for index in order[number::workers][:read].tolist():
            samples[index]
        barrier.wait()
        queue.put(pss_mb())
        barrier.wait()  # none may end before all have measured

    processes = [forking.Process(target=work, args=(number,)) for number in range(workers)]
    for process in processes:
        process.start()
    barrier.wait()
    found["trainer_mb"] = pss_mb()
    found["worker_mb"] = max(queue.get() for _ in processes)
    barrier.wait()
    for process in processes:
        process.join()
    found["all_mb"] = found["trainer_mb"] + workers * found["worker_mb"]
    return found


def run(path: Path, ways: list[str], workers: int, read: int, cache: Path) -> dict[str, dict[str, float]]:
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    rows = {}
    for way in ways:
        command = [sys.executable, __file__, "--way", way, "--path", str(path)]
        command += ["--workers", str(workers), "--read", str(read)]
        rows[way] = json.loads(subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE).stdout)
    return rows


def show(rows: dict[str, dict[str, float]], lines: int, workers: int) -> None:
    table = Table(title=f"{lines:,} lines, a trainer and {workers} data workers")
    for column in ("", "open, s", "first open, s", "trainer, MB (own)", "worker, MB (own)", "all, MB (own)"):
        table.add_column(column, justify="right")
    nothing = rows["nothing"]
    for way in [name for name in ("list", "table") if name in rows]:
        row, first = rows[way], rows["list" if way == "list" else "index"]["open_s"]
        sizes = [f"{row[name]:.0f} ({row[name] - nothing[name]:.0f})" for name in ("trainer_mb", "worker_mb", "all_mb")]
        table.add_row(way, f"{row['open_s']:.2f}", f"{first:.1f}", *sizes)
    Console(width=110).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--read", type=int, default=20_000)
    parser.add_argument("--ways", default="list,table", help="What to measure; a list of a million lines needs 12 GB.")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.way:
        print(json.dumps(measure(given.way, given.path, given.workers, given.read)))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "manifest.jsonl"
        generate(path, given.lines)
        ways = [
            way for way in WAYS if way == "nothing" or ("table" if way == "index" else way) in given.ways.split(",")
        ]
        rows = run(path, ways, given.workers, given.read, Path(folder) / "cache")
    show(rows, given.lines, given.workers)
    if given.json:
        given.json.write_text(json.dumps({"lines": given.lines, "workers": given.workers, **rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
