"""Measure the share of padding in epochs of training batches, packed as in Ossicle and padded as in the official code.

Usage: python benchmarks/padding.py [MANIFEST ...] [--batch-size 10] [--epochs 3]

The durations come from manifests; the default is those under ../shared/data/real_speech, if they exist. The training
sampler draws the batches at random, as a contrastive loss needs: negatives of equal length would otherwise make length
a cue. Frames and tokens follow from HuBERT (50 frames per second) and the paper's projector (4 tokens per 17 frames).
`Packing` counts the positions of a packed batch.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from ossicle.audio import SAMPLE_RATE_HZ
from ossicle.data.manifest import read_manifest
from ossicle.data.sampler import BatchSampler
from ossicle.models.packing import Packing

DEFAULT = Path(__file__).parents[2] / "shared" / "data" / "real_speech"
RECEPTIVE_FIELD, HOP = 400, 320  # of HuBERT's convolutions, in samples
WINDOW, QUERIES = 17, 4  # frames per window of the projector, and tokens per window
SHORTEST_S, LONGEST_S = 1.0, 45.0  # limits of the official code
ORDERS = ("random", "duration")


def frames_of(seconds: float) -> int:
    return max(1, (round(seconds * SAMPLE_RATE_HZ) - RECEPTIVE_FIELD) // HOP + 1)


def windows_of(seconds: float) -> int:
    return math.ceil(frames_of(seconds) / WINDOW)


def share(real: int, computed: int) -> float:
    """Return the percentage of the computed positions that are padding."""
    return 100 * (1 - real / computed)


def shares(batches: list[list[float]]) -> dict[str, float]:
    """Return the percentage of padding in an epoch of ``batches`` of durations, by module and implementation."""
    real_frames = padded_frames = real_windows = padded_windows = packed = padded = 0
    for batch in batches:
        frames, windows = [frames_of(seconds) for seconds in batch], [windows_of(seconds) for seconds in batch]
        tokens = torch.tensor([QUERIES * count for count in windows])
        mask = torch.arange(int(tokens.max())) < tokens[:, None]
        packed += Packing.of(mask).positions.shape[1]
        padded += mask.numel()
        real_frames += sum(frames)
        padded_frames += max(frames) * len(frames)
        real_windows += sum(windows)
        padded_windows += max(windows) * len(windows)
    real = QUERIES * real_windows
    return {
        "LLM, packed (Ossicle)": share(real, packed),
        "LLM, padded (official)": share(real, padded),
        "projector, valid windows only (Ossicle): the frames that fill each last window": share(
            real_frames, WINDOW * real_windows
        ),
        "projector, all windows of the padded batch": share(real_frames, WINDOW * padded_windows),
        "encoder, padded batch (both)": share(real_frames, padded_frames),
    }


def epoch_of(durations_s: list[float], order: str, batch_size: int, epoch: int) -> list[list[float]]:
    sampler = BatchSampler(durations_s=durations_s, batch_size=batch_size, order=order)
    sampler.set_epoch(epoch)
    return [[durations_s[index] for index in batch] for batch in sampler]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifests", nargs="*", type=Path, metavar="MANIFEST")
    parser.add_argument("--batch-size", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=3)
    arguments = parser.parse_args()
    manifests = arguments.manifests or sorted(DEFAULT.glob("*/manifest.jsonl"))
    console = Console(width=120)
    if not manifests:
        console.print("Skipped: no manifests given, and none under ../shared/data/real_speech.")
        return
    samples = [sample for manifest in manifests for sample in read_manifest(manifest)]
    durations_s = [s.duration_s for s in samples if s.duration_s and SHORTEST_S <= s.duration_s <= LONGEST_S]
    columns = []
    for order in ORDERS:
        epochs = [shares(epoch_of(durations_s, order, arguments.batch_size, e)) for e in range(arguments.epochs)]
        columns.append({name: sum(epoch[name] for epoch in epochs) / len(epochs) for name in epochs[0]})
    table = Table("padding, % of computed positions", "random batches", "batches of similar duration")
    for name in columns[0]:
        table.add_row(name, *(f"{column[name]:.1f}" for column in columns))
    console.print(
        f"{len(durations_s)} utterances of {SHORTEST_S:g}-{LONGEST_S:g} s from {len(manifests)} manifests, "
        f"{sum(durations_s) / 3600:.1f} h, batches of {arguments.batch_size}, mean of {arguments.epochs} epochs"
    )
    console.print(table)


if __name__ == "__main__":
    main()
