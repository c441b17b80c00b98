"""Plans against POT, the loss by hand, and independence from padding."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ossicle.losses import regression
from ossicle.losses.regression import even_plans, regression_loss, transport_plans


@pytest.fixture
def ot():
    return pytest.importorskip("ot", reason="needs pip install POT")


def ragged(lengths: list[int], width: int = 5, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    values = torch.randn(len(lengths), max(lengths), width, generator=torch.Generator().manual_seed(seed))
    return values, torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def middles(count: int) -> np.ndarray:
    return (np.arange(count) + 0.5) / count


@pytest.mark.parametrize(("entropy", "order"), [(0.5, 0.0), (0.05, 0.0), (0.05, 3.0)])
def test_transport_plans_are_those_of_pot(entropy, order, monkeypatch, ot):
    monkeypatch.setattr(regression, "UPDATES", 1000)  # to the limit
    (text, text_mask), (speech, speech_mask) = ragged([4, 7, 1]), ragged([9, 3, 5], seed=1)
    plans = transport_plans(text, text_mask, speech, speech_mask, entropy=entropy, order=order)
    for plan, x, xm, y, ym in zip(plans, text, text_mask, speech, speech_mask, strict=True):
        a, b = x[xm].double().numpy(), y[ym].double().numpy()
        cost = ot.dist(a, b)
        cost = cost / cost.mean() + order * (middles(len(a))[:, None] - middles(len(b))) ** 2
        expected = ot.sinkhorn(ot.unif(len(a)), ot.unif(len(b)), cost, entropy, "sinkhorn_log", 20000, 1e-12)
        found = plan[: len(a), : len(b)]
        assert float((found - torch.from_numpy(expected)).abs().max()) < 1e-5
        torch.testing.assert_close(found.sum(0), torch.full((len(b),), 1 / len(b)))
        assert float(plan.sum()) == pytest.approx(1, abs=1e-5)


def test_even_plans_are_the_monotonic_plans_of_pot(ot):
    _, text_mask = ragged([4, 7, 1, 3])
    _, speech_mask = ragged([6, 5, 4, 3])
    plans = even_plans(text_mask, speech_mask)
    for plan, rows, columns in zip(plans, text_mask.sum(1).tolist(), speech_mask.sum(1).tolist(), strict=True):
        expected = torch.from_numpy(ot.emd_1d(middles(rows), middles(columns), metric="sqeuclidean")).float()
        torch.testing.assert_close(plan[:rows, :columns], expected)
        assert float(plan.sum()) == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(plans[3, :3, :3], torch.eye(3) / 3)


def test_the_loss_by_hand():
    plan = torch.tensor([[[0.5, 0.0], [0.25, 0.25]]])
    text = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
    speech = torch.tensor([[[1.0, 1.0], [0.0, 4.0]]])
    squares = (0.5 * 1 + 0.25 * 2 + 0.25 * 4) / (2 * 3.0)
    torch.testing.assert_close(regression_loss(plan, text, speech, variance=3.0), torch.tensor([squares]))
    half = 0.5**0.5
    cosines = 0.5 * (1 - half) + 0.25 * (1 - half) + 0.25 * (1 - 1)
    with_cosine = regression_loss(plan, text, speech, variance=3.0, cosine=0.1)
    torch.testing.assert_close(with_cosine, torch.tensor([squares + 0.1 * cosines]))


def test_padding_changes_nothing():
    (text, text_mask), (speech, speech_mask) = ragged([4, 7]), ragged([9, 3], seed=1)
    wide = [F.pad(values, (0, 0, 0, 2), value=9.0) for values in (text, speech)]
    masks = [F.pad(mask, (0, 2)) for mask in (text_mask, speech_mask)]
    losses = []
    for x, xm, y, ym in ((text, text_mask, speech, speech_mask), (wide[0], masks[0], wide[1], masks[1])):
        plan = transport_plans(x, xm, y, ym, order=1.0)
        losses.append(torch.stack([regression_loss(p, x, y, variance=1.0) for p in (plan, even_plans(xm, ym))]))
    torch.testing.assert_close(losses[0], losses[1])


def test_tokens_find_their_permutation_and_the_order_decides_between_equal_ones():
    text, mask = ragged([6])
    shuffled = text[:, torch.tensor([2, 0, 5, 1, 4, 3])]
    plan = transport_plans(text, mask, shuffled, mask, entropy=0.01)
    assert plan[0].argmax(0).tolist() == [2, 0, 5, 1, 4, 3]
    equal = torch.ones(1, 6, 5) + 1e-4 * torch.randn(1, 6, 5, generator=torch.Generator().manual_seed(0))
    ordered = transport_plans(equal, mask, torch.ones(1, 6, 5), mask, entropy=0.01, order=10.0)
    assert ordered[0].argmax(0).tolist() == list(range(6))


def test_the_gradient_is_that_of_a_constant_plan_and_computed_in_float32():
    (text, text_mask), (speech, speech_mask) = ragged([4, 7]), ragged([9, 3], seed=1)
    speech.requires_grad_()
    plan = transport_plans(text, text_mask, speech, speech_mask)
    assert not plan.requires_grad
    regression_loss(plan, text, speech, variance=2.0).sum().backward()
    by_hand = 2 * (plan.sum(1)[..., None] * speech - plan.mT @ text) / (5 * 2.0)
    torch.testing.assert_close(speech.grad, by_hand.detach())
    with torch.autocast("cpu", torch.bfloat16):
        mixed = regression_loss(transport_plans(text, text_mask, speech, speech_mask), text, speech, variance=2.0)
    torch.testing.assert_close(mixed, regression_loss(plan, text, speech, variance=2.0))
