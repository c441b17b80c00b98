import pytest
import torch
import torch.nn.functional as F
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from ossicle.models import packing
from ossicle.models.packing import SHORT, attend


def vectors(length: int, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(length)
    return [torch.randn(2, 3, length, 8, generator=generator).to(dtype).requires_grad_() for _ in range(3)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [1, 5, SHORT + 1])
@pytest.mark.parametrize("kind", ["causal", "mask of keys", "mask of pairs", "none"])
def test_it_is_the_attention_of_pytorch_forward_and_backward(dtype: torch.dtype, length: int, kind: str):
    torch.manual_seed(0)
    inputs = vectors(length, dtype)
    exact = [value.detach().double().requires_grad_() for value in inputs]
    mask = {
        "mask of keys": torch.rand(2, 1, 1, length) < 0.5,
        "mask of pairs": (torch.rand(length, length) < 0.3) | torch.eye(length, dtype=torch.bool),
    }.get(kind)
    if kind == "mask of keys":
        mask[..., 0] = True
    options = {"causal": kind == "causal", "scale": 0.3}
    out = attend(*inputs, mask=mask, **options)
    expected = F.scaled_dot_product_attention(*exact, attn_mask=mask, is_causal=options["causal"], scale=0.3)
    assert out.shape == (2, 3, length, 8) and out.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)
    weights = torch.randn(expected.shape)
    (out * weights).sum().backward()
    (expected * weights).sum().backward()
    for mine, theirs in zip(inputs, exact, strict=True):
        assert (mine.grad.double() - theirs.grad).norm() <= 2 * tolerance * theirs.grad.norm() + tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [True, False])
def test_a_step_of_generation_is_what_transformers_computes(dtype: torch.dtype, masked: bool):
    """Use one query per sequence, two query heads per key head, and padding on the left."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(3, 4, 1, 8, generator=generator).to(dtype)
    key, value = (torch.randn(3, 2, 7, 8, generator=generator).to(dtype) for _ in range(2))
    mask = (torch.arange(7) >= torch.tensor([0, 2, 6])[:, None])[:, None, None] if masked else None
    module = torch.nn.Module()
    module.num_key_value_groups, module.is_causal = 2, True
    found, _ = packing.packed_attention(module, query, key, value, mask, scaling=0.3)
    expected, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=0.3)
    assert found.shape == (3, 1, 4, 8) and found.dtype == dtype
    assert torch.allclose(found, expected, atol=1e-5 if dtype == torch.float32 else 3e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["causal", "mask of pairs", "mask of keys"])
@pytest.mark.parametrize("length", [1, 5, SHORT + 1])
def test_heads_that_share_keys_and_queries_that_come_last(dtype: torch.dtype, length: int, kind: str):
    """Use two query heads per key head, and four more keys than queries, as after a prefix."""
    generator = torch.Generator().manual_seed(length)
    query = torch.randn(2, 4, length, 8, generator=generator).to(dtype)
    key, value = (torch.randn(2, 2, length + 4, 8, generator=generator).to(dtype) for _ in range(2))
    behind = torch.ones(length, length + 4, dtype=torch.bool).tril(4)
    mask = {"mask of pairs": behind, "mask of keys": torch.arange(length + 4).expand(2, 1, 1, -1) > 1}.get(kind)
    inputs = [each.clone().requires_grad_() for each in (query, key, value)]
    exact = [each.detach().double().requires_grad_() for each in (query, key, value)]
    out = attend(*inputs, mask=mask, causal=kind == "causal", scale=0.3)
    repeated = exact[0], *(each.repeat_interleave(2, 1) for each in exact[1:])
    expected = F.scaled_dot_product_attention(*repeated, attn_mask=behind if mask is None else mask, scale=0.3)
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)
    weights = torch.randn(expected.shape)
    (out * weights).sum().backward()
    (expected * weights).sum().backward()
    for mine, theirs in zip(inputs, exact, strict=True):
        assert (mine.grad.double() - theirs.grad).norm() <= 2 * tolerance * theirs.grad.norm() + tolerance
