"""Compare matrix products in half precision with float32 on this CPU.

Usage: python benchmarks/precision.py [--width 128 512] [--pairs 5] [--threads 1]

Both run in turns. The table gives the minimum process CPU time, the median of the paired ratios, and the type that
`ossicle.precision` selects. A CPU without AVX-512 or AMX is tens of times slower in bfloat16 than in float32.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ossicle.precision import CPU, usable


def timed(x: Tensor, y: Tensor) -> float:
    """Return the CPU seconds of ``x`` @ ``y``."""
    started = time.process_time()
    x @ y
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    table = Table(
        "type", "width", "float32, CPU ms", "this type, CPU ms", "this type / float32 (median)", "Ossicle computes in"
    )
    for dtype in (torch.bfloat16, torch.float16):
        for width in arguments.width:
            x, y = (torch.randn(width, width, generator=torch.Generator().manual_seed(seed)) for seed in range(2))
            half = x.to(dtype), y.to(dtype)
            runs = [(timed(x, y), timed(*half)) for _ in range(arguments.pairs + 1)][1:]  # the first warms up
            ratio = statistics.median(b / a for a, b in runs)
            times = (f"{1000 * min(seconds):.2f}" for seconds in zip(*runs, strict=True))
            table.add_row(str(dtype)[6:], str(width), *times, f"{ratio:.1f}", str(usable(dtype, CPU))[6:])
    console = Console(width=120)
    capability = torch.backends.cpu.get_cpu_capability()
    console.print(f"Square matrices, {arguments.threads} thread(s), {capability}")
    console.print(table)


if __name__ == "__main__":
    main()
