"""Evaluate the loss on the development data, over all processes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from accelerate import Accelerator
from torch import nn

from ossicle.batch import Batch
from ossicle.models.speech_llm import SpeechLLM
from ossicle.objectives import Contrastive, MixedContrastive
from ossicle.train.batches import Data
from ossicle.train.sharding import is_sharded
from ossicle.train.steps import KINDS, values_of


@torch.no_grad()
def evaluate(step: nn.Module, model: SpeechLLM, dev: Data, accelerator: Accelerator) -> dict[str, float] | None:
    """Return the mean loss and its parts on the development data, or None if no utterance could be read.

    Losses of labels are averaged over all labels of the data, and other losses over its utterances.
    """
    # The inner module: a distributed wrapper would exchange buffers, and processes may have unequal numbers of batches.
    module = accelerator.unwrap_model(step)
    model.eval()
    try:
        together = dev.sampler.min_batch_size > 1 or any(map(is_sharded, model.llm.parameters()))
        rates = _labels_per_utterance(module, dev, accelerator, together=together)
        totals: dict[str, float] = {}
        count = 0
        for batch in _readable(dev, accelerator, together=together):
            batch = batch.to(accelerator.device)
            own = batch.label_counts()
            weights = {kind: own[kind] / len(batch) / rate for kind, rate in rates.items() if kind in own}
            for name, value in values_of([module(replace(batch, weights=weights))]).items():
                totals[name] = totals.get(name, 0.0) + value * len(batch)
            count += len(batch)
    finally:
        model.train()
    return _mean_of_all(totals, count, accelerator)


def _mean_of_all(totals: dict[str, float], count: int, accelerator: Accelerator) -> dict[str, float] | None:
    if accelerator.num_processes > 1:
        from accelerate.utils import gather_object

        everyone: list[tuple[dict[str, float], int]] = gather_object([(totals, count)])
        count = sum(number for _, number in everyone)
        names = sorted({name for part, _ in everyone for name in part})
        totals = {name: sum(part.get(name, 0.0) for part, _ in everyone) for name in names}
    return {name: total / count for name, total in totals.items()} if count else None


def _readable(dev: Data, accelerator: Accelerator, *, together: bool) -> Iterator[Batch]:
    """Yield the batches that can be evaluated.

    If the processes work ``together``, they leave a batch out together: each waits for the utterances of the others, or
    for their layers.
    """
    smallest = dev.sampler.smallest
    for batch in dev.epoch(0):
        usable = len(batch) >= smallest
        if together and accelerator.num_processes > 1:
            flag = torch.tensor([int(usable)], device=accelerator.device)
            usable = int(accelerator.reduce(flag, reduction="sum")) == accelerator.num_processes
        if usable:
            yield batch


def _labels_per_utterance(
    module: nn.Module, dev: Data, accelerator: Accelerator, *, together: bool
) -> dict[str, float]:
    """Return the mean number of labels of each kind per utterance. The data are read once for it, in the first call."""
    if isinstance(module.objective, Contrastive | MixedContrastive):
        return {}
    if dev.label_rates is None:
        sums: dict[str, int] = {}
        count = 0
        for batch in _readable(dev, accelerator, together=together):
            count += len(batch)
            for kind, number in batch.label_counts().items():
                sums[kind] = sums.get(kind, 0) + number
        values = torch.tensor([*(sums.get(kind, 0) for kind in KINDS), count], device=accelerator.device)
        *numbers, utterances = accelerator.reduce(values, reduction="sum").tolist()
        dev.label_rates = {kind: n / utterances for kind, n in zip(KINDS, numbers, strict=True) if n}
    return dev.label_rates
