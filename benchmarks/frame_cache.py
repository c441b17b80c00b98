"""Measure what reading ahead gains while a frame cache is filled: batches of files are read while the encoder computes.

Usage: python benchmarks/frame_cache.py [ENCODER MANIFEST] [--recordings 200] [--rounds 3] [--dtype bfloat16] [--cpu]

ENCODER is a hub id, a folder or `lab`. The recordings are spread evenly over the manifest. Each round fills one cache
with files that are read between the batches, and one with files that are read ahead, in turns, so that other programs
slow both down alike.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Column, Table

from ossicle.data.dataset import SpeechDataset
from ossicle.data.manifest import read_manifest
from ossicle.models.encoder import load_encoder
from ossicle.models.frozen import resolve
from ossicle.precision import usable
from ossicle.train import cache


def between(dataset: Any, batches: Sequence[Sequence[int]]) -> Iterator[tuple[Sequence[int], list[Any]]]:
    """Yield each of ``batches`` with its items, which are read when the batch is due."""
    for indices in batches:
        yield indices, [dataset[index] for index in indices]


def main() -> None:
    """Fill caches in turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoder", nargs="?")
    parser.add_argument("manifest", type=Path, nargs="?")
    parser.add_argument("--recordings", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--cpu", action="store_true", help="do not use an accelerator")
    given = parser.parse_args()
    if given.manifest is None:
        print("frame_cache.py: needs ENCODER and MANIFEST, and is left out")
        return
    device = None if given.cpu else torch.accelerator.current_accelerator(check_available=True)
    device = device or torch.device("cpu")
    samples = read_manifest(given.manifest)
    dataset = SpeechDataset(samples[:: max(1, len(samples) // given.recordings)])
    dtype = usable(getattr(torch, given.dtype), device)
    encoder = load_encoder(resolve(given.encoder, "encoder"), dtype=dtype, context="audio", device=device)

    read_ahead = cache.read_ahead

    def fill(name: str) -> float:
        cache.read_ahead = {"between": between, "ahead": read_ahead}[name]  # type: ignore[assignment]
        with tempfile.TemporaryDirectory() as folder:
            frames = cache.FrameCache(Path(folder), encoder)
            started_s = time.perf_counter()
            frames.fill(dataset, device)
            return time.perf_counter() - started_s

    fill("ahead")  # warm-up: files in the memory of the system, kernels
    seconds = [{name: fill(name) for name in ("between", "ahead")} for _ in range(given.rounds)]
    ratios = [one["between"] / one["ahead"] for one in seconds]
    audio_s = sum(dataset.durations_s)
    table = Table(Column("files are read"), Column("audio-s/s", justify="right"), Column("ratio", justify="right"))
    table.add_row("between batches", f"{audio_s / statistics.median(one['between'] for one in seconds):.1f}", "1")
    shown = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
    table.add_row("ahead, in threads", f"{audio_s / statistics.median(one['ahead'] for one in seconds):.1f}", shown)
    Console().print(f"{len(dataset.samples)} recordings, {audio_s:.0f} s of audio, {dtype} on {device}")
    Console().print(table)


if __name__ == "__main__":
    main()
