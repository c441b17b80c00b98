"""Private interfaces of PyTorch, transformers and accelerate that Ossicle uses, in one place.

They may change without notice. When a new version of a library breaks one, fix it in this file. The only exception is
`ossicle.models.packing`, which imports the attention functions of transformers itself.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor


def onednn_multiplies(dtype: torch.dtype) -> bool:
    """Return True if oneDNN multiplies matrices of ``dtype`` (bfloat16 or float16) with instructions of this CPU.

    PyTorch itself asks this before it passes a product to oneDNN. Otherwise it runs a loop that is not vectorised.
    """
    if not _has_onednn():
        return False
    onednn = torch.ops.mkldnn
    return bool(onednn._is_mkldnn_bf16_supported() if dtype == torch.bfloat16 else onednn._is_mkldnn_fp16_supported())


def onednn_product(x: Tensor, y: Tensor) -> Tensor | None:
    """Return x @ y.T of ``x`` (N, D) and ``y`` (M, D) by oneDNN, without a graph; None if it is not available.

    oneDNN computes float32 on a CPU only. It uses AVX-512 where the CPU has it. PyTorch itself calls MKL, which uses
    only AVX2 on CPUs of other makers than Intel.
    """
    if x.device.type != "cpu" or x.dtype != torch.float32 or not _has_onednn():
        return None
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, y, None, "none", [], "")
    return product


def _has_onednn() -> bool:
    backends = cast("Any", torch.backends)  # PyTorch gives its function no types
    return bool(backends.mkldnn.is_available())


def takes_registered_attention(model: Any) -> bool:
    """Return True if the transformers ``model`` reads its attention function from ``AttentionInterface``."""
    return bool(model._supports_attention_backend)


def shallow_copy(model: Any) -> Any:
    """Return a copy of the transformers ``model`` that shares every weight.

    Its submodules and its ``config`` can be replaced without a change to ``model``: `copy.copy` alone would share the
    dictionary of submodules.
    """
    copied = copy.copy(model)
    copied._modules = dict(model._modules)
    copied.config = copy.copy(model.config)
    return copied


def cached_model_file(name: str, file: str) -> Path | None:
    """Return the local path of ``file`` of a hub id or folder, downloaded if necessary; None if there is no such file.

    The public form of transformers' function raises the same error for a missing file and for a missing network.
    """
    from transformers.utils import cached_file

    found = cached_file(name, file, _raise_exceptions_for_missing_entries=False)
    return Path(found) if found else None


def reset_accelerator_state() -> None:
    """Let the next `accelerate.Accelerator` of this process have another precision.

    accelerate otherwise keeps the settings of the first one for the whole process.
    """
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()
