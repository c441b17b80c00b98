"""Weigh the batches of an optimiser step, and judge and log its losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from ossicle.batch import Batch, LossOutput
from ossicle.train.state import Trainer

KINDS = ("answers", "mixed", "examples")
"""Units that losses are averaged over, see `Batch.label_counts`."""


def weigh(batches: Sequence[Batch], accelerator: Accelerator) -> list[Batch]:
    """Return the batches of one optimiser step with the weight of each loss that is a mean over labels.

    The weight is the number of the batch's labels divided by the mean number of all batches of the step, in all
    processes. The mean of the weighted losses is then the mean over all labels, as if there were one large batch.
    """
    if len(batches) == 1 and accelerator.num_processes == 1:
        return list(batches)
    counts = [batch.label_counts() for batch in batches]
    sums = torch.tensor([float(sum(count.get(kind, 0) for count in counts)) for kind in KINDS])
    total = accelerator.reduce(sums.to(accelerator.device), reduction="sum")
    averages = total / (len(batches) * accelerator.num_processes)
    means = dict(zip(KINDS, averages.unbind(), strict=True))
    return [
        replace(batch, weights={kind: number / means[kind] for kind, number in count.items()})
        for batch, count in zip(batches, counts, strict=True)
    ]


def any_process(flag: bool | Tensor, accelerator: Accelerator) -> bool:
    """Return True if ``flag`` is true in any process. All processes must call it."""
    if accelerator.num_processes == 1:
        return bool(flag)
    value = torch.as_tensor(flag, device=accelerator.device).float()
    return bool(accelerator.reduce(value, reduction="sum"))


def values_of(outputs: Sequence[LossOutput]) -> dict[str, float]:
    """Return the mean of each value of ``outputs``, with a single transfer from the device."""
    values = [(name, value) for output in outputs for name, value in _named(output).items()]
    if not values:
        return {}
    numbers = torch.stack([value.detach().float().to(values[0][1].device) for _, value in values]).tolist()
    by_name: dict[str, list[float]] = {}
    for (name, _), number in zip(values, numbers, strict=True):
        by_name.setdefault(name, []).append(number)
    return {name: sum(found) / len(found) for name, found in by_name.items()}


def mean_of_all(values: dict[str, float], accelerator: Accelerator) -> dict[str, float]:
    """Return the mean of each value over the processes that have it. All processes must call it."""
    if accelerator.num_processes == 1:
        return values
    found: list[dict[str, float]] = gather_object([values])
    names = dict.fromkeys(name for one in found for name in one)
    columns = {name: [one[name] for one in found if name in one] for name in names}
    return {name: sum(column) / len(column) for name, column in columns.items()}


def _named(output: LossOutput) -> dict[str, Tensor]:
    return {"loss": output.total, **{f"part/{name}": part for name, part in output.parts.items()}}


def is_finite(totals: Sequence[Tensor], norm: Tensor | None, trainer: Trainer, accelerator: Accelerator) -> bool:
    """Return True if the losses and the gradient of a step are finite in all processes.

    An infinite gradient alone is normal with float16: the scaler skips the step and lowers its scale. It counts only
    once the scale is below 1.
    """
    bad = ~torch.stack([total.detach() for total in totals]).isfinite().all()
    if norm is not None and (trainer.scaler is None or trainer.scaler.get_scale() < 1):
        bad = bad | ~torch.as_tensor(norm, device=bad.device).isfinite()
    return not any_process(bad, accelerator)
