"""One contrastive stage-1 step through a frozen LLM: Ossicle beside the recipe of the paper's code, same mathematics.

The baseline pads both sides, runs the text with a graph, computes logits and recomputes every layer in the backward
pass, as the official training script does. Ossicle packs, runs the text without a graph and stops at the last layer.
Both get the same vectors; losses and gradients are compared before anything is timed. Runs alternate; the table gives
the median of the paired ratios.

    python benchmarks/step.py [--width 512] [--layers 8] [--pairs 5] [--threads 1]
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from ossicle.batch import Sequence
from ossicle.losses.contrastive import info_nce, pooled_cosine
from ossicle.models.llm import LLM
from ossicle.testing import tiny_tokenizer

UTTERANCES = 30


def make_llm(width: int, layers: int, tokenizer: object) -> LLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32_000, hidden_size=width, intermediate_size=int(width * 3.5), num_hidden_layers=layers,
        num_attention_heads=width // 64, num_key_value_heads=max(1, width // 256),
    )  # fmt: skip
    return LLM(LlamaForCausalLM(config), tokenizer, name="benchmark")


def ragged(count: int, sigma: float, rate: float, width: int) -> Sequence:
    """Sequences whose lengths are lognormal, as utterances are: token efficiency 0.4 at the default sigma."""
    generator = torch.Generator().manual_seed(1)
    seconds = torch.exp(torch.randn(count, generator=generator) * sigma) * 5
    lengths = (seconds * rate).long().clamp(min=2)
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    return Sequence(torch.randn(*mask.shape, width, generator=generator) * 0.02, mask)


def ours(llm: LLM, text: Sequence, speech: Sequence, layers: range) -> Tensor:
    with torch.no_grad():
        reference = llm.hidden_states(text, layers)
    heard = llm.hidden_states(speech, layers)
    return sum_of_layers(reference.states, text.mask, heard.states, speech.mask, layers)


def official(model: LlamaForCausalLM, text: Sequence, speech: Sequence, layers: range) -> Tensor:
    sides = []
    for side in (text, speech):
        output = model(inputs_embeds=side.values, attention_mask=side.mask.long(), output_hidden_states=True)
        sides.append(dict(enumerate(output.hidden_states)))
    return sum_of_layers(sides[0], text.mask, sides[1], speech.mask, layers)


def sum_of_layers(text: dict, text_mask: Tensor, speech: dict, speech_mask: Tensor, layers: range) -> Tensor:
    losses = [info_nce(pooled_cosine(text[k], text_mask, speech[k], speech_mask)) for k in layers]
    return torch.stack(losses).sum()


def timed(step: Callable[[Tensor, Tensor], Tensor], text: Sequence, speech: Sequence) -> tuple[float, float, Tensor]:
    """Seconds, loss and gradient of the speech vectors."""
    speech_values = speech.values.clone().requires_grad_()
    text_values = text.values.clone().requires_grad_()  # the official code makes the embeddings' output require one
    started = time.perf_counter()
    loss = step(text_values, speech_values)
    loss.backward()
    seconds = time.perf_counter() - started
    assert speech_values.grad is not None
    return seconds, loss.item(), speech_values.grad * speech.mask[..., None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sigma", type=float, default=0.75)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    llm = make_llm(arguments.width, arguments.layers, tiny_tokenizer())
    reference = copy.deepcopy(llm.model)
    reference.set_attn_implementation("sdpa")
    reference.gradient_checkpointing_enable({"use_reentrant": False})
    for layer in reference.model.layers:
        layer.training = True  # transformers recomputes in train mode only
    layers = range(arguments.layers + 1)
    text = ragged(UTTERANCES, arguments.sigma, 4.0, arguments.width)
    speech = ragged(UTTERANCES, arguments.sigma, 12.0, arguments.width)

    table = Table("Ossicle", "× official (median)", "min", "max", "loss rel.", "gradient rel.", "gradient 1 - cos")
    for name, dtype in (("fp32", torch.float32), ("bf16 autocast", torch.bfloat16)):

        def our_step(text_values: Tensor, speech_values: Tensor, dtype: torch.dtype = dtype) -> Tensor:
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                return ours(llm, Sequence(text_values, text.mask), Sequence(speech_values, speech.mask), layers)

        def official_step(text_values: Tensor, speech_values: Tensor) -> Tensor:
            pair = Sequence(text_values, text.mask), Sequence(speech_values, speech.mask)
            return official(reference, *pair, layers)

        ratios = []
        for _ in range(arguments.pairs + 1):
            theirs, their_loss, their_gradient = timed(official_step, text, speech)
            mine, my_loss, my_gradient = timed(our_step, text, speech)
            ratios.append(theirs / mine)
        ratios = ratios[1:]  # the first pair warms up
        distance = (my_gradient - their_gradient).norm() / their_gradient.norm()
        cosine = torch.cosine_similarity(my_gradient.flatten(), their_gradient.flatten(), dim=0)
        table.add_row(
            name,
            f"{statistics.median(ratios):.2f}",
            f"{min(ratios):.2f}",
            f"{max(ratios):.2f}",
            f"{abs(my_loss / their_loss - 1):.1e}",
            f"{distance:.1e}",
            f"{1 - cosine:.1e}",
        )
    efficiency = float(speech.mask.float().mean())
    console = Console()
    console.print(
        f"Llama shape {arguments.width} × {arguments.layers}, {UTTERANCES} utterances, {int(speech.mask.sum())} speech "
        f"and {int(text.mask.sum())} text tokens, token efficiency {efficiency:.2f}, {arguments.threads} thread(s)"
    )
    console.print(table)


if __name__ == "__main__":
    main()
