"""Save what trained of a `SpeechLLM` to a folder, and load it into a model with the same base models."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ossicle import __version__
from ossicle.errors import CheckpointError, ConfigError
from ossicle.files import atomic, write_json
from ossicle.models.likeness import alike, sketch
from ossicle.models.lora import adapters
from ossicle.section import config_error

WEIGHTS_FILE, ADAPTERS_FILE, CONFIG_FILE = "projector.safetensors", "adapters.safetensors", "ossicle.json"
TRAINING_ONLY = {"dropout", "init_std", "match_embedding_rms"}
"""Settings of projectors that do not change what trained weights compute."""
IN_FRAMES = {"window_s", "token_s"}
"""Settings of projectors in seconds, which are rounded to whole frames."""
REMEDY = "restore the file, or use another checkpoint"
DTYPES = ("float32", "bfloat16", "float16")
SHIPPED = "ossicle.checkpoints"
"""Group of entry points through which packages add checkpoints by name."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
"""Form of a hub id. A path to a missing folder has this form too, if it has two parts."""
log = logging.getLogger(__name__)


def locate(folder: str | Path) -> Path:
    """Return the folder of a checkpoint: ``folder`` itself, of a packaged checkpoint, or of one from the hub.

    Raises `CheckpointError` if ``folder`` looks like a hub id and the hub has no such checkpoint or is not reached.
    """
    path = Path(folder).expanduser()
    if not path.exists():
        for entry in entry_points(group=SHIPPED, name=str(folder)):
            return Path(entry.load()())
        if HUB_ID.fullmatch(str(folder)):
            from ossicle.models.hub import download  # most checkpoints are local

            return download(str(folder))
    return path


def save(model: Any, folder: str | Path) -> None:
    """Write the trained weights of ``model``, and a record of its configuration, base models and checksums.

    Base models in a local folder are recorded by their absolute path.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = {WEIGHTS_FILE: model.projector.state_dict(), ADAPTERS_FILE: adapters(model)}
    checksums = {}
    for file, tensors in files.items():
        if tensors or file == WEIGHTS_FILE:
            with atomic(folder / file) as partial:
                save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, partial)
                checksums[file] = _checksum(partial)
    config = asdict(model.config)
    record = {
        "ossicle": __version__,
        "model": {**config, **{part: absolute_name(config[part]) for part in ("encoder", "llm")}},
        "fingerprints": {"encoder": model.encoder.fingerprint, "llm": model.llm.fingerprint},
        "sketches": {"encoder": sketch(model.encoder.model), "llm": sketch(model.llm.model)},
        "files": checksums,
        "objectives": list(model.objectives),
        "instructions": model.instructions,
        "asr_instructions": list(model.asr_instructions),
        "longest_s": model.longest_s,
    }
    write_json(folder / CONFIG_FILE, record)


def read_record(folder: str | Path) -> dict[str, Any]:
    """Return the record of a checkpoint. Raises `CheckpointError` if ``folder`` has none or it is damaged."""
    path = locate(folder) / CONFIG_FILE
    if not path.is_file():
        raise CheckpointError(f"{folder} is not a checkpoint of Ossicle: it has no {CONFIG_FILE}; check the path")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is not valid JSON, so that it is damaged; {REMEDY}") from error
    kinds = {"model": dict, "fingerprints": dict, "instructions": dict}
    optional = {"files": dict, "sketches": dict, "asr_instructions": list, "objectives": list, "longest_s": int | float}
    for field, kind in (kinds | optional).items():
        value = record.get(field) if isinstance(record, dict) else None
        if not isinstance(value, kind) and (field in kinds or value is not None):
            raise CheckpointError(f"{path}: '{field}' is missing or of another type than in a checkpoint; {REMEDY}")
    texts = [*record["instructions"].values(), *(record.get("asr_instructions") or [])]
    texts += [record["fingerprints"].get(part) for part in ("encoder", "llm")]
    if not all(isinstance(text, str) for text in texts):
        raise CheckpointError(f"{path}: an instruction or a fingerprint is no text; {REMEDY}")
    return dict(record)


def read_config(folder: str | Path, kind: Any, **moved: str) -> Any:
    """Return the model's configuration of the type ``kind`` in a checkpoint, with base models at ``moved`` places."""
    tree = {**read_record(folder)["model"], **moved}
    try:
        return TypeAdapter(kind).validate_python(tree)
    except ValidationError as error:
        raise CheckpointError(str(config_error(error, tree, f"{locate(folder) / CONFIG_FILE}: model", ()))) from error


@torch.no_grad()
def load(model: Any, folder: str | Path) -> None:
    """Load the weights of a checkpoint into ``model``; see `SpeechLLM.load_projector`."""
    folder = locate(folder)
    record = read_record(folder)
    sketches = record.get("sketches") or {}
    for part, loaded in (("encoder", model.encoder), ("llm", model.llm)):
        expected = record["fingerprints"][part]
        if expected not in (loaded.fingerprint, loaded.former_fingerprint):
            if (apart := alike(sketches.get(part), loaded.model)) is not None:
                log.warning(
                    "%s was trained with another copy of the %s: the weights of %s differ by %.1f %%, so that answers "
                    "can differ",
                    *(folder, part, loaded.name, 100 * apart),
                )
                continue
            raise CheckpointError(
                f"{folder} was trained with the {part} '{record['model'].get(part)}' (fingerprint {expected}), but "
                f"'{loaded.name}' has fingerprint {loaded.fingerprint}: give the folder of the original {part}"
            )
    saved = {file: _read_tensors(folder / file, record) for file in (WEIGHTS_FILE, ADAPTERS_FILE)}
    trained, projector = adapters(model), model.projector.state_dict()
    remedy = "set model.encoder_layer, model.trainable and model.lora to the values of that run"
    _refuse_lost(saved[ADAPTERS_FILE], trained, folder, remedy)
    _compare_settings(model, record, folder, lora=any("lora_" in name for name in saved[ADAPTERS_FILE]))
    _copy(saved[ADAPTERS_FILE], trained, folder, remedy)
    remedy = "give model.projector the settings of that run"
    _refuse_lost(saved[WEIGHTS_FILE], projector, folder, remedy)
    if missing := sorted(projector.keys() - saved[WEIGHTS_FILE].keys()):
        raise CheckpointError(f"{folder} lacks {len(missing)} tensors of the projector, such as {missing[0]}: {remedy}")
    _copy(saved[WEIGHTS_FILE], projector, folder, remedy)
    model.instructions = dict(record["instructions"])
    # Records of version 0.1 lack the following.
    model.asr_instructions = tuple(record.get("asr_instructions", model.asr_instructions))
    model.objectives = tuple(record.get("objectives", model.objectives))
    model.longest_s = record.get("longest_s", model.longest_s)
    model.origin = folder


def existing_device(device: str | torch.device) -> torch.device:
    """Return ``device`` as PyTorch names it. Raises `ConfigError` if this machine does not have it."""
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device={device}: this machine has no such device, or PyTorch cannot use it") from error
    return found


def chosen_device(device: str | torch.device | None) -> torch.device | None:
    """Return ``device`` as `existing_device` does, for ``auto`` the accelerator or the CPU, and for None None."""
    if device == "auto":
        device = torch.accelerator.current_accelerator(check_available=True) or "cpu"
    return None if device is None else existing_device(device)


def stored_types(dtype: str | torch.dtype | None) -> dict[str, str]:
    """Return the settings that load encoder and LLM in ``dtype``; none for ``auto`` and None.

    Raises `ConfigError` for a type that weights cannot have.
    """
    name = str(dtype).removeprefix("torch.")
    if dtype is None or name == "auto":
        return {}
    if name not in DTYPES:
        raise ConfigError(f"dtype={dtype}: give auto or one of {', '.join(DTYPES)}")
    return {"encoder_dtype": name, "llm_dtype": name}


def _refuse_lost(saved: Mapping[str, Tensor], here: Mapping[str, Tensor], folder: Path, remedy: str) -> None:
    if lost := sorted(saved.keys() - here.keys()):
        raise CheckpointError(
            f"{folder} contains {len(lost)} trained tensors that do not train here, such as {lost[0]}: {remedy}"
        )


def _copy(saved: Mapping[str, Tensor], here: Mapping[str, Tensor], folder: Path, remedy: str) -> None:
    """Copy each of the ``saved`` tensors to the one of its name. Raises `CheckpointError` for another shape."""
    for name, tensor in saved.items():
        if tensor.shape != here[name].shape:
            then, now = tuple(tensor.shape), tuple(here[name].shape)
            raise CheckpointError(f"{folder}: {name} has the shape {then}, and {now} in this model: {remedy}")
        here[name].copy_(tensor)


def _read_tensors(path: Path, record: dict[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of a file, or none if the record does not list it and it does not exist.

    Raises `CheckpointError` if the file is missing, damaged, or contains infinite values or NaN.
    """
    checksum = (record.get("files") or {}).get(path.name)
    if not path.is_file():
        if checksum is None and path.name == ADAPTERS_FILE:
            return {}
        raise CheckpointError(f"{path}: is missing; {REMEDY}")
    if checksum is not None and _checksum(path) != checksum:
        raise CheckpointError(
            f"{path}: is damaged, or of another save than {CONFIG_FILE}: its checksum differs; {REMEDY}"
        )
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: is damaged ({error}); {REMEDY}") from error
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise CheckpointError(f"{path}: {name} contains infinite values or NaN, so that the run failed; {REMEDY}")
    if any(tensor.dtype == torch.int8 for tensor in tensors.values()):
        from ossicle.models.eight_bits import widened  # few checkpoints are stored so

        return widened(tensors)
    return tensors


def _compare_settings(model: Any, record: dict[str, Any], folder: Path, *, lora: bool) -> None:
    """Raise `CheckpointError`, with both values, for a setting with which the same weights compute something else."""
    then, now = record["model"], asdict(model.config)
    pairs = [
        (field, then.get(field, default), now[field])
        for field, default in (("encoder_layer", "last"), ("encoder_context", "full"))
    ]
    projector = then.get("projector")
    projector = projector if isinstance(projector, dict) else {}
    name = now["projector"].get("name")
    if projector.get("name", name) != name:
        pairs.append(("projector.name", projector["name"], name))
    else:
        for field in fields(model.config.projector):
            if field.name in TRAINING_ONLY:
                continue
            saved, here = projector.get(field.name, _default(field)), now["projector"][field.name]
            if _in_frames(field.name, saved, model) != _in_frames(field.name, here, model):
                pairs.append((f"projector.{field.name}", saved, here))
    if lora:
        adapted = then.get("lora") if isinstance(then.get("lora"), dict) else {}
        for setting in ("rank", "alpha"):
            here = now["lora"][setting]
            pairs.append((f"lora.{setting}", adapted.get(setting, here), here))
    for field_name, old, new in pairs:
        if old != new:
            raise CheckpointError(f"{folder} was trained with model.{field_name}={old}, not {new}: set it to {old}")


def _default(field: Any) -> Any:
    """Return the default of a setting that an older record lacks."""
    if field.default_factory is not MISSING:
        return field.default_factory()
    return getattr(field.default, "default", field.default)


def _in_frames(name: str, value: Any, model: Any) -> Any:
    return round(value * model.encoder.frame_rate_hz) if name in IN_FRAMES and isinstance(value, int | float) else value


def absolute_name(name: str) -> str:
    """Return the absolute path of a base model in a local folder; other names, such as hub ids, stay."""
    if entry_points(group="ossicle.models", name=name):  # such as lab, never the folder of that name
        return name
    path = Path(name).expanduser()
    return str(path.resolve()) if (path / "config.json").is_file() else name


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
