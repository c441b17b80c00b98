"""Measure what each saving of the joint search brings in the time of transcripts on a CPU.

Usage: python benchmarks/search.py [MANIFEST] [--model ears] [--clips 8] [--batch-size 4] [--rounds 3] [--threads 1]

MANIFEST has English recordings; without one, nothing is measured. Its first clips are transcribed by joint search with
everything on, and with one saving after the other turned off:

- prompts once: the LLM reads a prompt once, not once per hypothesis (`ossicle.models.prefix.read_once`);
- beginnings once: texts that the LLM compares are read once up to their first difference (`rescoring.sharing`);
- plain attention: a step's attention as two matrix products, not by the fused kernel of PyTorch (`packing.attend`).

The last row has all three turned off. The rows run in turns. The table gives the minimum process CPU time, the median
of the ratios to the first row, and how many transcripts differ from those of the first row.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers.integrations.sdpa_attention import repeat_kv

from ossicle import SpeechLLM
from ossicle.batch import Padded
from ossicle.data.manifest import read_manifest
from ossicle.models import generation, packing, rescoring
from ossicle.models.packing import Packing

INSTRUCTION = "Transcribe the speech."
attend = packing.attend


def apart(ids: Padded) -> Packing:
    """Return a packing in which no position is shared."""
    packed = Packing.of(ids.mask)
    places = torch.zeros_like(ids.values)
    places[ids.mask] = torch.arange(len(packed.index))
    return replace(packed, places=places)


def fused(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
    """Compute attention of single queries by PyTorch's kernel, and other attention as Ossicle does."""
    if query.shape[2] > 1:
        return attend(query, key, value, **options)
    repeated = (repeat_kv(each, query.shape[1] // each.shape[1]) for each in (key, value))
    return F.scaled_dot_product_attention(query, *repeated, attn_mask=options["mask"], scale=options["scale"])


OFF: dict[str, Callable[[], Any]] = {
    "prompts once": lambda: patch.object(generation, "read_once", lambda *_: {}),
    "beginnings once": lambda: patch.object(rescoring, "sharing", apart),
    "plain attention": lambda: patch.object(packing, "attend", fused),
}


@contextmanager
def without(names: list[str]) -> Iterator[None]:
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(OFF[name]())
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path, nargs="?")
    parser.add_argument("--model", default="ears", help="model with the projector ctc")
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.manifest is None:
        print("skipped: give a manifest with recordings")
        return
    torch.set_num_threads(arguments.threads)
    model = SpeechLLM.from_pretrained(arguments.model)
    samples = list(read_manifest(arguments.manifest))[: arguments.clips]
    recordings = [sample.audio for sample in samples]
    batches = [recordings[k : k + arguments.batch_size] for k in range(0, len(recordings), arguments.batch_size)]
    rows = {"everything on": [], **{f"without {name}": [name] for name in OFF}, "without all three": list(OFF)}
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    texts: dict[str, list[str]] = {}
    model.generate(batches[0], INSTRUCTION)  # warms up
    for _ in range(arguments.rounds):
        for name, off in rows.items():
            with without(off):
                started = time.process_time()
                texts[name] = [text for batch in batches for text in model.generate(batch, INSTRUCTION)]
                seconds[name].append(time.process_time() - started)
    table = Table("row", "CPU s", "ratio to the first row", "other transcripts")
    first = "everything on"
    for name, each in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(each, seconds[first], strict=True))
        differ = sum(a != b for a, b in zip(texts[name], texts[first], strict=True))
        table.add_row(name, f"{min(each):.1f}", f"{ratio:.2f}", str(differ))
    audio_s = sum(sample.duration_s or 0.0 for sample in samples)
    console = Console(width=100)
    console.print(f"{len(samples)} clips, {audio_s:.0f} s, {arguments.threads} thread(s), {model.llm.model.dtype}")
    console.print(table)


if __name__ == "__main__":
    main()
