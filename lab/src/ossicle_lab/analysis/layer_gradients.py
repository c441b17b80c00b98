"""Compare the gradients of the contrastive losses of single layers (`ossicle layer-gradients`).

The paper adds the losses of all layers with equal weight. This command measures whether their gradients with respect to
the trained parameters agree, and which layers dominate the sum, before training and at checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ossicle.batch import Batch
from ossicle.errors import ConfigError
from ossicle.files import write_json
from ossicle.models.speech_llm import SpeechLLM
from ossicle.objectives.contrastive import Contrastive
from ossicle.progress import track
from ossicle.train import recipe as configuration
from ossicle.train.batches import Data
from ossicle.train.run_folder import CONFIG_FILE
from ossicle.train.state import trainable

RESULTS_FILE = "layer_gradients.json"


@dataclass(frozen=True)
class LayerGradient:
    """The gradient of one layer's loss, averaged over batches."""

    layer: int
    loss: float
    norm: float
    """Norm of the gradient of the layer's weighted loss."""
    with_first: float
    """Cosine similarity with the gradient of the first layer."""
    with_sum: float
    """Cosine similarity with the gradient of the total loss. Near 0, a step does not reduce this layer's loss."""
    agreement: float
    """Unbiased estimate of the cosine similarity between two batches. Near 0, the gradient is mostly noise."""


def layer_gradients(model: SpeechLLM, objective: Contrastive, batches: Iterable[Batch]) -> list[LayerGradient]:
    """Return one row per layer of ``objective``. Raises `ConfigError` for fewer than two ``batches``.

    This takes a forward and backward pass per layer and batch, and memory for two gradients per layer.
    """
    layers = objective.weights(model.llm.num_layers)
    singles = [replace(objective, layers=layer, layer_weights=[weight]) for layer, weight in layers.items()]
    parameters = trainable(model)
    mean = torch.zeros(len(layers), 4)
    summed, squares, count = torch.zeros(()), torch.zeros(len(layers)), 0
    for batch in batches:
        losses, rows = zip(*(_gradient(model, single, batch, parameters) for single in singles), strict=True)
        gradients = torch.stack(rows)  # (K, P)
        norms, total = gradients.norm(dim=1), gradients.sum(0)
        cosines = cosine_similarity(gradients, gradients[:1]), cosine_similarity(gradients, total[None])
        mean += torch.stack([torch.stack(losses), norms, *cosines], 1)
        summed = summed + gradients
        squares += norms**2
        count += 1
    if count < 2:
        raise ConfigError(f"gradients of {count} batches cannot be compared; use at least two batches")
    between = (summed.norm(dim=1) ** 2 - squares) / (count * (count - 1))  # mean inner product of two batches
    agreement = between / (squares / count)
    return [
        LayerGradient(layer, *(round(float(value), 4) for value in [*(mean[k] / count), agreement[k]]))
        for k, layer in enumerate(layers)
    ]


def _gradient(
    model: SpeechLLM, objective: Contrastive, batch: Batch, parameters: list[torch.nn.Parameter]
) -> tuple[Tensor, Tensor]:
    """Return loss () and gradient (P,) on the CPU."""
    total = objective(model, batch).total
    parts = torch.autograd.grad(total, parameters, allow_unused=True)
    flat = [torch.zeros_like(p).flatten() if g is None else g.flatten() for p, g in zip(parameters, parts, strict=True)]
    return total.detach().cpu(), torch.cat(flat).float().cpu()


def measure(run: Path, checkpoints: list[Path], *, batches: int, overrides: list[str]) -> dict[str, Any]:
    """Measure the untrained projector of ``run`` and then each checkpoint, all on the same training batches.

    Raises `ConfigError` if ``run`` is not a run's folder, or if its objective is not contrastive.
    """
    if not (run / CONFIG_FILE).is_file():
        raise ConfigError(f"{run}: has no {CONFIG_FILE}; give the folder that a contrastive `ossicle train` wrote")
    config = configuration.load(run / CONFIG_FILE, overrides)
    objective = config.objective
    if not isinstance(objective, Contrastive):
        raise ConfigError(f"{run / CONFIG_FILE}: objective.name is {objective.name}; only contrastive compares layers")
    accelerator = Accelerator()
    set_seed(config.train.seed)  # the untrained projector is then the one that training started from
    model = config.model.build(accelerator.device).to(accelerator.device).eval()
    data = Data.load(config.data, model, accelerator, objective=objective)
    found: dict[str, Any] = {}
    for checkpoint in [None, *checkpoints]:
        name = str(checkpoint or "untrained")
        if checkpoint is not None:
            model.load_projector(checkpoint)
        drawn = track(islice(data.epoch(0), batches), name, total=batches, unit="batches")
        rows = layer_gradients(model, objective, (batch.to(accelerator.device) for batch in drawn))
        found[name] = [asdict(row) for row in rows]
    return {"run": str(run), "batches": batches, "batch_size": config.data.batch_size, "stages": found}


def show(record: dict[str, Any], console: Console) -> None:
    """Print one table per stage."""
    for name, rows in record["stages"].items():
        table = Table(title=name, box=box.SIMPLE_HEAD, title_justify="left")
        for heading in ("layer", "loss", "gradient norm", "cosine with first", "cosine with sum", "between batches"):
            table.add_column(heading, justify="right")
        for row in rows:
            cosines = (f"{row[field]:.2f}" for field in ("with_first", "with_sum", "agreement"))
            table.add_row(str(row["layer"]), f"{row['loss']:.2f}", f"{row['norm']:.3g}", *cosines)
        console.print(table)


def run(run_folder: Path, checkpoints: list[Path], *, batches: int, overrides: list[str], out: Path | None) -> None:
    """Measure, write the record to ``out`` (by default into the run's folder) and print it."""
    record = measure(run_folder, checkpoints or [run_folder], batches=batches, overrides=overrides)
    path = out or run_folder / RESULTS_FILE
    write_json(path, record)
    show(record, Console())
    print(path)
