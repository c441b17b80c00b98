import math

import pytest
import torch

from ossicle.inspect.transport import transport_plan


def test_plan_of_two_points_by_hand():
    # Costs 0 on the diagonal and c off it: by symmetry a = P[0, 0], b = P[0, 1], a + b = 1/2, a / b = exp(c / blur²)
    x = torch.tensor([[0.0], [1.0]])
    plan = transport_plan(x, x, blur=0.5, unit=False)
    ratio = math.exp(0.5 / 0.25)
    a, b = 0.5 * ratio / (1 + ratio), 0.5 / (1 + ratio)
    torch.testing.assert_close(plan, torch.tensor([[a, b], [b, a]], dtype=torch.float64))


def test_marginals_are_uniform():
    torch.manual_seed(0)
    plan = transport_plan(torch.randn(7, 16), torch.randn(11, 16))
    assert plan.shape == (7, 11)
    torch.testing.assert_close(plan.sum(1), torch.full((7,), 1 / 7, dtype=torch.float64))
    torch.testing.assert_close(plan.sum(0), torch.full((11,), 1 / 11, dtype=torch.float64), atol=0, rtol=1e-3)


def test_matched_points_find_each_other_in_any_order():
    torch.manual_seed(0)
    x, order = torch.randn(6, 32), torch.tensor([3, 0, 5, 1, 4, 2])
    plan = transport_plan(x, 2.5 * x[order])  # of unit length first
    assert (plan.argmax(0) == order).all()
    assert plan.max() == pytest.approx(1 / 6, abs=1e-6)


def test_plan_is_the_cheapest():
    """Of all couplings with these sums: moving mass round any rectangle of the plan does not lower its objective."""
    torch.manual_seed(0)
    x, y, blur = torch.randn(3, 2), torch.randn(4, 2), 0.3
    plan = transport_plan(x, y, blur=blur, unit=False, tolerance=1e-9)
    cost = torch.cdist(x, y).double().square() / 2

    def objective(p):
        return (p * cost).sum() + blur**2 * (p * (p * p.numel()).log()).sum()

    for i, k, j, m in ((0, 1, 0, 1), (0, 2, 1, 3), (1, 2, 0, 2)):
        for step in (1e-6, -1e-6):
            moved = plan.clone()
            moved[[i, k], [j, m]] += step
            moved[[i, k], [m, j]] -= step
            if moved.min() > 0:
                assert objective(moved) > objective(plan) - 1e-12


def test_points_far_apart_for_the_blur_stay_exact():
    x = torch.tensor([[0.0], [100.0]])
    plan = transport_plan(x, x[[1, 0]] + 1, blur=0.01, unit=False)  # exponents of 1e7: only in the log domain
    torch.testing.assert_close(plan, torch.tensor([[0.0, 0.5], [0.5, 0.0]], dtype=torch.float64))


def test_what_has_no_plan_is_refused():
    with pytest.raises(ValueError, match=r"not \(0, 4\) and \(2, 4\)"):
        transport_plan(torch.ones(0, 4), torch.ones(2, 4))
    with pytest.raises(ValueError, match="finite"):
        transport_plan(torch.full((1, 4), torch.nan), torch.ones(2, 4))
