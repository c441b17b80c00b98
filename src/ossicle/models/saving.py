"""Save what trained of a `SpeechLLM` to a folder, and load it into a model with the same base models."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ossicle import __version__
from ossicle.errors import CheckpointError
from ossicle.files import atomic, write_json
from ossicle.models.lora import adapters

WEIGHTS_FILE, ADAPTERS_FILE, CONFIG_FILE = "projector.safetensors", "adapters.safetensors", "ossicle.json"


def save(model: Any, folder: str | Path) -> None:
    """Write the trained weights, the configuration and the fingerprints of the base models of ``model``."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic(folder / WEIGHTS_FILE) as partial:
        save_file({name: tensor.cpu().contiguous() for name, tensor in model.projector.state_dict().items()}, partial)
    if trained := {name: tensor.detach().cpu().contiguous() for name, tensor in adapters(model).items()}:
        with atomic(folder / ADAPTERS_FILE) as partial:
            save_file(trained, partial)
    record = {
        "ossicle": __version__,
        "model": asdict(model.config),
        "fingerprints": {"encoder": model.encoder.fingerprint, "llm": model.llm.fingerprint},
        "instructions": model.instructions,
    }
    write_json(folder / CONFIG_FILE, record)


def read_record(folder: str | Path) -> dict[str, Any]:
    """Return the configuration file of a checkpoint. Raises `CheckpointError` if ``folder`` has none."""
    path = Path(folder) / CONFIG_FILE
    if not path.is_file():
        raise CheckpointError(f"{folder} is not a checkpoint of Ossicle: it has no {CONFIG_FILE}; check the path")
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return record


def load(model: Any, folder: str | Path) -> None:
    """Load the weights of a checkpoint into ``model``; see `SpeechLLM.load_projector`."""
    record = read_record(folder)
    for part, loaded in (("encoder", model.encoder), ("llm", model.llm)):
        expected = record["fingerprints"][part]
        if loaded.fingerprint != expected:
            raise CheckpointError(
                f"{folder} was trained with the {part} '{record['model'][part]}' (fingerprint {expected}), but "
                f"'{loaded.name}' has fingerprint {loaded.fingerprint}: give the folder of the original {part}"
            )
    for field, default in (("encoder_layer", "last"), ("encoder_context", "full")):
        then, now = record["model"].get(field, default), asdict(model.config)[field]
        if then != now:
            raise CheckpointError(f"{folder} was trained with model.{field}={then}, not {now}: set it to {then}")
    _load_adapters(model, Path(folder))
    model.projector.load_state_dict(load_file(Path(folder) / WEIGHTS_FILE))
    model.instructions = dict(record["instructions"])


@torch.no_grad()
def _load_adapters(model: Any, folder: Path) -> None:
    saved = load_file(folder / ADAPTERS_FILE) if (folder / ADAPTERS_FILE).is_file() else {}
    here = adapters(model)
    if lost := sorted(saved.keys() - here.keys()):
        raise CheckpointError(
            f"{folder} contains {len(lost)} trained tensors that do not train here, such as {lost[0]}: set "
            "model.encoder_layer, model.trainable and model.lora to the values of that run"
        )
    for name, tensor in saved.items():
        here[name].copy_(tensor)
