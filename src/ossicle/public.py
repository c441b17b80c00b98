"""Public ways to do what `ossicle.private` does by private interfaces, and how to find files of models."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch


def cpu_multiplies(dtype: torch.dtype) -> bool:
    """Return what `ossicle.private.onednn_multiplies` does, by the instructions that PyTorch reports."""
    cpu: Any = torch.cpu  # PyTorch gives its function no types
    flags = {name for name, present in cpu.get_capabilities().items() if present is True}
    return not flags.isdisjoint({"avx512_bw", "bf16"} if dtype == torch.bfloat16 else {"avx512_fp16", "fp16"})


def sharing_copy(model: Any) -> Any:
    """Return what `ossicle.private.shallow_copy` does, by a deep copy that keeps submodules and weights."""
    shared = [*model.children(), *model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(part): part for part in shared})


def cached_model_file(name: str, file: str) -> Path | None:
    """Return the local path of ``file`` of a hub id or folder, downloaded if necessary; None if there is no such file.

    The public form of transformers' function raises the same error for a missing file and for a missing network.
    """
    from transformers.utils import cached_file

    try:
        found = cached_file(name, file, _raise_exceptions_for_missing_entries=False)
    except TypeError:
        return hub_file(name, file)
    return Path(found) if found else None


def hub_file(name: str, file: str) -> Path | None:
    """Return what `cached_model_file` does, by the functions of huggingface_hub."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    if Path(name).is_dir():
        path = Path(name) / file
        return path if path.is_file() else None
    try:
        return Path(hf_hub_download(name, file))
    except EntryNotFoundError:  # offline too, where a file that is not in the cache cannot be told from a missing one
        return None
