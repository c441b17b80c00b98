"""Score the lab's LLM on the tasks with text as input: the upper bound of every speech result of the lab."""

from __future__ import annotations

import random
from collections import defaultdict

import jiwer
import sacrebleu
import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from ossicle_lab.world.grammar import TRANSLATIONS
from ossicle_lab.world.passages import Passage, Split, sample_passages
from ossicle_lab.world.tasks import TASKS, Task, ask

_BATCH = 64


def greedy_answers(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, requests: list[str], max_new_tokens: int = 64
) -> list[str]:
    """Return the greedily decoded answer to each "PASSAGE INSTRUCTION", through the chat template."""
    chats = [
        str(tokenizer.apply_chat_template([{"role": "user", "content": r}], tokenize=False, add_generation_prompt=True))
        for r in requests
    ]
    answers = [""] * len(chats)
    by_length = sorted(range(len(chats)), key=lambda index: len(chats[index].split()))
    for start in range(0, len(chats), _BATCH):
        chosen = by_length[start : start + _BATCH]
        ids, mask = _left_padded([tokenizer(chats[i])["input_ids"] for i in chosen], tokenizer.pad_token_id)
        with torch.no_grad():
            output = model.generate(input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=max_new_tokens)
        decoded = tokenizer.batch_decode(output[:, ids.shape[1] :], skip_special_tokens=True)
        for index, answer in zip(chosen, decoded, strict=True):
            answers[index] = answer.strip()
    return answers


def score_llm(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, split: Split, count: int
) -> dict[str, dict[str, float]]:
    """Return the number of items, exact match, and WER or BLEU (in percent) of each task.

    ``st`` is reported per language, and ``qa`` per number of sentences.
    """
    items: dict[str, list[tuple[str, str]]] = defaultdict(list)  # task -> (request, answer)
    rng = random.Random(f"score-{split}")
    for passage in sample_passages(split, count, seed=1):
        for name, task in _tasks(passage, rng):
            items[name].append((f"{passage.text} {task.instruction}", task.answers[0]))
    was_training = model.training
    model.eval()
    requests = [request for pairs in items.values() for request, _ in pairs]
    answers = iter(greedy_answers(model, tokenizer, requests))
    model.train(was_training)
    scores = {}
    for name, pairs in items.items():
        scores[name] = _scores(name, [next(answers) for _ in pairs], [reference for _, reference in pairs])
    return scores


def _tasks(passage: Passage, rng: random.Random) -> list[tuple[str, Task]]:
    found: list[tuple[str, Task | None]] = []
    for name in TASKS:
        if name == "st":
            found += [(f"st_{language}", ask(passage, name, rng, language)) for language in TRANSLATIONS]
        elif name == "qa":
            found.append((f"qa_{len(passage.sentences)}", ask(passage, name, rng)))
        else:
            found.append((name, ask(passage, name, rng)))
    return [(name, task) for name, task in found if task]


def _scores(name: str, answers: list[str], references: list[str]) -> dict[str, float]:
    exact = sum(answer == reference for answer, reference in zip(answers, references, strict=True))
    scores = {"items": len(answers), "exact_match": round(100 * exact / len(answers), 2)}
    if name.startswith("st_"):
        # The texts have no punctuation and are split at spaces, so sacreBLEU has nothing to tokenise.
        scores["bleu"] = round(sacrebleu.corpus_bleu(answers, [references], tokenize="none", force=True).score, 2)
    if name == "asr":
        scores["wer"] = round(100 * jiwer.wer(references, answers), 2)
    return scores


def _left_padded(rows: list[list[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    length = max(map(len, rows))
    ids = torch.tensor([[pad_id] * (length - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
    return ids, mask
