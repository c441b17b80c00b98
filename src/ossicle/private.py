"""Private interfaces of PyTorch, transformers and accelerate that Ossicle uses, in one place.

They may change without notice. Where one is gone, each function falls back to a public way with the same result, most
of them in `ossicle.public`. The only exception is `ossicle.models.packing`, which imports the attention functions of
transformers itself.
"""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor


def onednn_multiplies(dtype: torch.dtype) -> bool:
    """Return True if oneDNN multiplies matrices of ``dtype`` (bfloat16 or float16) with instructions of this CPU.

    PyTorch itself asks this before it passes a product to oneDNN. Otherwise it runs a loop that is not vectorised.
    """
    if not _has_onednn():
        return False
    try:
        onednn = torch.ops.mkldnn
        supported = onednn._is_mkldnn_bf16_supported if dtype == torch.bfloat16 else onednn._is_mkldnn_fp16_supported
        return bool(supported())
    except (AttributeError, RuntimeError):
        from ossicle.public import cpu_multiplies  # the replacements are not needed with the libraries of today

        return cpu_multiplies(dtype)


def onednn_product(x: Tensor, y: Tensor, bias: Tensor | None = None) -> Tensor | None:
    """Return x @ y.T + bias of ``x`` (N, D), ``y`` (M, D) and ``bias`` (M,) by oneDNN, or None if it is not available.

    oneDNN computes float32 on a CPU only. It uses AVX-512 where the CPU has it. PyTorch itself calls MKL, which uses
    only AVX2 on CPUs of other makers than Intel. Callers compute ``x @ y.T`` instead of None. There is no graph.
    """
    if x.device.type != "cpu" or x.dtype != torch.float32 or not _has_onednn():
        return None
    try:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, y, bias, "none", [], "")
    except AttributeError:
        return None
    return product


def onednn_packed(y: Tensor, rows: int) -> Tensor | None:
    """Return a copy of ``y`` that `onednn_product` reads faster, best for ``rows`` vectors; None if there is none."""
    try:
        packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(y, rows)
    except (AttributeError, RuntimeError):
        return None
    return packed


def _has_onednn() -> bool:
    backends = cast("Any", torch.backends)  # PyTorch gives its function no types
    return bool(backends.mkldnn.is_available())


def takes_registered_attention(model: Any) -> bool:
    """Return True if the transformers ``model`` reads its attention function from ``AttentionInterface``.

    Where this is not known it returns False, and batches run padded instead of packed.
    """
    return bool(getattr(model, "_supports_attention_backend", False))


def shallow_copy(model: Any) -> Any:
    """Return a copy of the transformers ``model`` that shares every weight.

    Its submodules and its ``config`` can be replaced without a change to ``model``: `copy.copy` alone would share the
    dictionary of submodules.
    """
    if not hasattr(model, "_modules"):
        from ossicle.public import sharing_copy  # as above

        return sharing_copy(model)
    copied = object.__new__(type(model))  # `copy.copy` fails for the classes that FSDP2 makes
    copied.__dict__ |= model.__dict__
    copied._modules = dict(model._modules)
    copied.config = copy.copy(model.config)
    return copied


def reset_accelerator_state() -> None:
    """Let the next `accelerate.Accelerator` of this process have another precision and process group.

    accelerate otherwise keeps the settings of the first one for the whole process. Where the function is gone they
    stay, and `ossicle.precision.new_accelerator` refuses another precision.
    """
    from accelerate.state import AcceleratorState

    reset = getattr(AcceleratorState, "_reset_state", None)
    if reset is not None:
        reset(reset_partial_state=True)
