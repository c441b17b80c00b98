"""How much of an epoch of random batches is padding: packed as Ossicle runs it, and padded as the official code does.

Lengths are the durations in manifests. The batches are those that the training sampler draws for a contrastive loss:
at random, since negatives of equal length would make length uninformative. Frames and tokens are counted by the
formulas of HuBERT (50 frames a second) and of the paper's projector (4 tokens for 17 frames), and positions of the
packed batch by `Packing` itself. Compared in the LLM, in the projector and in the encoder.

    python benchmarks/padding.py [MANIFEST ...] [--batch-size 10] [--epochs 3]

Without manifests, those under ../shared/data/real_speech if there are any.
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
RECEPTIVE_FIELD, HOP = 400, 320  # samples, of HuBERT's front end
WINDOW, QUERIES = 17, 4  # frames of a window of the projector, and the tokens it becomes
SHORTEST_S, LONGEST_S = 1.0, 45.0  # the official limits
ORDERS = ("random", "duration")


def frames_of(seconds: float) -> int:
    return max(1, (round(seconds * SAMPLE_RATE_HZ) - RECEPTIVE_FIELD) // HOP + 1)


def windows_of(seconds: float) -> int:
    return math.ceil(frames_of(seconds) / WINDOW)


def share(real: int, computed: int) -> float:
    """Percent of what is computed that is padding."""
    return 100 * (1 - real / computed)


def shares(batches: list[list[float]]) -> dict[str, float]:
    """Percent of padding in an epoch of ``batches`` of durations, by where it is and how it is run."""
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
    sampler = BatchSampler(durations_s=durations_s, batch_size=batch_size, order=order, remainder="keep")
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
    table = Table("padding, % of what is computed", "random batches", "batches of similar duration")
    for name in columns[0]:
        table.add_row(name, *(f"{column[name]:.1f}" for column in columns))
    console.print(
        f"{len(durations_s)} utterances of {SHORTEST_S:g}-{LONGEST_S:g} s from {len(manifests)} manifests, "
        f"{sum(durations_s) / 3600:.1f} h, batches of {arguments.batch_size}, mean of {arguments.epochs} epochs"
    )
    console.print(table)


if __name__ == "__main__":
    main()
