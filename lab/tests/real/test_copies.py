import pytest
import torch
from torch import nn

from ossicle_lab.real.copies import round_weights


def test_rounding_keeps_what_bits_allow_and_says_how_much_it_changed() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(128, 256), nn.Linear(256, 8))
    before = [p.detach().clone() for p in model.parameters()]
    change = round_weights(model, 4)
    after = list(model.parameters())
    large, small = before[0], before[2]
    expected = float((after[0].detach() - large).norm() / large.norm())
    assert change == pytest.approx(expected, rel=1e-4)
    assert 0.05 < change < 0.15  # 15 levels over uniform weights: a step of 1/7 of the largest, divided by sqrt(12)
    group = after[0].detach().reshape(-1, 32)[0]
    assert len(group.unique()) <= 15
    assert torch.equal(after[2], small)  # small matrices, norms and biases stay
    assert torch.equal(after[1], before[1])
    assert round_weights(model, 4) == pytest.approx(0.0, abs=1e-6)  # what is rounded stays
