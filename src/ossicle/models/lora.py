"""Declare what trains besides the projector, and list it; `ossicle.models.adapting` turns it on.

Names are those of `SpeechLLM`, such as ``encoder.model.encoder.layers.23.attention.q_proj.weight`` and
``llm.model.model.layers.0.self_attn.q_proj``. In patterns ``*`` matches any characters.
"""

from __future__ import annotations

import re
from collections import defaultdict

from pydantic import Field
from torch import Tensor, nn

from ossicle.section import section

PROJECTOR = "projector."
"""Prefix of the names of the projector's parameters."""


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
