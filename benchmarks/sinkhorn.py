"""Compare the Wasserstein loss, forward and backward, with a Python loop over pairs that calls geomloss.

Usage: python benchmarks/sinkhorn.py [--batch 32] [--width 512] [--pairs 3] [--threads 1] [--solvers torch numba]

The clouds are synthetic: texts of 25 to 55 tokens and speech of three times as many. Only speech gets a gradient. The
contenders run in turns. The table gives the median of the paired ratios of process CPU time and of wall time. It also
gives the distance of values and gradients from geomloss, and from geomloss in float64 on the first texts.

A solver is "torch" or "numba". The suffix "-bf16" runs the products of the backward pass in bfloat16. The floor is the
time of the two large matrix products alone in float32: all inner products, and the plans times the text. Width 4096
takes two more minutes.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from geomloss import SamplesLoss
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ossicle.losses.contrastive import info_nce
from ossicle.losses.sinkhorn import wasserstein_similarity
from ossicle.losses.sinkhorn_problem import inner_products

Clouds = tuple[Tensor, Tensor]
EXACT_TEXTS = 2
WARM_UP = 3  # rounds that are not counted: numba compiles, and the process gets its memory from the system


def ragged(lengths: list[int], width: int, seed: int) -> Clouds:
    """Return random hidden states and their mask; positions share a large mean, as in LLMs."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(len(lengths), max(lengths), width, generator=generator)
    points += torch.randn(width, generator=torch.Generator().manual_seed(0))
    return points, torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def loop_over_pairs(text: Clouds, speech: Clouds) -> Tensor:
    """Return the similarity (B_text, B_speech) as the official code computes it."""
    loss = SamplesLoss("sinkhorn", p=2, blur=0.05, backend="tensorized")
    texts, utterances = (
        [F.normalize(points[mask].to(torch.promote_types(points.dtype, torch.float32)), dim=-1)
         for points, mask in zip(*side, strict=True)] for side in (text, speech)
    )  # fmt: skip
    similarity = torch.zeros(len(texts), len(utterances), dtype=texts[0].dtype)
    for i, words in enumerate(texts):
        for j, sounds in enumerate(utterances):
            similarity[i, j] = -loss(words, sounds)
    return similarity


def timed(
    similarity: Callable[[Clouds, Clouds], Tensor], text: Clouds, speech: Clouds
) -> tuple[float, float, Tensor, Tensor]:
    """Return CPU seconds, wall seconds, the similarity, and the gradient of the loss in the speech."""
    heard = speech[0].clone().requires_grad_()
    cpu, wall = time.process_time(), time.perf_counter()
    matrix = similarity(text, (heard, speech[1]))
    info_nce(matrix).backward()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    assert heard.grad is not None
    return cpu, wall, matrix.detach(), heard.grad


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


def exactness(similarity: Callable[[Clouds, Clouds], Tensor], text: Clouds, speech: Clouds) -> tuple[float, float]:
    """Return the relative distance of values and gradient from geomloss in float64, on a part of the batch."""
    results = []
    for function, dtype in ((loop_over_pairs, torch.float64), (similarity, torch.float32)):
        heard = speech[0][:EXACT_TEXTS].to(dtype).requires_grad_()
        part = text[0][:EXACT_TEXTS].to(dtype), text[1][:EXACT_TEXTS]
        matrix = function(part, (heard, speech[1][:EXACT_TEXTS]))
        (gradient,) = torch.autograd.grad(matrix.diagonal().sum() - matrix.sum() / 4, heard)
        results.append((matrix.detach(), gradient))
    return relative(results[1][0], results[0][0]), relative(results[1][1], results[0][1])


def solver(name: str) -> Callable[[Clouds, Clouds], Tensor]:
    """Return our similarity function with the solver ``name``."""
    backend, _, half = name.partition("-")
    options = {"backend": backend, "bf16_gradient": half == "bf16"}
    return lambda text, speech: wasserstein_similarity(*text, *speech, **options)


def floor(text: Clouds, speech: Clouds) -> float:
    """Return the CPU seconds of the two large products of one step."""
    x, y = text[0][text[1]], speech[0][speech[1]]
    plans = torch.rand(len(x), len(y))
    started = time.process_time()
    inner_products(x, y)
    inner_products(plans.T, x.T)
    return time.process_time() - started


def row(table: Table, names: tuple[str, str], mine: list, others: tuple[list, list], close: list[float]) -> None:
    """Add a line to the table: times of Ossicle, of the loop and of the floor, and the distances of the results."""
    theirs, floors = others
    cpu, wall = ([other[k] / own[k] for own, other in zip(mine, theirs, strict=True)] for k in (0, 1))
    table.add_row(
        *names,
        *(f"{1000 * statistics.median(run[0] for run in runs):.0f}" for runs in (theirs, mine)),
        f"{1000 * statistics.median(floors):.0f}",
        f"{statistics.median(cpu):.1f}", f"{min(cpu):.1f}-{max(cpu):.1f}", f"{statistics.median(wall):.1f}",
        *(f"{distance:.0e}" for distance in close),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--width", type=int, nargs="+", default=[512])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--solvers", nargs="+", default=["torch", "numba", "numba-bf16"])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    draw = random.Random(0)
    lengths = [draw.randint(25, 55) for _ in range(arguments.batch)]

    table = Table(
        "solver", "D", "geomloss loop, CPU ms", "Ossicle, CPU ms", "floor, CPU ms", "× (median, CPU)", "range",
        "× (wall)", "values rel.", "gradient rel.", "values, fp64", "gradient, fp64",
    )  # fmt: skip
    for width in arguments.width:
        text, speech = ragged(lengths, width, 1), ragged([3 * length for length in lengths], width, 2)
        contenders = {"geomloss": loop_over_pairs} | {name: solver(name) for name in arguments.solvers}
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
        results: dict[str, tuple[Tensor, Tensor]] = {}
        floors = []
        for turn in range(WARM_UP + arguments.pairs):
            for name, similarity in contenders.items():
                cpu, wall, *results[name] = timed(similarity, text, speech)
                times[name] += [(cpu, wall)] * (turn >= WARM_UP)
            floors.append(floor(text, speech))
        for name in arguments.solvers:
            close = [relative(mine, theirs) for mine, theirs in zip(results[name], results["geomloss"], strict=True)]
            close += exactness(contenders[name], text, speech)
            row(table, (name, str(width)), times[name], (times["geomloss"], floors), close)
    console = Console(width=160)
    console.print(
        f"B = {arguments.batch}, text {min(lengths)}-{max(lengths)} tokens, speech × 3, {arguments.threads} thread(s)"
    )
    console.print(table)


if __name__ == "__main__":
    main()
