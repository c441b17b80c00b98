"""Measure the activations that one token keeps in one layer of a frozen LLM until the backward pass.

Usage: python benchmarks/memory.py [--width 512] [--layers 8] [--length 128] [--batch 8]

Every storage that autograd saves counts once, without parameters. The size per position and layer is scaled by
4096 / width to the width of Llama-3.1-8B, whose proportions the model has. The table compares Ossicle's packed forward
pass with that of transformers, frozen and with trained weights, on the same sequences without padding.
"""

from __future__ import annotations

import argparse

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from ossicle.batch import Padded
from ossicle.doctor.saved import run_and_count
from ossicle.models.llm import LLM
from ossicle.testing import tiny_tokenizer

REFERENCE_WIDTH = 4096


def make_model(width: int, layers: int) -> LlamaForCausalLM:
    """Return a small model with the proportions of Llama-3.1-8B: feed-forward 3.5 times the width, grouped heads."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1000, hidden_size=width, intermediate_size=int(width * 3.5), num_hidden_layers=layers,
        num_attention_heads=max(4, width // 128), num_key_value_heads=max(1, width // 512),
    )  # fmt: skip
    return LlamaForCausalLM(config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8)
    arguments = parser.parse_args()

    table = Table("forward", "type", "kB per token and layer, as measured", f"as at D = {REFERENCE_WIDTH}")
    mask = torch.ones(arguments.batch, arguments.length, dtype=torch.bool)
    for dtype in (torch.bfloat16, torch.float32):
        model = make_model(arguments.width, arguments.layers).to(dtype)
        values = torch.randn(*mask.shape, arguments.width, generator=torch.Generator().manual_seed(1)).to(dtype)
        values.requires_grad_()

        def theirs(model: LlamaForCausalLM = model, values: Tensor = values) -> object:
            return model.model(inputs_embeds=values, output_hidden_states=True, use_cache=False)

        measured = {"transformers, trained weights": run_and_count(theirs, model)[1]}
        model.requires_grad_(False)
        measured["transformers, frozen"] = run_and_count(theirs, model)[1]
        llm = LLM(model, tiny_tokenizer(), name="benchmark")

        def ours(llm: LLM = llm, sequence: Padded = Padded(values, mask)) -> object:  # noqa: B008 - evaluated here
            return llm.hidden_states(sequence, range(llm.num_layers + 1))

        measured["Ossicle, packed"] = run_and_count(ours, model)[1]
        for name, size in measured.items():
            each = size / mask.numel() / arguments.layers / 1000
            table.add_row(
                name,
                str(dtype).removeprefix("torch."),
                f"{each:.1f}",
                f"{each * REFERENCE_WIDTH / arguments.width:.0f}",
            )
    console = Console(width=120)
    console.print(
        f"Llama shape {arguments.width} × {arguments.layers}, {arguments.batch} sequences of {arguments.length} "
        "tokens, hidden states of all layers"
    )
    console.print(table)


if __name__ == "__main__":
    main()
