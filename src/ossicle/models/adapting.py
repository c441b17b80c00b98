"""Turn on what trains besides the projector: parameters by name, and LoRA adapters on linear layers by name.

`ossicle.models.lora` describes the names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from ossicle.errors import ConfigError
from ossicle.models.lora import PROJECTOR, LoraConfig

WRAPPED = ".base_layer"
"""Part that peft inserts into the names of weights under an adapter. Patterns are matched without it."""


def make_trainable(model: nn.Module, patterns: Iterable[str], lora: LoraConfig, dtypes: Mapping[str, str]) -> None:
    """Add LoRA adapters to the encoder and the LLM of ``model``, and turn gradients on for matching parameters.

    Args:
        model: The `SpeechLLM`.
        patterns: Patterns of parameter names, from ``model.trainable``.
        lora: Settings of the adapters.
        dtypes: Type of the weights of each part (``encoder``, ``llm``) by the recipe. It decides rather than the type
            that this machine loads (`ossicle.precision`), so that a recipe is valid on every machine or on none.

    Raises `ConfigError` for a pattern that matches nothing, and for weights in half precision, which are too coarse for
    AdamW's updates.
    """
    adapted = _matching(_linear_layers(model), lora.modules, "model.lora.modules")
    for part in ("encoder.model.", "llm.model."):
        _adapt(
            model.get_submodule(part.rstrip(".")), [n.removeprefix(part) for n in adapted if n.startswith(part)], lora
        )
    parameters = {name.replace(WRAPPED, ""): p for name, p in model.named_parameters() if "lora_" not in name}
    for name in _matching(parameters, patterns, "model.trainable"):
        part = name.partition(".")[0]
        if dtypes.get(part, "float32") != "float32":
            raise ConfigError(
                f"model.trainable: {name} with model.{part}_dtype={dtypes[part]} is too coarse to train: set "
                f"model.{part}_dtype=float32 (train.precision=bf16 still computes in half precision)"
            )
        parameters[name].requires_grad_(True)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()


def _linear_layers(model: nn.Module) -> list[str]:
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not name.startswith(PROJECTOR)
    ]


def _matching(names: Iterable[str], patterns: Iterable[str], field: str) -> list[str]:
    """Return the names that match any of ``patterns``. Raises `ConfigError` for a pattern that matches none."""
    names, found = list(names), set()
    for pattern in patterns:
        fitting = [name for name in names if fnmatchcase(name, pattern)]
        if not fitting:
            raise ConfigError(f"{field}: '{pattern}' matches nothing; use names such as {', '.join(_examples(names))}")
        found |= set(fitting)
    return [name for name in names if name in found]


def _examples(names: list[str]) -> list[str]:
    """Return the last name of the encoder and of the LLM."""
    parts = ("encoder.", "llm.")
    return [fitting[-1] for part in parts if (fitting := [name for name in names if name.startswith(part)])]


def _adapt(part: Any, names: list[str], lora: LoraConfig) -> None:
    if not names:
        return
    from peft import LoraConfig as PeftConfig
    from peft import inject_adapter_in_model

    if part.config.model_type == "wavlm" and (used := [name for name in names if ".attention." in name]):
        raise ConfigError(
            f"model.lora.modules: WavLM reads the weights of {used[0]} without calling it, so that an adapter there "
            "has no effect: name its feed_forward layers"
        )
    settings = PeftConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=names)
    inject_adapter_in_model(settings, part)
