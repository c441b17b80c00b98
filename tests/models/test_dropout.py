"""Dropout masks of the utterances: the same for any batch, padding and process; as many zeros as asked for."""

import pytest
import torch

from ossicle.batch import Sample
from ossicle.models.dropout import by_utterance, dropout, is_by_utterance, of_utterances, of_windows

CPU = torch.device("cpu")


def samples(*ids: str) -> list[Sample]:
    return [Sample(id=one, audio="a.wav") for one in ids]


def masks(ids: str, *shape: int, p: float = 0.3, step: int = 0, calls: int = 1) -> torch.Tensor:
    with by_utterance(0, step), of_utterances(samples(*ids), CPU):
        return [dropout(torch.ones(len(ids), *shape), p, True) for _ in range(calls)][-1]


def test_a_mask_follows_its_utterance_whatever_the_batch_and_its_padding():
    joined = masks("abc", 9, 5)
    assert torch.equal(masks("c", 7, 5), joined[2:, :7])
    assert torch.equal(masks("ba", 9, 5), joined[[1, 0]])


@pytest.mark.parametrize("other", [{"ids": "b"}, {"step": 1}, {"calls": 2}])
def test_utterances_steps_and_calls_have_other_masks(other):
    given = {"ids": "a", **other}
    assert 0.3 < float((masks("a", 50, 40) == masks(given.pop("ids"), 50, 40, **given)).float().mean()) < 0.7


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_elements_fall_out_independently_with_their_probability(p):
    kept = masks("abcd", 40, 50, 20, p=p)
    assert set(kept.unique().tolist()) == {0.0, torch.tensor(1 / (1 - p)).item()}
    dropped = (kept == 0).double()
    spread = (p * (1 - p)) ** 0.5
    assert float(dropped.mean()) == pytest.approx(p, abs=5 * spread / dropped.numel() ** 0.5)
    for dim in range(4):  # neighbours along each dimension are not correlated
        size = dropped.shape[dim]
        first, second = dropped.narrow(dim, 0, size - 1), dropped.narrow(dim, 1, size - 1)
        correlation = float(((first - p) * (second - p)).mean()) / spread**2
        assert abs(correlation) < 5 / first.numel() ** 0.5


def test_windows_have_masks_of_their_own_that_follow_their_utterance():
    def of(ids: str, places: tuple[list[int], list[int]]) -> torch.Tensor:
        with by_utterance(0, 0), of_utterances(samples(*ids), CPU), of_windows(list(map(torch.tensor, places))):
            return dropout(torch.ones(len(places[0]), 30, 20), 0.5, True)

    both = of("ab", ([0, 0, 1], [0, 1, 0]))
    assert torch.equal(of("b", ([0], [0])), both[2:])
    assert not torch.equal(both[0], both[1])
    assert not torch.equal(both[0], both[2])


def test_a_shared_mask_is_that_of_every_batch_of_the_step():
    def shared(ids: str, step: int) -> torch.Tensor:
        with by_utterance(0, step), of_utterances(samples(*ids), CPU):
            return dropout(torch.ones(30, 20), 0.5, True, shared=True)

    assert torch.equal(shared("ab", 0), shared("c", 0))
    assert not torch.equal(shared("ab", 0), shared("ab", 1))


def test_gradients_are_those_of_the_mask():
    x = torch.ones(1, 6, 5, requires_grad=True)
    with by_utterance(0, 0), of_utterances(samples("a"), CPU):
        out = dropout(x, 0.5, True)
    out.sum().backward()
    assert torch.equal(x.grad, out.detach())


def test_elsewhere_it_is_that_of_pytorch():
    x = torch.ones(4, 50)
    for training, p in ((False, 0.5), (True, 0.0)):
        with by_utterance(0, 0), of_utterances(samples(*"abcd"), CPU):
            assert torch.equal(dropout(x, p, training), x)
    torch.manual_seed(0)
    wanted = torch.nn.functional.dropout(x, 0.5, True)
    torch.manual_seed(0)
    with of_utterances(samples(*"abcd"), CPU):  # no step
        assert not is_by_utterance()
        assert torch.equal(dropout(x, 0.5, True), wanted)
