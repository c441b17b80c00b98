"""Compare a step of stage 2, the next-token loss on answers about speech, with and without Ossicle's savings on a CPU.

Usage: python benchmarks/stage2.py [LLM] [--dtype bfloat16] [--pairs 5] [--threads 1] [--answers]

LLM is a folder or hub id; the default is a random Llama with the sizes of SmolLM2-135M, and chat turns of random tokens
as long as its own. A batch has 16 chat turns about 2 to 15 s of speech (5.3 s on average) at 6 speech tokens per
second, with answers of about 15 tokens. The speech is random vectors, so that the figures are those of the LLM, forward
and backward. The contenders run in turns:

- padded: transformers as it comes, a padded batch and logits at every position;
- packed: no computation for padding, logits at the labels only;
- packed, prefix once: also, the tokens before the speech are computed once for all steps (`LLM.prefix`).

The table gives the minimum CPU and wall-clock seconds of a step, the median of the paired ratios of CPU time, and the
distances of loss and gradient. ``--answers`` compares greedy decoding of 20 tokens with that of transformers.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from ossicle.batch import Chat, Padded, Sample, pad_ids
from ossicle.models import packing
from ossicle.models.llm import LLM, load_llm
from ossicle.models.speech_llm import SpeechLLM
from ossicle.objectives.next_token import answer_inputs, token_losses
from ossicle.prompts import Prompter
from ossicle.testing import tiny_tokenizer

SECONDS = (2, 2.5, 3, 3, 3.5, 4, 4, 4.5, 5, 5, 5, 5.5, 6, 7, 10, 15)
RATE_HZ = 6.0  # speech tokens per second
ANSWER = "the quick brown fox jumps over the lazy dog and runs away"
TOKENS = 24, 14, 13  # of SmolLM2 before the speech, after it, and in the answer
DECODED = 20  # tokens of each answer under --answers
SMOLLM2 = {
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True,
}  # fmt: skip
Step = Callable[[Tensor], Tensor]


def make_llm(name: str | None, dtype: torch.dtype) -> LLM:
    if name is not None:
        return load_llm(name, dtype=dtype)
    torch.manual_seed(0)
    return LLM(LlamaForCausalLM(LlamaConfig(**SMOLLM2)).to(dtype), tiny_tokenizer(), name="random")


def make_chat(llm: LLM, *, real: bool) -> Chat:
    """Return the chat turns of recognition, or turns of random tokens that are as long as those of SmolLM2."""
    if real:
        samples = [Sample(id=str(index), audio=Path(), text=ANSWER) for index in range(len(SECONDS))]
        return Prompter(llm.tokenizer, llm.end_ids).chat(samples, 0)
    before, after, answer = (pad_ids([random.choices(range(200), k=count)] * len(SECONDS)) for count in TOKENS)
    return Chat(before=before, after=after, answer=answer)


class Listener(SimpleNamespace):
    """The part of `SpeechLLM` that builds chat turns, without an encoder and a projector."""

    chat_inputs, prompt = SpeechLLM.chat_inputs, SpeechLLM.prompt
    _embed, _opened = SpeechLLM._embed, SpeechLLM._opened
    llm: LLM


def steps_of(model: Any, chat: Chat, mask: Tensor) -> dict[str, Step]:
    """Return the loss of each contender, as a function of the speech vectors (B, M, D)."""
    llm, cached = model.llm, model.llm.prefix

    def padded(speech: Tensor) -> Tensor:
        embeds, labels = model.chat_inputs(chat, Padded(speech, mask))
        llm.model.set_attn_implementation("sdpa")
        output = llm.model(
            inputs_embeds=embeds.values.to(llm.model.dtype), attention_mask=embeds.mask.long(), use_cache=False
        )
        return F.cross_entropy(output.logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten())

    def packed(speech: Tensor, prefix: Callable[[Padded], Any] = lambda _: ()) -> Tensor:
        llm.model.set_attn_implementation(packing.ATTENTION)
        llm.prefix = prefix
        return token_losses(model, *answer_inputs(model, chat, Padded(speech, mask))).mean()

    return {"padded": padded, "packed": packed, "packed, prefix once": lambda speech: packed(speech, cached)}


def timed(step: Step, speech: Tensor) -> tuple[float, float, float, Tensor]:
    """Return CPU seconds, seconds, the loss, and the gradient of the speech vectors."""
    leaf = speech.clone().requires_grad_()
    cpu, wall = time.process_time(), time.perf_counter()
    loss = step(leaf)
    loss.backward()
    assert leaf.grad is not None
    return time.process_time() - cpu, time.perf_counter() - wall, loss.item(), leaf.grad


def step_table(model: Any, chat: Chat, speech: Padded, pairs: int) -> Table:
    steps = steps_of(model, chat, speech.mask)
    runs: dict[str, list] = {name: [] for name in steps}
    for _ in range(pairs + 1):
        for name, step in steps.items():
            runs[name].append(timed(step, speech.values))
    table = Table("a step of stage 2", "CPU s", "s", "× padded (median)", "range", "loss rel.", "gradient rel.")
    plain = runs["padded"]
    for name, own in runs.items():
        ratios = [theirs[0] / mine[0] for theirs, mine in zip(plain[1:], own[1:], strict=True)]
        distance = (own[-1][3] - plain[-1][3]).norm() / plain[-1][3].norm()
        table.add_row(
            name, *(f"{min(run[column] for run in own[1:]):.2f}" for column in (0, 1)),
            f"{statistics.median(ratios):.2f}", f"{min(ratios):.2f}-{max(ratios):.2f}",
            f"{abs(own[-1][2] / plain[-1][2] - 1):.0e}", f"{distance:.0e}",
        )  # fmt: skip
    return table


def answer_table(model: Any, chat: Chat, speech: Padded, pairs: int) -> Table:
    """Time greedy decoding with Ossicle's attention and with that of transformers, for one prompt and for all."""
    table = Table("greedy decoding, prompts", "transformers, tokens per CPU s", "Ossicle", "× (median)")
    settings = GenerationConfig(max_new_tokens=DECODED, min_new_tokens=DECODED, do_sample=False, pad_token_id=0)
    prompt = model.prompt(chat, speech)
    for count in (1, len(speech.mask)):
        runs: dict[str, list[float]] = {"sdpa": [], packing.ATTENTION: []}
        for _ in range(pairs + 1):
            for attention, seconds in runs.items():
                model.llm.model.set_attn_implementation(attention)
                started = time.process_time()
                with torch.no_grad():
                    model.llm.model.generate(
                        inputs_embeds=prompt.values[:count].to(model.llm.model.dtype),
                        attention_mask=prompt.mask[:count].long(), generation_config=settings,
                    )  # fmt: skip
                seconds.append(time.process_time() - started)
        ratios = [theirs / mine for theirs, mine in zip(*(each[1:] for each in runs.values()), strict=True)]
        speeds = [f"{count * DECODED / min(each[1:]):.1f}" for each in runs.values()]
        table.add_row(str(count), *speeds, f"{statistics.median(ratios):.2f}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("llm", nargs="?", metavar="LLM")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--answers", action="store_true", help="also measure decoding")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    llm = make_llm(arguments.llm, getattr(torch, arguments.dtype))
    chat = make_chat(llm, real=arguments.llm is not None)
    lengths = torch.tensor([int(RATE_HZ * seconds) for seconds in SECONDS])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    torch.manual_seed(0)
    speech = Padded(torch.randn(*mask.shape, llm.dim) * llm.embedding_rms, mask)
    model = Listener(llm=llm)
    positions = sum(int(part.mask.sum()) for part in (chat.before, speech, chat.after, chat.answer))
    console = Console(width=140)
    console.print(
        f"{llm.name}, {arguments.dtype}: {len(SECONDS)} chat turns of {positions} positions in all, "
        f"{int(chat.before.mask.sum())} of them before the speech, {int(chat.answer.mask.sum())} labels, "
        f"{arguments.threads} thread(s)"
    )
    console.print(step_table(model, chat, speech, arguments.pairs))
    if arguments.answers:
        console.print(answer_table(model, chat, speech, arguments.pairs))


if __name__ == "__main__":
    main()
