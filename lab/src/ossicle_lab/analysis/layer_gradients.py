"""`python -m ossicle_lab.analysis.layer_gradients RUN`: which way the contrastive loss of each layer pulls the projector.

The paper sums the losses of all layers alike. Whether they agree, and which of them the sum obeys, can be measured: by
the gradient of each with respect to what trains, on the batches of training, before training and at checkpoints.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from accelerate import Accelerator
from accelerate.utils import set_seed
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ossicle.batch import Batch
from ossicle.errors import ConfigError
from ossicle.models.speech_llm import SpeechLLM
from ossicle.objectives.contrastive import Contrastive
from ossicle.train import recipe as configuration
from ossicle.train.batches import Data
from ossicle.train.checkpoint import trainable
from ossicle.train.loop import CONFIG_FILE
from ossicle.train.tracking import bar

RESULTS_FILE = "layer_gradients.json"


@dataclass(frozen=True)
class LayerPull:
    """The gradient of one layer's loss, mean over batches."""

    layer: int
    loss: float
    norm: float
    """Length, of the layer's weighted loss."""
    with_first: float
    """Cosine with the gradient of the first layer compared."""
    with_sum: float
    """Cosine with that of the whole loss: near 0, and a step does nothing for this layer."""
    agreement: float
    """Cosine between the gradients of two batches, estimated without bias: near 0, and it is noise."""


def layer_gradients(model: SpeechLLM, objective: Contrastive, batches: Iterable[Batch]) -> list[LayerPull]:
    """One row per layer of ``objective``, over at least two ``batches``. Raises `ValueError` for fewer.

    Costs a forward and backward pass per layer and batch, and two copies of the trainable parameters per layer.
    """
    layers = objective.layer_list(model.llm.num_layers)
    weights = objective.layer_weights or [1.0] * len(layers)
    singles = [replace(objective, layers=layer, layer_weights=[w]) for layer, w in zip(layers, weights, strict=True)]
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
        raise ValueError(f"gradients of {count} batches cannot be compared: at least two are needed")
    between = (summed.norm(dim=1) ** 2 - squares) / (count * (count - 1))  # mean inner product of two batches
    agreement = between / (squares / count)
    return [
        LayerPull(layer, *(round(float(value), 4) for value in [*(mean[k] / count), agreement[k]]))
        for k, layer in enumerate(layers)
    ]


def _gradient(
    model: SpeechLLM, objective: Contrastive, batch: Batch, parameters: list[torch.nn.Parameter]
) -> tuple[Tensor, Tensor]:
    """Loss () and gradient (P,) on the CPU."""
    total = objective(model, batch).total
    parts = torch.autograd.grad(total, parameters, allow_unused=True)
    flat = [torch.zeros_like(p).flatten() if g is None else g.flatten() for p, g in zip(parameters, parts, strict=True)]
    return total.detach().cpu(), torch.cat(flat).float().cpu()


def measure(run: Path, checkpoints: list[Path], *, batches: int, overrides: list[str]) -> dict[str, Any]:
    """The untrained projector of ``run`` and then each checkpoint, all on the same training batches.

    Raises `ConfigError` where ``run`` is no run, or its objective not contrastive.
    """
    if not (run / CONFIG_FILE).is_file():
        raise ConfigError(f"{run}: has no {CONFIG_FILE}; give the folder that a contrastive `ossicle train` wrote")
    config = configuration.load(run / CONFIG_FILE, overrides)
    objective = config.objective
    if not isinstance(objective, Contrastive):
        raise ConfigError(f"{run / CONFIG_FILE}: objective.name is {objective.name}; only contrastive compares layers")
    accelerator = Accelerator()
    set_seed(config.train.seed)  # as in training: the untrained projector is the one that it began with
    model = config.model.build(accelerator.device).to(accelerator.device).eval()
    data = Data.load(config.data, model, accelerator, objective=objective)
    found: dict[str, Any] = {}
    with bar() as progress:
        for checkpoint in [None, *checkpoints]:
            name = str(checkpoint or "untrained")
            if checkpoint is not None:
                model.load_projector(checkpoint)
            drawn = progress.track(islice(data.epoch(0), batches), total=batches, description=name)
            rows = layer_gradients(model, objective, (batch.to(accelerator.device) for batch in drawn))
            found[name] = [asdict(row) for row in rows]
    return {"run": str(run), "batches": batches, "batch_size": config.data.batch_size, "stages": found}


def show(record: dict[str, Any], console: Console) -> None:
    """One table per stage."""
    for name, rows in record["stages"].items():
        table = Table(title=name, box=box.SIMPLE_HEAD, title_justify="left")
        for heading in ("layer", "loss", "gradient norm", "cosine with first", "cosine with sum", "between batches"):
            table.add_column(heading, justify="right")
        for row in rows:
            cosines = (f"{row[field]:.2f}" for field in ("with_first", "with_sum", "agreement"))
            table.add_row(str(row["layer"]), f"{row['loss']:.2f}", f"{row['norm']:.3g}", *cosines)
        console.print(table)


def main(
    run: Annotated[Path, typer.Argument(help="Folder of a contrastive run.", show_default=False)],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="section.field=value, e.g. objective.layers=all")
    ] = None,
    at: Annotated[list[Path] | None, typer.Option(help="Checkpoint; may be repeated. Default: the run's end.")] = None,
    batches: Annotated[int, typer.Option(min=2, help="Batches of training to average over.")] = 8,
    out: Annotated[Path | None, typer.Option("--out", "-o", help=f"Default: RUN/{RESULTS_FILE}.")] = None,
) -> None:
    """Show which way the contrastive loss of each layer pulls the projector, before training and after."""
    try:
        record = measure(run, at or [run], batches=batches, overrides=overrides or [])
    except (ValueError, OSError, RuntimeError) as error:
        raise SystemExit(f"error: {error}") from error
    path = out or run / RESULTS_FILE
    path.write_text(json.dumps(record, indent=2) + "\n")
    show(record, Console())
    print(path)


if __name__ == "__main__":
    typer.run(main)
