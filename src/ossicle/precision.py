"""Half precision where the processor has instructions for it, float32 where not.

Without AVX-512 or AMX (on x86) or BF16 (on ARM), which most laptops lack, PyTorch multiplies matrices in bfloat16 on a
CPU tens of times as slowly as in float32 (benchmarks/precision.py). So there a run computes in float32 what its recipe
wants in half precision, and says so; the recipe is the same on every machine.
"""

from __future__ import annotations

from typing import Literal

import torch
from accelerate import Accelerator

Precision = Literal["fp32", "bf16", "fp16"]
CPU = torch.device("cpu")
_ACCELERATE: dict[Precision, str] = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
_HALF = {"bf16": torch.bfloat16, "bfloat16": torch.bfloat16, "fp16": torch.float16, "float16": torch.float16}


def multiplies(dtype: torch.dtype, device: torch.device | None = None) -> bool:
    """Whether ``device`` has instructions to multiply matrices of ``dtype``; None: what models run on by default."""
    # Unless it looks, PyTorch names the accelerator that it was built for: on a laptop too, with the usual CUDA build.
    device = device or torch.accelerator.current_accelerator(check_available=True) or CPU
    if device.type != "cpu" or dtype not in _HALF.values():
        return True
    if not torch.backends.mkldnn.is_available():
        return False
    # What PyTorch itself asks before it leaves a product to oneDNN; otherwise a loop that is not vectorised takes it.
    onednn = torch.ops.mkldnn
    return bool(onednn._is_mkldnn_bf16_supported() if dtype == torch.bfloat16 else onednn._is_mkldnn_fp16_supported())


def usable(dtype: torch.dtype, device: torch.device | None = None) -> torch.dtype:
    """``dtype``, or float32 where `multiplies` says no."""
    return dtype if multiplies(dtype, device) else torch.float32


def new_accelerator(precision: Precision, *, cpu: bool) -> Accelerator:
    """The accelerator of a run, with automatic mixed precision where `multiplies` says yes."""
    wanted = _HALF.get(precision, torch.float32)
    possible = multiplies(wanted, CPU if cpu else None)
    return Accelerator(mixed_precision=_ACCELERATE[precision if possible else "fp32"], cpu=cpu)


def replaced(wanted: dict[str, str], device: torch.device | None) -> str | None:
    """A line for people: which of these settings (name -> value) ``device`` computes in float32 instead, if any."""
    slow = [
        f"{name}={value}" for name, value in wanted.items() if value in _HALF and not multiplies(_HALF[value], device)
    ]
    if not slow:
        return None
    return f"float32 in place of {', '.join(slow)}: this CPU has no instructions for half precision"
