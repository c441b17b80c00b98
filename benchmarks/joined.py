"""Train with several processes and with one that has the joined batch, and compare losses, gradients and projectors.

Usage: python benchmarks/joined.py [--processes 4] [--steps 6] [--only cosine ctc] [--out joined.json]

Tiny random models train from 16 utterances of unequal lengths, in float32 on a CPU, with the dropout masks of
``train.dropout=utterance``. The processes communicate by gloo. Each has 8 / PROCESSES utterances per step. One process
has 8, or as many batches of the size of the others per step (``accumulate``). Prints the largest relative difference of
the loss, of its parts and of the gradient's norm over all steps, of the loss on development data at the end, and of the
projector: the norm of the difference in proportion to the change after the first step. Exits with 1 if one is above
1e-3.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from kill import PROJECTOR, Training  # sets OMP_NUM_THREADS
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from torch import Tensor

from ossicle.data.manifest import read_manifest, write_manifest
from ossicle.models.saving import ADAPTERS_FILE, WEIGHTS_FILE
from ossicle.testing import tiny_encoder, tiny_llm, tiny_manifest
from ossicle.train.tracking import METRICS_FILE, read_metrics

UTTERANCES, BATCH = 16, 8
LIMIT = 1e-3
SMALL = 0.01
"""A divergence near 0 is a difference of logarithms, whose rounding does not become smaller with it."""
NOT_COMPARED = {"step", "split", "lr", "time_s", "audio_s_per_s", "padding"}
NEXT_TOKEN: dict[str, Any] = {"name": "next_token"}
CTC = {"name": "ctc", "width": 16, "heads": 2, "ffn": 24, "layers": 2, "dropout": 0.2}
CIF = {"name": "cif", "width": 16, "heads": 2, "ffn": 24, "layers": 2, "dropout": 0.2}
LORA = {"modules": ["llm.*.q_proj"], "rank": 2}
GREEDY = {"name": "on_policy", "temperature": 0, "max_new_tokens": 1}


@dataclass(frozen=True)
class Case:
    """Settings whose runs are compared."""

    objective: dict[str, Any]
    tasks: bool = False
    sections: dict[str, Any] | None = None
    """Further settings, by section."""


CASES = {
    "cosine": Case({"name": "contrastive"}),
    "cosine, text cache": Case({"name": "contrastive"}, sections={"data": {"cache_text": True}}),
    "cosine, both directions, learned temperature": Case(
        {"name": "contrastive", "direction": "symmetric", "learn_temperature": True}
    ),
    "cosine, balanced layers": Case({"name": "contrastive", "balance_every": 1}),
    "wasserstein": Case({"name": "contrastive", "similarity": "wasserstein"}),
    "asr": Case(NEXT_TOKEN),
    "asr, accumulated": Case(NEXT_TOKEN, sections={"train": {"accumulate": 2}}),
    "fine-tuning": Case(NEXT_TOKEN, tasks=True),
    "fine-tuning, LoRA": Case(NEXT_TOKEN, tasks=True, sections={"model": {"lora": LORA}}),
    "fine-tuning, FSDP2": Case(NEXT_TOKEN, tasks=True, sections={"train": {"fsdp": True}}),
    "cosine, FSDP2 on two machines": Case({"name": "contrastive"}, sections={"train": {"fsdp": "node"}}),
    "cosine + asr": Case({"name": "sum", "terms": [{"objective": {"name": "contrastive"}}, {"objective": NEXT_TOKEN}]}),
    "distillation": Case({"name": "distillation"}, tasks=True),
    "regression": Case({"name": "regression"}),
    "ctc": Case({"name": "ctc"}, sections={"model": {"projector": CTC}}),
    "cif": Case({"name": "cif", "objective": {"name": "regression"}}, sections={"model": {"projector": CIF}}),
    "on-policy": Case(GREEDY),
}


@dataclass
class Result:
    """Largest relative differences of a case."""

    case: str
    loss: float
    parts: float
    gradient: float
    dev: float
    projector: float

    @property
    def passed(self) -> bool:
        return max(self.loss, self.parts, self.gradient, self.dev, self.projector) < LIMIT


def records(folder: Path, split: str) -> dict[int, dict[str, float]]:
    found = [record for record in read_metrics(folder / METRICS_FILE) if record["split"] == split]
    return {one["step"]: {name: value for name, value in one.items() if name not in NOT_COMPARED} for one in found}


def difference(one: float, other: float) -> float:
    """Return the relative difference, or the one relative to `SMALL` of two smaller values."""
    return abs(one - other) / max(abs(one), abs(other), SMALL)


def weights(folder: Path) -> dict[str, Tensor]:
    """Return what was trained: the projector, and adapters if there are any."""
    files = [folder / name for name in (WEIGHTS_FILE, ADAPTERS_FILE)]
    return {name: tensor for file in files if file.is_file() for name, tensor in load_file(file).items()}


def norm(tensors: dict[str, Tensor]) -> float:
    return math.sqrt(sum(float(tensor.square().sum()) for tensor in tensors.values()))


def compare(name: str, case: Case, tree: dict[str, Any], processes: int) -> Result:
    """Train ``case`` with the settings ``tree`` in one process and in ``processes``."""
    folders = []
    for count in (1, processes):
        own = {**tree, "name": f"{list(CASES).index(name)}-{count}", "objective": case.objective}
        for section, values in (case.sections or {}).items():
            own[section] = {**own[section], **values}
        own["data"] = {**own["data"], "batch_size": BATCH // count // own["train"]["accumulate"]}
        training = Training(own, count)
        training.finish()
        folders.append(training.folder)
    steps = [records(folder, "train") for folder in folders]
    if steps[0].keys() != steps[1].keys() or len(steps[0]) != tree["train"]["steps"]:
        raise SystemExit(f"{name}: the runs have other steps: {[sorted(one) for one in steps]}")
    by_name: dict[str, float] = {}
    for step, values in steps[0].items():
        for key in values.keys() | steps[1][step].keys():
            by_name[key] = max(by_name.get(key, 0.0), difference(values[key], steps[1][step][key]))
    dev = [records(folder, "dev")[tree["train"]["steps"]]["loss"] for folder in folders]
    start, alone, divided = map(weights, (min((folders[0] / "checkpoints").glob("step-*")), *folders))
    moved, apart = (norm({key: alone[key] - other[key] for key in alone}) for other in (start, divided))
    loss, gradient = by_name.pop("loss"), by_name.pop("grad_norm")
    return Result(name, loss, max(by_name.values(), default=0.0), gradient, difference(*dev), apart / moved)


def manifest_in(folder: Path, *, tasks: bool) -> str:
    """Write utterances whose texts and answers differ much in length."""
    path = tiny_manifest(folder, UTTERANCES, tasks=("asr", "st", "qa") if tasks else ())
    samples = read_manifest(path)
    longer = [
        replace(
            s,
            text=" ".join([s.text or ""] * (1 + i % 4)),
            answers=tuple(" ".join([a] * (1 + i % 3)) for a in s.answers),
        )
        for i, s in enumerate(samples)
    ]
    write_manifest(path, longer)
    return str(path)


def settings(folder: Path, steps: int, *, tasks: bool) -> dict[str, Any]:
    """Return the settings that all runs share."""
    data = manifest_in(folder / f"data-{tasks}", tasks=tasks)
    return {
        "output_dir": str(folder / "runs"),
        "model": {
            "encoder": str(folder / "encoder"),
            "llm": str(folder / "llm"),
            "projector": {**PROJECTOR, "dropout": 0.2},
        },
        "data": {"train": [data], "dev": [data], "order": "random", "cache_dir": str(folder / "cache")},
        "optim": {"lr": 3e-3},
        "train": {"steps": steps, "accumulate": 1, "eval_every": steps, "save_every": 1, "keep": steps, "log_every": 1}
        | {"cpu": True, "tensorboard": False, "dropout": "utterance"},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--processes", type=int, default=4, help="number of processes, a divisor of 8")
    parser.add_argument("--steps", type=int, default=6, help="optimiser steps of each run")
    parser.add_argument("--only", nargs="+", choices=CASES, metavar="CASE", default=list(CASES), help="cases to run")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    options = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny_encoder(folder / "encoder", "hubert")
        tiny_llm(folder / "llm", "llama", layers=3)
        for one in options.only:
            tree = settings(folder, options.steps, tasks=CASES[one].tasks)
            results.append(compare(one, CASES[one], tree, options.processes))
            print(results[-1], file=sys.stderr)
    names = [field.name for field in fields(Result)]
    table = Table(*names)
    for result in results:
        table.add_row(result.case, *(f"{value:.0e}" for value in list(asdict(result).values())[1:]))
    Console(width=120).print(table)
    if options.out:
        options.out.write_text(json.dumps([asdict(one) for one in results], indent=2))
    sys.exit(not all(one.passed for one in results))


if __name__ == "__main__":
    main()
