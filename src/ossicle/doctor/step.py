"""Check that loss and gradients of one step are finite, and that the loss falls on a repeated batch."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import nn

from ossicle.batch import LossOutput
from ossicle.doctor.batch import Loaded
from ossicle.doctor.cost import Measured, report_cost
from ossicle.doctor.finding import Report, listed
from ossicle.doctor.saved import run_and_count
from ossicle.models.speech_llm import SpeechLLM
from ossicle.train.recipe import Config
from ossicle.train.state import trainable

OVERFIT_STEPS, OVERFIT_S = 20, 20.0
"""Largest number of steps and of seconds to overfit one batch."""
OVERFIT_LR = 1e-3
"""Learning rate of these steps."""


def check_step(config: Config, model: SpeechLLM, loaded: Loaded, report: Report) -> None:
    """Check a forward and backward pass, overfit the batch, and report the cost of the whole run."""
    model.train()
    if config.train.gradient_checkpointing:
        model.llm.checkpoint_gradients()
    parameters = [*trainable(model), *_of_objective(loaded)]
    optimizer = torch.optim.AdamW(parameters, lr=OVERFIT_LR, weight_decay=0.0)

    def forward() -> LossOutput:
        with loaded.accelerator.autocast():
            return loaded.objective(model, loaded.batch)

    try:
        output, saved_b = run_and_count(forward, model)
    except (ValueError, torch.OutOfMemoryError) as error:
        report.error(
            "step",
            str(error).splitlines()[0],
            "change the setting that the message names; to save memory, reduce data.batch_size or data.max_batch_s, or "
            "set train.gradient_checkpointing=true",
        )
        return
    torch.autograd.backward(output.total)
    first = float(output.total.detach())
    if not _check_first(first, model, report):
        return
    losses, seconds = _overfit(forward, optimizer, parameters, config.optim.clip)
    _check_overfit(first, losses, report)
    report_cost(config, model, loaded, report, Measured(saved_b, seconds))


def _of_objective(loaded: Loaded) -> list[nn.Parameter]:
    """Return the trained parameters of the objective, such as a temperature."""
    return trainable(loaded.objective) if isinstance(loaded.objective, nn.Module) else []


def _check_first(loss: float, model: SpeechLLM, report: Report) -> bool:
    """Report on the first loss and its gradient; return False if further steps make no sense."""
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad and p.grad is not None}
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    wrong = [name for name, gradient in gradients.items() if not gradient.isfinite().all()]
    if not torch.tensor(loss).isfinite() or wrong:
        report.error(
            "loss",
            f"the first loss is {loss}, and gradients of {listed(wrong) or 'nothing'} are not finite",
            "try train.precision=bf16 or fp32; look for broken audio in the batch",
        )
        return False
    norm = float(torch.stack([gradient.norm() for gradient in gradients.values()]).norm()) if gradients else 0.0
    if norm == 0:
        report.error("gradient", "no gradient reaches the parameters", "check the objective and model.trainable")
        return False
    if without:
        report.warning(
            "gradient", f"no gradient reaches {listed(without)}", "expected only for parts that this objective skips"
        )
    report.ok("loss", f"{loss:.3f} and its gradient (norm {norm:.2g}) are finite")
    return True


def _overfit(
    forward: Callable[[], LossOutput], optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], clip: float
) -> tuple[list[float], float]:
    """Train on the batch, starting with the gradient that exists; return the losses and the seconds per step."""
    losses: list[float] = []
    times: list[float] = []
    started = time.perf_counter()
    while len(losses) < OVERFIT_STEPS and time.perf_counter() - started < OVERFIT_S:
        before = time.perf_counter()
        nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()
        optimizer.zero_grad()
        output = forward()
        torch.autograd.backward(output.total)
        losses.append(float(output.total.detach()))
        times.append(time.perf_counter() - before)
    return losses, sorted(times)[len(times) // 2]


def _check_overfit(first: float, losses: list[float], report: Report) -> None:
    said = f"{first:.3f} -> {min(losses):.3f} in {len(losses)} steps on the same batch"
    if not all(torch.tensor(losses).isfinite()):
        report.error(
            "overfit",
            "the loss becomes infinite or NaN on a repeated batch",
            "lower optim.lr or set train.precision=bf16",
        )
    elif min(losses) < first:
        report.ok("overfit", said)
    else:
        report.warning(
            "overfit", said, "the loss should fall on a repeated batch: check labels, optim.lr and the projector"
        )
