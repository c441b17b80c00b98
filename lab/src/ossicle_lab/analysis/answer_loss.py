"""Measure how likely the right answers are, and how much of that comes from the audio.

    python -m ossicle_lab.analysis.answer_loss RUN... --manifest TASKS.jsonl

For each run and task it prints the loss of the right answers in nats per token, with their own audio and with that of
another line of the task. The difference is what the LLM learns from the audio. It shows progress that word error
rates hide, because a model that begins to hear still loops.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from ossicle.batch import Sample
from ossicle.data.collate import Collator
from ossicle.data.dataset import SpeechDataset
from ossicle.data.manifest import read_manifest
from ossicle.errors import DataError
from ossicle.evaluate.other_audio import with_other_audio
from ossicle.objectives.next_token import answer_inputs, chat_of, token_losses
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
        """Loss with another's audio minus loss with the own audio."""
        return self.other - self.own


@torch.no_grad()
def answer_losses(model: Any, samples: list[Sample], *, batch_size: int = 16) -> list[AnswerLoss]:
    """Return the losses of ``model``, a `SpeechLLM`, for each task of ``samples``.

    Raises `DataError` if no line of a task can have the audio of another one (`with_other_audio`).
    """
    model.eval()
    tasks: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        tasks[task_key(sample.task or "asr", sample.target_language)].append(sample)
    return [_of_task(model, task, lines, batch_size) for task, lines in sorted(tasks.items())]


def _of_task(model: Any, task: str, samples: list[Sample], batch_size: int) -> AnswerLoss:
    swapped = with_other_audio(samples)
    if not swapped:
        raise DataError(f"{samples[0].source}: no other line with the task {task} has another audio and another answer")
    own, other = (_mean_loss(model, lines, batch_size) for lines in (samples, swapped))
    return AnswerLoss(task, len(samples), own, other)


def _mean_loss(model: Any, samples: list[Sample], batch_size: int) -> float:
    """Return the mean loss of the tokens of all answers."""
    dataset, collate = SpeechDataset(samples, max_duration_s=float("inf")), Collator(model.prompter())
    order = sorted(range(len(dataset.samples)), key=lambda k: dataset.samples[k].duration_s or 0.0)
    losses = []
    for start in range(0, len(order), batch_size):
        batch = collate([dataset[k] for k in order[start : start + batch_size]])
        batch = batch.to(next(model.projector.parameters()).device)
        embeds, labels, prefix = answer_inputs(model, chat_of(batch), model.speech(batch))
        losses.append(token_losses(model, embeds, labels, prefix))
    return torch.cat(losses).mean().item()


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
