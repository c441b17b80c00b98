"""Select what trains besides the projector: parameters by name, and LoRA adapters on linear layers by name.

Names are those of `SpeechLLM`, such as ``encoder.model.encoder.layers.23.attention.q_proj.weight`` and
``llm.model.model.layers.0.self_attn.q_proj``. In patterns ``*`` matches any characters.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from pydantic import Field
from torch import Tensor, nn

from ossicle.errors import ConfigError
from ossicle.section import section

PROJECTOR = "projector."
"""Prefix of the names of the projector's parameters."""
WRAPPED = ".base_layer"
"""Part that peft inserts into the names of weights under an adapter. Patterns are matched without it."""


@section
class LoraConfig:
    """Low-rank adapters (Hu et al., 2021) by peft. There are none unless ``modules`` names linear layers."""

    modules: list[str] = Field(default_factory=list)
    """Patterns of linear layers that get an adapter, e.g. ``llm.*.q_proj`` or ``encoder.*.v_proj``."""
    rank: int = Field(default=16, ge=1, le=4096)
    """Rank of each adapter."""
    alpha: float = Field(default=32.0, gt=0, le=1e6)
    """Scale of the adapters: their output is multiplied by ``alpha`` / ``rank``."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout probability of the adapters' input in training."""


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


def adapters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters outside the projector that train, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad and not name.startswith(PROJECTOR)}


def adapter_dropouts(model: nn.Module) -> list[nn.Module]:
    """Return the dropout modules of the adapters. No other dropout of encoder and LLM is on in training."""
    return [module for name, module in model.named_modules() if name.endswith("lora_dropout")]


def describe(model: nn.Module) -> list[str]:
    """Return one line per group of trained parameters outside the projector: name, number of tensors and parameters."""
    groups: defaultdict[str, list[Tensor]] = defaultdict(list)
    for name, parameter in adapters(model).items():
        groups[re.sub(r"\.\d+(?=\.)", ".*", name)].append(parameter)
    return [
        f"{name}: {len(tensors)} tensor{'s' * (len(tensors) > 1)}, {sum(t.numel() for t in tensors):,} parameters"
        for name, tensors in groups.items()
    ]


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
