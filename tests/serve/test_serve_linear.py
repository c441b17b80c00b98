"""The linear layers of a served model compute what they computed before, faster."""

import pytest
import torch
from torch import nn

from ossicle.serve import linear
from ossicle.serve.linear import LEAST_ROWS, OneDNNLinear, use_onednn


class Parts(nn.Module):
    """The parts of a `SpeechLLM`, with one layer each."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.projector = nn.Linear(24, 40), nn.Linear(24, 40, bias=False)
        self.llm = nn.ModuleList([nn.Linear(24, 40), nn.Linear(24, 40, dtype=torch.bfloat16)])


@pytest.fixture
def parts():
    if linear.onednn_product(torch.ones(1, 1), torch.ones(1, 1)) is None:
        pytest.skip("PyTorch has no oneDNN here")
    return Parts().requires_grad_(False)


@pytest.mark.parametrize("shape", [(LEAST_ROWS, 24), (3, 7, 24), (1, 24)])
@torch.no_grad()
def test_the_layers_compute_the_same(parts, shape, monkeypatch):
    calls = []
    product = linear.onednn_product
    monkeypatch.setattr(linear, "onednn_product", lambda *given: calls.append(given[1]) or product(*given))
    layers = [parts.encoder, parts.projector, parts.llm[0]]
    x, names = torch.randn(shape), [*parts.state_dict()]
    expected = [layer(x) for layer in layers]
    use_onednn(parts)
    calls.clear()
    for layer, value in zip(layers, expected, strict=True):
        torch.testing.assert_close(layer(x), value, rtol=1e-5, atol=1e-5)
    assert len(calls) == (0 if shape[0] == 1 else 3)  # for a single vector MKL is faster
    assert [*parts.state_dict()] == names
    assert type(parts.llm[1]) is nn.Linear  # another precision stays


def test_gradients_pass_through_a_layer(parts):
    use_onednn(parts)
    x = torch.randn(9, 24, requires_grad=True)
    parts.encoder(x).sum().backward()
    torch.testing.assert_close(x.grad, parts.encoder.weight.sum(0).expand(9, -1))


def test_only_the_weights_of_a_small_llm_are_copied(parts, monkeypatch):
    use_onednn(parts)
    assert isinstance(parts.encoder, OneDNNLinear)
    assert parts.encoder.packed is parts.projector.packed is None
    assert parts.llm[0].packed is not None
    large = Parts()
    monkeypatch.setattr(linear, "MOST_PACKED_BYTES", large.llm[0].weight.nbytes - 1)
    use_onednn(large)
    assert isinstance(large.llm[0], OneDNNLinear)
    assert large.llm[0].packed is None


def test_without_onednn_the_layers_stay(monkeypatch):
    monkeypatch.setattr(linear, "onednn_product", lambda *given: None)
    parts = Parts()
    use_onednn(parts)
    assert type(parts.encoder) is nn.Linear
