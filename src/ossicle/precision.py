"""Choose between half precision and float32 by the instructions that the processor has.

Most laptop CPUs lack AVX-512 or AMX (x86) or BF16 (ARM). There PyTorch multiplies bfloat16 matrices tens of times
slower than float32 ones (benchmarks/precision.py). A run on such a CPU replaces half precision by float32 and reports
it, so that one recipe fits every machine.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import ExitStack
from typing import Literal, ParamSpec, TypeVar

import torch
from accelerate import Accelerator

from ossicle.errors import ConfigError
from ossicle.private import onednn_multiplies

Precision = Literal["fp32", "bf16", "fp16"]
CPU = torch.device("cpu")
_ACCELERATE: dict[Precision, str] = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
P = ParamSpec("P")
R = TypeVar("R")
_HALF = {"bf16": torch.bfloat16, "bfloat16": torch.bfloat16, "fp16": torch.float16, "float16": torch.float16}


def outside_autocast(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate ``function`` to compute in the types of its arguments even where mixed precision is on.

    Losses and the features of audio need it. Autocast multiplies matrices in half precision, also if both are float32.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with ExitStack() as stack:
            for device in ("cpu", "cuda", "xpu", "mps"):
                if torch.is_autocast_enabled(device):
                    stack.enter_context(torch.autocast(device, enabled=False))
            return function(*args, **kwargs)

    return run


def multiplies(dtype: torch.dtype, device: torch.device | None = None) -> bool:
    """Return True if ``device`` has instructions to multiply matrices of ``dtype``.

    None stands for the default device: the accelerator if there is one, else the CPU.
    """
    # Without the check, a CUDA build of PyTorch names CUDA on a machine that has no GPU.
    device = device or torch.accelerator.current_accelerator(check_available=True) or CPU
    if device.type != "cpu" or dtype not in _HALF.values():
        return True
    return onednn_multiplies(dtype)


def usable(dtype: torch.dtype, device: torch.device | None = None) -> torch.dtype:
    """Return ``dtype`` if ``device`` `multiplies` it, else float32."""
    return dtype if multiplies(dtype, device) else torch.float32


def new_accelerator(precision: Precision, *, cpu: bool) -> Accelerator:
    """Return the accelerator of a run; mixed precision is on if the device `multiplies` that type.

    Raises `ConfigError` if accelerate keeps the precision of an earlier run of this process.
    """
    wanted = _HALF.get(precision, torch.float32)
    possible = multiplies(wanted, CPU if cpu else None)
    mixed = _ACCELERATE[precision if possible else "fp32"]
    try:
        accelerator = Accelerator(mixed_precision=mixed, cpu=cpu)
    except ValueError as error:
        raise ConfigError(f"train.precision={precision}: {error} Start a new process") from error
    if accelerator.mixed_precision != mixed:
        raise ConfigError(f"train.precision={precision}: this process has run in another precision; start a new one")
    return accelerator


def describe_fallbacks(wanted: dict[str, str], device: torch.device | None) -> str | None:
    """Describe the settings (name -> value) that fall back to float32 on ``device``, or return None."""
    slow = [
        f"{name}={value}" for name, value in wanted.items() if value in _HALF and not multiplies(_HALF[value], device)
    ]
    if not slow:
        return None
    return f"float32 in place of {', '.join(slow)}: this CPU has no instructions for half precision"
