"""Train the lab's LLM: `python -m ossicle_lab.models.build_llm WORK OUT`, under an hour on one CPU core.

WORK holds checkpoints; OUT receives the model, its tokenizer and ``scores.json``. Two runs with the same number of
threads give the same weights. A killed run continues from its last checkpoint with the same batches.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from ossicle.files import write_json
from ossicle.precision import CPU, usable
from ossicle_lab.models.checkpoint import load_state, save_state
from ossicle_lab.models.llm_data import RowBatch, RowMaker, Stage
from ossicle_lab.models.llm_eval import score_llm
from ossicle_lab.models.llm_model import answer_loss, new_model
from ossicle_lab.models.tokenizer import ASSISTANT, BOS, END, PAD, USER, WordIds, train_tokenizer
from ossicle_lab.world.grammar import ENGLISH, TRANSLATIONS
from ossicle_lab.world.passages import sample_passages
from ossicle_lab.world.tasks import TASKS, ask

SEED = 0
STEPS = 2960
ROWS = 32
"""Passages per training step, with about five instructions each."""
STAGES = (
    Stage(0, (0.6, 0.3, 0.1), 0.0),
    Stage(152, (0.25, 0.4, 0.35), 0.0),
    Stage(480, (0.2, 0.35, 0.45), 0.3),
    Stage(1152, (0.1, 0.45, 0.45), 0.0, questions=6, question_weight=0.2, backwards_share=0.5),
    Stage(1600, (0.15, 0.4, 0.45), 0.3, questions=6, question_weight=0.1, backwards_share=0.2),
    Stage(1752, (0.1, 0.4, 0.5), 0.3, questions=12, question_weight=0.1, backwards_share=0.2),
    Stage(2208, (0.0, 0.6, 0.4), 0.0, questions=12, question_weight=0.05, backwards_share=0.05),
    Stage(2352, (0.0, 0.6, 0.4), 0.0, questions=12, question_weight=0.05, who_weight=1.0, backwards_share=0.05),
    Stage(2544, (0.1, 0.4, 0.5), 0.3, questions=12, question_weight=0.05, who_weight=0.3, backwards_share=0.1),
    Stage(2552, (0.0, 0.6, 0.4), 0.0, questions=12, question_weight=0.05, who_weight=1.0, backwards_share=0.05),
    Stage(2808, (0.1, 0.4, 0.5), 0.3, questions=12, question_weight=0.05, who_weight=0.3, backwards_share=0.1),
)
_MATRIX_RATE = 3e-3
_VECTOR_RATE = 3e-3
_RATE_STEPS = (-1, 59, 1080, 1149, 1150, 1750, 2199, 2200, 2540, 2549, 2550, 2800, STEPS)
_RATE_SHARES = (0.0, 1.0, 1.0, 0.904, 0.955, 0.409, 0.103, 0.6, 0.6, 0.575, 0.6, 0.6, 0.0)
"""Factor of the learning rate at `_RATE_STEPS`, linear in between. This is the schedule of the actual run: it was
lengthened during training, and the rate raised once more, because "who" questions were at 70% and the others at 98%."""
_BLOCK = 8
_LOG_EVERY, _CHECKPOINT_EVERY, _EVALUATE_EVERY = 20, 50, 200
_DEV_PASSAGES, _TEST_PASSAGES = 40, 300
_TOKENIZER_PASSAGES = 3000

Scores = dict[str, dict[str, float]]


def build_llm(work: Path, out: Path, steps: int = STEPS) -> Scores:
    """Train the LLM, or continue in ``work``, write it to ``out``, and return its scores on the test split."""
    work.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(work / "tokenizer")
    model = new_model(tokenizer, SEED)
    _train(model, tokenizer, work, steps)
    model.bfloat16().save_pretrained(out)
    tokenizer.save_pretrained(out)
    model = LlamaForCausalLM.from_pretrained(out, dtype=torch.float32)  # score the published weights, in bfloat16
    scores = score_llm(model, tokenizer, "test", _TEST_PASSAGES)
    write_json(out / "scores.json", {"steps": steps, "seed": SEED, "test": scores})
    return scores


def _tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Load the tokenizer of an earlier run from ``folder``, or train it on the training split."""
    if not folder.exists():
        train_tokenizer(_texts()).save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def _texts() -> Iterator[str]:
    """Yield passages, instructions and answers of the training split."""
    rng = random.Random(SEED)
    for passage in sample_passages("train", _TOKENIZER_PASSAGES, seed=SEED):
        for task in TASKS:
            for language in TRANSLATIONS if task == "st" else (ENGLISH,):
                asked = ask(passage, task, rng, language)
                if asked:
                    yield from (passage.text, asked.instruction, *asked.answers)


def _train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, work: Path, steps: int) -> None:
    optimizers = new_optimizers(model)
    checkpoint = work / "checkpoint.pt"
    first = load_state(model, optimizers, checkpoint)
    batches = _batches(tokenizer, first)
    started = time.monotonic()
    for step in range(first, steps):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * float(np.interp(step, _RATE_STEPS, _RATE_SHARES))
        noise = torch.Generator().manual_seed(SEED + step)
        loss = answer_loss(model, next(batches), noise, usable(torch.bfloat16, CPU))
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        done = step + 1
        if done % _LOG_EVERY == 0:
            pace = (time.monotonic() - started) / (done - first)
            left = f"{pace:.2f} s/step, {pace * (steps - done) / 60:.0f} min left"
            print(f"llm step {done}/{steps} loss {loss.item():.4f} {left}", flush=True)
        if done % _CHECKPOINT_EVERY == 0 or done == steps:
            save_state(model, optimizers, done, checkpoint)
        if done % _EVALUATE_EVERY == 0:
            scores = score_llm(model, tokenizer, "dev", _DEV_PASSAGES)
            print("llm dev exact match:", {name: row["exact_match"] for name, row in scores.items()}, flush=True)


def _batches(tokenizer: PreTrainedTokenizerFast, first_step: int) -> Iterator[RowBatch]:
    """Yield the batches from a step on. Each block of steps has its own seed, so a resumed run sees the same ones."""
    special = {token: tokenizer.get_vocab()[token] for token in (PAD, BOS, USER, ASSISTANT, END)}
    maker = RowMaker(WordIds(tokenizer), special)
    block, skip = divmod(first_step, _BLOCK)
    while True:
        stage = [stage for stage in STAGES if stage.first_step <= block * _BLOCK][-1]
        yield from maker.block(random.Random(f"llm-{SEED}-{block}"), stage, _BLOCK, ROWS)[skip:]
        block, skip = block + 1, 0


def new_optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices of the layers and AdamW for the rest.

    With Muon, questions about several sentences are learnt in fewer steps.
    """
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    rest = [p for p in model.parameters() if all(p is not matrix for matrix in matrices)]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=_MATRIX_RATE, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=_VECTOR_RATE, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return optimizers


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train the lab LLM.")
    parser.add_argument("work", type=Path, help="folder of the checkpoint")
    parser.add_argument("out", type=Path, help="folder for the model, its tokenizer and scores.json")
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    build_llm(arguments.work, arguments.out, arguments.steps)
