"""Collect the weights of a trained model under the names of an exported one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ossicle.errors import ModelError
from ossicle.models.adapting import WRAPPED
from ossicle.models.lora import adapters

SHARD = "5GB"
"""Largest file of weights."""


@torch.no_grad()
def merged(part: Any) -> dict[str, Tensor]:
    """Return the weights of an encoder or an LLM by name, with LoRA adapters added to the weights under them.

    The adapters of ``part`` itself are merged by it.
    """
    adapted = False
    for module in part.modules():
        if hasattr(module, "base_layer") and hasattr(module, "merge") and not module.merged:
            module.merge()
            adapted = True
    tensors = part.state_dict()
    if adapted or any("lora_" in name for name in tensors):
        tensors = {name.replace(WRAPPED, ""): value for name, value in tensors.items() if "lora_" not in name}
    return dict(tensors)


def in_type(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``tensor`` in ``dtype``; tensors of integers keep their type."""
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def refuse_adapters(model: Any) -> None:
    """Raise `ModelError` if weights of encoder or LLM were trained, which an export by reference would lose."""
    trained = [name for name in adapters(model) if not name.startswith("encoder.mix")]
    if trained:
        raise ModelError(
            f"{len(trained)} tensors of the encoder or the LLM were trained, such as {trained[0]}, so that the "
            "original weights do not suffice: add --merge, which writes all weights"
        )


def refuse_quantised(model: Any) -> None:
    """Raise `ModelError` if the weights of the LLM are quantised, so that they cannot be written."""
    if model.config.llm_dtype in ("int8", "int4"):
        raise ModelError(
            f"model.llm_dtype={model.config.llm_dtype}: quantised weights cannot be merged: leave --merge out, or "
            "train with another type"
        )


def save_weights(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Write ``tensors`` to ``folder``, in files of at most 5 GB."""
    from huggingface_hub import save_torch_state_dict

    own = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_torch_state_dict(own, folder, max_shard_size=SHARD, metadata={"format": "pt"})
