"""Measure the memory that the frozen LLM takes on one machine whose processes each load it on the CPU.

Usage: python benchmarks/loading.py [--llm FOLDER] [--processes 1 2] [--megabytes 200]

Weights in the type of their file are memory-mapped: the processes of a machine share one copy, which is the page cache
of the file. Weights that are converted while they load are a copy of each process. Without --llm, a random Llama in
bfloat16 is written to a temporary folder. Each process loads the LLM by `load_llm`, runs it, and reads every weight.
The table has the sum over processes of their proportional set size (PSS), where a page that k processes share counts as
1/k in each; the part of it that the processes do not share; and the largest peak of a process. What a process takes
before it loads is left out. Linux only.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: the processes share the cores

import torch
from rich.console import Console
from rich.table import Table

MB = 1e6
HEAD, FFN_RATIO = 128, 2.75
PARAMETERS_PER_LAYER = 4 + 3 * FFN_RATIO
"""Parameters of a layer in multiples of the squared width."""


def write_llm(folder: Path, megabytes: float, width: int = 1024) -> Path:
    """Write a random Llama of about ``megabytes`` in bfloat16, with a byte tokenizer, and return its folder."""
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils.logging import disable_progress_bar

    from ossicle.testing import tiny_tokenizer

    disable_progress_bar()
    torch.manual_seed(0)
    layers = max(1, round(megabytes * MB / 2 / (PARAMETERS_PER_LAYER * width**2)))
    config = LlamaConfig(
        vocab_size=1000, hidden_size=width, intermediate_size=int(FFN_RATIO * width), num_hidden_layers=layers,
        num_attention_heads=width // HEAD, num_key_value_heads=width // HEAD,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def memory() -> dict[str, float]:
    """Return the memory of this process in MB: ``Pss``, ``Private``, and ``VmHWM``, the peak of its resident set."""
    text = Path("/proc/self/smaps_rollup").read_text() + Path("/proc/self/status").read_text()
    values = {line.split(":")[0]: float(line.split()[1]) * 1024 / MB for line in text.splitlines() if "kB" in line}
    values["Private"] = values["Private_Clean"] + values["Private_Dirty"]
    return {name: values[name] for name in ("Pss", "Private", "VmHWM", "VmRSS")}


def load(folder: str, dtype: str, barrier: Any, out: Connection) -> None:
    """Load the LLM, read all of it, and send what it takes, once every process has done so."""
    from ossicle.models.llm import load_llm

    before = memory()
    started = time.perf_counter()
    llm = load_llm(folder, dtype=getattr(torch, dtype))
    seconds = time.perf_counter() - started
    with torch.no_grad():
        llm.model(input_ids=torch.arange(8)[None])
        sum(float(parameter.sum()) for parameter in llm.parameters())
    barrier.wait()
    after = memory()
    barrier.wait()  # every process still holds its pages
    taken = {name: after[name] - before[name] for name in ("Pss", "Private")}
    out.send({**taken, "peak": after["VmHWM"] - before["VmRSS"], "seconds": seconds})


def measure(folder: str, dtype: str, processes: int) -> list[dict[str, float]]:
    """Return what each of ``processes`` that load the LLM at the same time takes, in MB and seconds."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(processes)
    pipes = [context.Pipe(duplex=False) for _ in range(processes)]
    workers = [context.Process(target=load, args=(folder, dtype, barrier, send)) for _, send in pipes]
    for worker in workers:
        worker.start()
    found = [receive.recv() for receive, _ in pipes]
    for worker in workers:
        worker.join()
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llm", help="folder of an LLM; default: a random one")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--megabytes", type=float, default=200.0)
    given = parser.parse_args(arguments)
    table = Table("type", "processes", "sum of PSS, MB", "not shared, MB", "peak of a process, MB", "seconds")
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.llm or str(write_llm(Path(temporary) / "llm", given.megabytes))
        files = sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))
        os.sync()  # pages of a file that was just written count as private
        for dtype in ("bfloat16", "float32"):
            for processes in given.processes:
                found = measure(folder, dtype, processes)
                sums = [f"{sum(one[name] for one in found):.0f}" for name in ("Pss", "Private")]
                most = [
                    f"{max(one[name] for one in found):{form}}" for name, form in (("peak", ".0f"), ("seconds", ".1f"))
                ]
                table.add_row(dtype, str(processes), *sums, *most)
    console = Console(width=120)
    console.print(f"{folder}: {files / MB:.0f} MB of safetensors files")
    console.print(table)


if __name__ == "__main__":
    main()
