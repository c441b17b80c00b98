"""Compare one contrastive stage-1 step through a frozen LLM with the official training script, at the same mathematics.

Usage: python benchmarks/step.py [--width 512] [--layers 8] [--utterances 20] [--pairs 3] [--threads 1]

The baseline does what the official script does, in float32: it pads both sides, runs the text with a graph, computes
logits, and recomputes every layer in the backward pass. Ossicle packs, reads the pooled text states from a cache, stops
at the last layer, and recomputes only attention. Both get the same speech vectors and run in turns. The table gives the
median of the paired ratios of process CPU time, and the distances of loss and gradient.

"oneDNN" is ``torch.set_float32_matmul_precision("medium")``: float32 on CPUs without AMX, bfloat16 products with AMX.
The head of the LLM is small enough to take 7 % of a forward pass, as in Llama-3.1-8B.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from ossicle.batch import Padded
from ossicle.losses.contrastive import info_nce, mean_pool
from ossicle.models.llm import LLM
from ossicle.testing import tiny_tokenizer

TEXT_RATE_HZ, SPEECH_RATE_HZ = 4.0, 12.0  # tokens per second

Step = Callable[[Tensor, Tensor], Tensor]


def make_llm(width: int, layers: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=int(width * layers), hidden_size=width, intermediate_size=int(width * 3.5), num_hidden_layers=layers,
        num_attention_heads=width // 64, num_key_value_heads=max(1, width // 256),
    )  # fmt: skip
    return LlamaForCausalLM(config)


def checkpointed(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """Return a frozen copy that transformers runs with gradient checkpointing of every layer."""
    model = copy.deepcopy(model).requires_grad_(False).eval()
    model.set_attn_implementation("sdpa")
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for layer in model.model.layers:
        layer.training = True  # transformers recomputes in train mode only
    return model


def ragged(count: int, sigma: float, rate: float, width: int) -> Padded:
    """Return sequences with lognormal lengths, as utterances have: token efficiency 0.4 at the defaults."""
    generator = torch.Generator().manual_seed(1)
    seconds = torch.exp(torch.randn(count, generator=generator) * sigma) * 5
    lengths = (seconds * rate).long().clamp(min=2)
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    return Padded(torch.randn(*mask.shape, width, generator=generator) * 0.02, mask)


def pooled(states: dict[int, Tensor], mask: Tensor) -> Tensor:
    """Return the L2-normalised means over the positions of every layer, (K, B, D)."""
    return F.normalize(torch.stack([mean_pool(state, mask) for state in states.values()]), dim=-1)


def loss_of(texts: Tensor, utterances: Tensor) -> Tensor:
    """Return the sum over layers of InfoNCE between pooled states (K, B, D)."""
    return torch.stack([info_nce(text @ speech.T) for text, speech in zip(texts, utterances, strict=True)]).sum()


def ours(llm: LLM, texts: Tensor, speech_mask: Tensor, autocast: bool) -> Step:
    def step(_: Tensor, speech: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            heard = llm.hidden_states(Padded(speech, speech_mask), range(llm.num_layers + 1))
            return loss_of(texts, pooled(heard.states, speech_mask))

    return step


def official(model: LlamaForCausalLM, text_mask: Tensor, speech_mask: Tensor) -> Step:
    def step(text: Tensor, speech: Tensor) -> Tensor:
        sides = []
        for values, mask in ((text, text_mask), (speech, speech_mask)):
            output = model(inputs_embeds=values, attention_mask=mask.long(), output_hidden_states=True)
            sides.append(pooled(dict(enumerate(output.hidden_states)), mask))
        return loss_of(*sides)

    return step


def timed(step: Step, text: Padded, speech: Padded, precision: str) -> tuple[float, float, Tensor]:
    """Return CPU seconds, loss, and the gradient of the speech vectors."""
    speech_values = speech.values.clone().requires_grad_()
    text_values = text.values.clone().requires_grad_()  # the official code lets the embedding output require a gradient
    torch.set_float32_matmul_precision(precision)
    started = time.process_time()
    loss = step(text_values, speech_values)
    loss.backward()
    seconds = time.process_time() - started
    torch.set_float32_matmul_precision("highest")
    assert speech_values.grad is not None
    return seconds, loss.item(), speech_values.grad * speech.mask[..., None]


def row(name: str, mine: list, theirs: list) -> list[str]:
    """Return one line of the table; the first pair of runs is a warm-up and is left out."""
    ratios = [other[0] / own[0] for own, other in zip(mine[1:], theirs[1:], strict=True)]
    (_, my_loss, my_gradient), (_, their_loss, their_gradient) = mine[-1], theirs[-1]
    distance = (my_gradient - their_gradient).norm() / their_gradient.norm()
    cosine = torch.cosine_similarity(my_gradient.flatten().double(), their_gradient.flatten().double(), dim=0)
    return [
        name,
        *(f"{statistics.median(run[0] for run in runs[1:]):.1f}" for runs in (theirs, mine)),
        f"{statistics.median(ratios):.1f}", f"{min(ratios):.1f}-{max(ratios):.1f}",
        f"{abs(my_loss / their_loss - 1):.0e}", f"{distance:.0e}", f"{1 - cosine:.0e}",
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--utterances", type=int, default=20)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sigma", type=float, default=0.6, help="standard deviation of the logarithm of the lengths")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    model = make_llm(arguments.width, arguments.layers)
    reference = checkpointed(model)
    half = LLM(copy.deepcopy(model).to(torch.bfloat16), tiny_tokenizer(), name="benchmark")
    llm = LLM(model, tiny_tokenizer(), name="benchmark")
    text, speech = (
        ragged(arguments.utterances, arguments.sigma, rate, arguments.width) for rate in (TEXT_RATE_HZ, SPEECH_RATE_HZ)
    )
    with torch.no_grad():  # the content of the text cache, computed once in float32
        texts = pooled(llm.hidden_states(text, range(arguments.layers + 1)).states, text.mask)

    baseline = official(reference, text.mask, speech.mask)
    steps = {  # name: (step, its precision, precision of the baseline)
        "fp32": (ours(llm, texts, speech.mask, False), "highest", "highest"),
        "fp32 by oneDNN, both sides": (ours(llm, texts, speech.mask, False), "medium", "medium"),
        "fp32 by oneDNN, Ossicle only": (ours(llm, texts, speech.mask, False), "medium", "highest"),
        "bf16 autocast, Ossicle only": (ours(llm, texts, speech.mask, True), "highest", "highest"),
        "bf16 LLM, Ossicle only": (ours(half, texts, speech.mask, False), "highest", "highest"),
    }
    mine: dict[str, list] = {name: [] for name in steps}
    theirs: dict[str, list] = {precision: [] for precision in ("highest", "medium")}
    for _ in range(arguments.pairs + 1):
        for precision, runs in theirs.items():
            runs.append(timed(baseline, text, speech, precision))
        for name, (step, precision, _) in steps.items():
            mine[name].append(timed(step, text, speech, precision))

    table = Table(
        "Ossicle", "official, CPU s", "Ossicle, CPU s", "× (median)", "range", "loss rel.", "gradient rel.",
        "gradient 1 - cos",
    )  # fmt: skip
    for name, (_, _, precision) in steps.items():
        table.add_row(*row(name, mine[name], theirs[precision]))
    console = Console(width=140)
    console.print(
        f"Llama shape {arguments.width} × {arguments.layers}, {arguments.utterances} utterances, "
        f"{int(speech.mask.sum())} speech and {int(text.mask.sum())} text tokens, token efficiency "
        f"{float(speech.mask.float().mean()):.2f}, {arguments.threads} thread(s)"
    )
    console.print(table)


if __name__ == "__main__":
    main()
