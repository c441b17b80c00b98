"""The variable-length kernel gives what the padded batch gives. It needs a CUDA device."""

from __future__ import annotations

import pytest
import torch

from ossicle.models import varlen
from ossicle.models.packing import Packing, _within

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_it_is_not_used_on_a_cpu() -> None:
    assert not varlen.is_available(torch.zeros(1, 2, 3, 16, dtype=torch.bfloat16))


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("kv_heads", [4, 1])
def test_values_and_gradients_are_those_of_the_padded_batch(window: int | None, kv_heads: int) -> None:
    torch.manual_seed(0)
    lengths = torch.tensor([9, 1, 14, 6], device="cuda")
    mask = torch.arange(14, device="cuda") < lengths[:, None]
    heads = [torch.randn(1, count, 30, 64, device="cuda", dtype=torch.bfloat16) for count in (4, kv_heads, kv_heads)]
    if not varlen.is_available(heads[0]):
        pytest.skip("this PyTorch has no variable-length kernel")
    found = []
    for run in (
        lambda *qkv: varlen.causal_attention(*qkv, mask, window=window, scale=0.2),
        lambda *qkv: _within(Packing.of(mask), *qkv, window, 0.2),
    ):
        inputs = [head.clone().requires_grad_() for head in heads]
        out = run(*inputs)
        out.float().square().sum().backward()
        found.append([out.detach(), *(each.grad for each in inputs)])
    for kernel, padded in zip(*found, strict=True):
        assert kernel.shape == padded.shape
        assert (kernel.float() - padded.float()).norm() <= 1e-2 * padded.float().norm()
