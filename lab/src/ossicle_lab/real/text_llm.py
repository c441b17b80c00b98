"""Train a small LLM on real text: repetition, translation and extractive answers, with the instructions of stage 2.

Its shape, optimisers and forward pass are those of the lab's LLM; its tokenizer is a larger BPE of the training texts.
A row is a text and several instructions about it that do not see each other (`ossicle_lab.models.llm_data`).
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from ossicle.precision import CPU, usable
from ossicle.prompts import ASR_INSTRUCTIONS, LANGUAGE_NAMES, TRANSLATE_INSTRUCTION
from ossicle_lab.models.build_llm import new_optimizers
from ossicle_lab.models.checkpoint import load_state, save_state
from ossicle_lab.models.llm_data import Row, RowBatch, collate_rows
from ossicle_lab.models.llm_model import answer_loss, new_model
from ossicle_lab.models.tokenizer import ASSISTANT, BOS, END, PAD, USER, WordIds, train_tokenizer
from ossicle_lab.real.texts import Texts

VOCABULARY = 6000
ASR_SHARE = 0.5
"""Share of rows with the text repeated as an answer."""
PASSAGE_SHARE = 0.1
"""Share of rows about a passage. There are far more sentences than passages."""
QUESTIONS = 3
"""Largest number of questions about a passage in a row."""
NOISY_SHARE = 0.2
"""Share of rows with noise on the embeddings of the text, like speech."""
MOST_NOISE = 0.3
"""Largest standard deviation of the noise, in units of the RMS of the embeddings."""
WARMUP = 60
DECAY_FROM = 0.5
"""Share of the steps after which the learning rate decays to 0."""
_BLOCK = 8
_LOG_EVERY, _CHECKPOINT_EVERY = 20, 100
_TEXT, _NOTHING = 0, -1  # groups of positions, see `ossicle_lab.models.llm_data`


@dataclass(frozen=True)
class Item:
    """A text and its tasks as pairs of instruction and answer, without repetition."""

    text: str
    tasks: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Items:
    """The training data."""

    sentences: list[Item]
    passages: list[Item]

    @property
    def written(self) -> Iterator[str]:
        """Yield every text, instruction and answer."""
        for item in (*self.sentences, *self.passages):
            yield item.text
            for task in item.tasks:
                yield from task


def train_text_llm(texts: Texts, work: Path, out: Path, *, steps: int, rows: int, seed: int = 0) -> Path:
    """Train the LLM, or continue in ``work``, and return its folder ``out``. A complete model is not trained again.

    Args:
        texts: the training texts.
        work: folder of the checkpoint, the tokenizer and ``log.txt``.
        out: output folder of the model and its tokenizer.
        steps: number of training steps.
        rows: texts per step.
        seed: seed of the weights, the batches and the noise.
    """
    if (out / "config.json").is_file():
        return out
    work.mkdir(parents=True, exist_ok=True)
    items = training_items(texts)
    tokenizer = _tokenizer(items, work / "tokenizer")
    model = new_model(tokenizer, seed)
    _train(model, _Batches(items, tokenizer, rows, seed), work, steps, seed)
    tokenizer.save_pretrained(out)
    model.bfloat16().save_pretrained(out)
    return out


def training_items(texts: Texts) -> Items:
    """Return English sentences, each once with all its translations, and passages with their questions."""
    tasks: dict[str, dict[str, str]] = {}
    for sentence in texts.train_sentences:
        tasks.setdefault(sentence.text, {}).update(
            {translate_instruction(code): translation for code, translation in sentence.translations.items()}
        )
    passages = (*texts.passages, *texts.heard)
    return Items(
        sentences=[Item(text, tuple(found.items())) for text, found in tasks.items()],
        passages=[Item(p.text, tuple((q.text, q.answers[0]) for q in p.questions)) for p in passages],
    )


def translate_instruction(language: str) -> str:
    """Return the instruction that prepare-tts writes for a translation."""
    return TRANSLATE_INSTRUCTION.format(language=LANGUAGE_NAMES[language])


class _Batches:
    """Draw batches by step. Each block of steps has its own seed, so a resumed run gets the same batches."""

    def __init__(self, items: Items, tokenizer: PreTrainedTokenizerFast, rows: int, seed: int) -> None:
        self._items, self._rows, self._seed = items, rows, seed
        self._ids = WordIds(tokenizer)
        self._special = {token: tokenizer.get_vocab()[token] for token in (PAD, BOS, USER, ASSISTANT, END)}

    def starting_at(self, step: int) -> Iterator[RowBatch]:
        block, skip = divmod(step, _BLOCK)
        while True:
            yield from self._block(random.Random(f"text-llm-{self._seed}-{block}"))[skip:]
            block, skip = block + 1, 0

    def _block(self, rng: random.Random) -> list[RowBatch]:
        """Return a block of batches, with rows of similar length together and batches in random order."""
        drawn = [self._row(self._item(rng), rng) for _ in range(_BLOCK * self._rows)]
        drawn.sort(key=lambda row: len(row.ids))
        batches = [drawn[start : start + self._rows] for start in range(0, len(drawn), self._rows)]
        rng.shuffle(batches)
        return [collate_rows(batch, self._special[PAD]) for batch in batches]

    def _item(self, rng: random.Random) -> Item:
        passages = self._items.passages
        return rng.choice(passages if rng.random() < PASSAGE_SHARE and passages else self._items.sentences)

    def _row(self, item: Item, rng: random.Random) -> Row:
        row = Row(noise=rng.uniform(0.0, MOST_NOISE) if rng.random() < NOISY_SHARE else 0.0)
        start = [self._special[BOS], self._special[USER], *self._ids(item.text)]
        row.add(start, [0.0] * len(start), _TEXT, _NOTHING, 0)
        tasks = rng.sample(item.tasks, min(QUESTIONS, len(item.tasks)))
        if not tasks or rng.random() < ASR_SHARE:
            tasks.append((rng.choice(ASR_INSTRUCTIONS), item.text))
        for group, (instruction, answer) in enumerate(tasks, start=_TEXT + 1):
            asked = [*self._ids(instruction), self._special[END], self._special[ASSISTANT]]
            said = [*self._ids(answer), self._special[END]]
            # The total weight of an answer grows with the square root of its length.
            weights = [0.0] * len(asked) + [len(said) ** -0.5] * len(said)
            row.add(asked + said, weights, group, _TEXT, len(start))
        return row


def _tokenizer(items: Items, folder: Path) -> PreTrainedTokenizerFast:
    """Load the tokenizer of an earlier call from ``folder``, or train it."""
    if not folder.exists():
        train_tokenizer((*items.written, *ASR_INSTRUCTIONS), VOCABULARY).save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def _train(model: LlamaForCausalLM, batches: _Batches, work: Path, steps: int, seed: int) -> None:
    optimizers = new_optimizers(model)
    checkpoint = work / "checkpoint.pt"
    first = load_state(model, optimizers, checkpoint)
    source = batches.starting_at(first)
    started, losses = time.monotonic(), []
    with (work / "log.txt").open("a", encoding="utf-8") as log:
        for step in range(first, steps):
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = group["initial_lr"] * rate_share(step, steps)
            noise = torch.Generator().manual_seed(seed + step)
            loss = answer_loss(model, next(source), noise, usable(torch.bfloat16, CPU))
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            losses.append(loss.item())
            done = step + 1
            if done % _LOG_EVERY == 0 or done == steps:
                pace = (time.monotonic() - started) / (done - first)
                print(f"step {done}/{steps} loss {np.mean(losses):.3f} {pace:.2f} s/step", file=log, flush=True)
                losses.clear()
            if done % _CHECKPOINT_EVERY == 0 or done == steps:
                save_state(model, optimizers, done, checkpoint)


def rate_share(step: int, steps: int) -> float:
    """Return the factor of the learning rate: a short warmup, then constant, then a linear decay to 0."""
    warmup = min(WARMUP, steps // 10)
    return min((step + 1) / (warmup + 1), 1.0, (steps - step) / ((1 - DECAY_FROM) * steps))
