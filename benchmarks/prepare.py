"""Measure the speed and the memory of `ossicle prepare` for a short and a long corpus.

Usage: python benchmarks/prepare.py [--lines 10000 100000]

The corpus is a NeMo manifest of segments of one recording. Each size runs in its own process. The table gives the
memory before the command starts and the peak, which should not depend on the size.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
from rich.console import Console
from rich.table import Table

RECORDING_S = 60


def make(folder: Path, lines: int) -> Path:
    soundfile.write(folder / "a.wav", np.zeros(16_000 * RECORDING_S, np.float32), 16_000)
    path = folder / "train.jsonl"
    text = "some words that make a transcript of the usual length"
    with path.open("w", encoding="utf-8") as file:
        for i in range(lines):
            entry = {
                "id": f"u{i:08d}",
                "audio_filepath": "a.wav",
                "offset": float(i % 50),
                "duration": 1.5,
                "text": text,
            }
            file.write(json.dumps(entry) + "\n")
    return path


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(lines: int) -> dict[str, float]:
    from ossicle.corpora.prepare import prepare

    with tempfile.TemporaryDirectory() as folder:
        source = make(Path(folder), lines)
        before_mb, began, cpu_began = peak_mb(), time.perf_counter(), time.process_time()
        prepare("jsonl", source, Path(folder) / "out", show=False)
        cpu_s, wall_s = time.process_time() - cpu_began, time.perf_counter() - began
        return {"wall_s": wall_s, "cpu_s": cpu_s, "before_mb": before_mb, "peak_mb": peak_mb()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lines", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one is not None:
        print(json.dumps(measure(arguments.one)))
        return
    table = Table("utterances", "seconds", "CPU seconds", "utterances per CPU second", "MB before", "MB at most")
    for lines in arguments.lines:
        command = [sys.executable, __file__, "--one", str(lines)]
        found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        values = (lines, found["wall_s"], found["cpu_s"], lines / found["cpu_s"], found["before_mb"], found["peak_mb"])
        table.add_row(*(f"{value:.0f}" for value in values))
    Console().print(table)


if __name__ == "__main__":
    main()
