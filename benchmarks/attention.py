"""Compare attention as two plain matrix products with PyTorch's fused kernel, on a CPU.

Usage: python benchmarks/attention.py [--batch 8] [--heads 8] [--groups 1] [--length 128] [--width 64] [--pairs 7]
    [--threads 1]

The first table is for forward and backward passes of whole sequences, the second for forward passes of a generation
step. `ossicle.models.packing` uses the faster implementation of each precision. The contenders run in turns. The tables
give the minimum process CPU time, the median of the paired ratios, and the distances between the outputs and between
the gradients of the keys. "By oneDNN" is ``torch.set_float32_matmul_precision("medium")``.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers.integrations.sdpa_attention import repeat_kv

from ossicle.models.packing import attend

STEPS = 20  # generation steps that are timed together
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def plain(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Compute causal attention (B, H, L, d) as two matrix products."""
    scores = (query * query.shape[-1] ** -0.5) @ key.mT
    ahead = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return scores.masked_fill(ahead, -torch.inf).softmax(-1) @ value


def fused(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Compute causal attention with `torch.nn.functional.scaled_dot_product_attention`."""
    return F.scaled_dot_product_attention(query, key, value, is_causal=True)


def chosen(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Compute causal attention as Ossicle does."""
    return attend(query, key, value, causal=True)


def timed(attention: Attention, inputs: list[Tensor]) -> tuple[float, Tensor, Tensor]:
    """Return the CPU seconds of forward and backward, the output, and the gradient of the keys."""
    leaves = [value.clone().requires_grad_() for value in inputs]
    started = time.process_time()
    out = attention(*leaves)
    out.backward(inputs[0])
    seconds = time.process_time() - started
    assert leaves[1].grad is not None
    return seconds, out.detach(), leaves[1].grad


def step_table(arguments: argparse.Namespace) -> Table:
    """Time a generation step: one query per sequence, keys padded on the left."""
    table = Table("type", "keys", "fused, CPU ms", "Ossicle's choice, CPU ms", "fused / chosen (median)", "output rel.")
    for dtype in (torch.float32, torch.bfloat16):
        for length in arguments.length:
            generator = torch.Generator().manual_seed(0)
            query, key, value = (
                torch.randn(arguments.batch, heads, size, arguments.width, generator=generator).to(dtype)
                for heads, size in ((arguments.heads, 1), *[(arguments.heads // arguments.groups, length)] * 2)
            )
            first = torch.arange(arguments.batch)[:, None] % max(length // 2, 1)
            mask = (torch.arange(length) >= first)[:, None, None]
            seconds: list[list[float]] = []
            for _ in range(arguments.pairs + 1):
                started = time.process_time()
                for _ in range(STEPS):
                    repeated = repeat_kv(key, arguments.groups), repeat_kv(value, arguments.groups)
                    fused_out = F.scaled_dot_product_attention(query, *repeated, attn_mask=mask)
                between = time.process_time()
                for _ in range(STEPS):
                    out = attend(query, key, value, mask=mask)
                seconds.append([between - started, time.process_time() - between])
            theirs, ours = zip(*seconds[1:], strict=True)  # the first warms up
            ratio = statistics.median(a / b for a, b in zip(theirs, ours, strict=True))
            times = (f"{1000 * min(each) / STEPS:.2f}" for each in (theirs, ours))
            table.add_row(str(dtype)[6:], str(length), *times, f"{ratio:.2f}", relative(out, fused_out))
    return table


def relative(ours: Tensor, theirs: Tensor) -> str:
    return f"{float((ours.float() - theirs.float()).norm() / theirs.float().norm()):.0e}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--groups", type=int, default=1, help="query heads per key head in the generation step")
    parser.add_argument("--length", type=int, nargs="+", default=[32, 128, 512])
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    table = Table(
        "type", "length", "fused, CPU ms", "plain, CPU ms", "Ossicle's choice, CPU ms", "fused / plain (median)",
        "output rel.", "gradient rel.",
    )  # fmt: skip
    kinds = {
        "float32": (torch.float32, "highest"),
        "float32 by oneDNN": (torch.float32, "medium"),
        "bfloat16": (torch.bfloat16, "highest"),
    }
    for kind, (dtype, precision) in kinds.items():
        torch.set_float32_matmul_precision(precision)
        for length in arguments.length:
            shape = arguments.batch, arguments.heads, length, arguments.width
            inputs = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype) for seed in range(3)]
            runs: list[list[tuple[float, Tensor, Tensor]]] = []
            for _ in range(arguments.pairs + 1):
                runs.append([timed(attention, inputs) for attention in (fused, plain, chosen)])
            seconds = [[run[0] for run in runs_of] for runs_of in zip(*runs[1:], strict=True)]  # the first warms up
            ratio = statistics.median(a / b for a, b in zip(seconds[0], seconds[1], strict=True))
            (_, out, grad), (_, plain_out, plain_grad), _ = runs[-1]
            table.add_row(
                kind, str(length), *(f"{1000 * min(times):.1f}" for times in seconds),
                f"{ratio:.2f}", relative(plain_out, out), relative(plain_grad, grad),
            )  # fmt: skip
    console = Console(width=120)
    console.print(
        f"Causal attention, batch {arguments.batch}, {arguments.heads} heads of {arguments.width}, forward and "
        f"backward, {arguments.threads} thread(s)"
    )
    console.print(table)
    console.print("One generation step, forward")
    console.print(step_table(arguments))


if __name__ == "__main__":
    main()
