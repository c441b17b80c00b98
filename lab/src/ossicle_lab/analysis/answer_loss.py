"""Measure how likely the right answers are, and how much of that comes from the audio.

    python -m ossicle_lab.analysis.answer_loss RUN... --manifest TASKS.jsonl

For each run and task it prints the loss of the right answers in nats per token, with their own audio and with that of
another utterance of the batch. The difference is what the LLM learns from the audio. It shows progress that word error
rates hide, because a model that begins to hear still loops.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from ossicle.batch import Padded, Sample
from ossicle.data.collate import Collator
from ossicle.data.dataset import SpeechDataset
from ossicle.data.manifest import read_manifest
from ossicle.errors import DataError
from ossicle.objectives.next_token import answer_inputs, token_losses
from ossicle.prompts import task_key

Manifests = Annotated[list[Path], typer.Option("--manifest", help="Manifest with task lines; repeatable.")]


@dataclass(frozen=True)
class AnswerLoss:
    """Loss of the right answers of one task, in nats per token."""

    task: str
    utterances: int
    own: float
    """With their own audio."""
    other: float
    """With the audio of another utterance."""

    @property
    def gain(self) -> float:
        """What the audio is worth: the loss with another's audio minus that with its own."""
        return self.other - self.own


@torch.no_grad()
def answer_losses(model: Any, samples: list[Sample], *, batch_size: int = 16) -> list[AnswerLoss]:
    """Return the losses of ``model``, a `SpeechLLM`, for each task of ``samples``.

    Raises `DataError` if a task has a single utterance, for which there is no other audio.
    """
    model.eval()
    tasks: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        tasks[task_key(sample.task or "asr", sample.target_language)].append(sample)
    return [_of_task(model, task, lines, batch_size) for task, lines in sorted(tasks.items())]


def _of_task(model: Any, task: str, samples: list[Sample], batch_size: int) -> AnswerLoss:
    if len(samples) < 2:
        raise DataError(
            f"{samples[0].source}: is the only line with the task {task}; two are needed to swap their audio"
        )
    found = [pair for batch in _batches(model, samples, batch_size) for pair in _losses(model, batch)]
    own, other = (torch.cat(part).mean().item() for part in zip(*found, strict=True))
    return AnswerLoss(task, len(samples), own, other)


def _batches(model: Any, samples: list[Sample], batch_size: int) -> Iterator[Any]:
    """Yield batches of similar lengths. None has a single utterance."""
    dataset = SpeechDataset(samples, max_duration_s=float("inf"))
    order = sorted(range(len(dataset.samples)), key=lambda k: dataset.samples[k].duration_s or 0.0)
    groups = [order[k : k + batch_size] for k in range(0, len(order), batch_size)]
    if len(groups[-1]) == 1:
        groups[-2:] = [groups[-2] + groups[-1]]
    collate = Collator(model.prompter())
    for group in groups:
        yield collate([dataset[k] for k in group]).to(next(model.projector.parameters()).device)


def _losses(model: Any, batch: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the losses of the tokens of a batch with each utterance's own audio, and with that of its neighbour."""
    speech = model.speech(batch)
    other = Padded(speech.values.roll(1, 0), speech.mask.roll(1, 0))
    pair = []
    for heard in (speech, other):
        embeds, labels, prefix = answer_inputs(model, batch.chat, heard)
        pair.append(token_losses(model, embeds, labels, prefix).float())
    yield pair[0], pair[1]


def main(runs: Annotated[list[Path], typer.Argument(help="Folders of runs.")], manifest: Manifests) -> None:
    """Print the loss of the right answers, with their own audio and with another's."""
    from ossicle.models.speech_llm import SpeechLLM

    samples = [sample for path in manifest for sample in read_manifest(path)]
    print("| run | task | n | own audio ↓ | other audio | gain ↑ |\n|---|---|---|---|---|---|")
    for run in runs:
        for row in answer_losses(SpeechLLM.from_pretrained(run), samples):
            figures = f"{row.own:.2f} | {row.other:.2f} | {row.gain:.2f}"
            print(f"| {run} | {row.task} | {row.utterances} | {figures} |", flush=True)


if __name__ == "__main__":
    typer.run(main)
