import itertools
from collections import Counter

import numpy as np
import pytest

from ossicle.data.sampler import BatchSampler, mixture

DURATIONS_S = np.random.default_rng(0).uniform(0.5, 20.0, 500).tolist()


def sampler(**changes) -> BatchSampler:
    return BatchSampler(**{"durations_s": DURATIONS_S, "batch_size": 16, "max_batch_s": 120.0, **changes})


def mean_padding(batches: BatchSampler) -> float:
    durations_s = [[DURATIONS_S[index] for index in batch] for batch in batches]
    return float(np.mean([1.0 - sum(batch) / (max(batch) * len(batch)) for batch in durations_s]))


@pytest.mark.parametrize("order", ["random", "duration"])
def test_bounds_hold_and_every_utterance_comes_once(order):
    batches = list(sampler(order=order))
    assert sorted(itertools.chain(*batches)) == list(range(500))
    assert all(len(batch) <= 16 for batch in batches)
    assert all(max(DURATIONS_S[index] for index in batch) * len(batch) <= 120.0 for batch in batches)
    assert all(type(index) is int for batch in batches for index in batch)


def test_count_alone_fills_batches():
    assert [len(batch) for batch in sampler(max_batch_s=float("inf"))] == [16] * 31 + [4]


@pytest.mark.parametrize("pads", [False, True])
def test_tokens_bound_a_batch_too(pads):
    tokens = np.random.default_rng(1).integers(5, 200, 500)
    loose = list(sampler(tokens=tokens, max_batch_tokens=10**6))
    assert loose == list(sampler())
    batches = list(sampler(tokens=tokens, max_batch_tokens=400, pads_tokens=pads))
    assert sorted(itertools.chain(*batches)) == list(range(500))
    sizes = [len(batch) * tokens[batch].max() if pads else tokens[batch].sum() for batch in batches]
    assert max(sizes) <= 400 and sum(sizes) / len(sizes) > 200
    # No batch has room for the utterance that begins the next one.
    for batch, (first, *_) in itertools.pairwise(batches):
        both = tokens[[*batch, first]]
        seconds = (len(batch) + 1) * max(DURATIONS_S[index] for index in [*batch, first])
        assert (len(both) * both.max() if pads else both.sum()) > 400 or seconds > 120.0


def test_an_utterance_over_the_bound_of_tokens_is_a_batch_of_its_own():
    batches = list(BatchSampler(durations_s=[1.0] * 3, tokens=[5, 90, 5], batch_size=8, max_batch_tokens=10))
    assert [1] in batches and sorted(itertools.chain(*batches)) == [0, 1, 2]


def test_utterance_over_the_bound_is_a_batch_of_its_own():
    batches = list(BatchSampler(durations_s=[1.0, 50.0, 1.0], batch_size=8, max_batch_s=10.0))
    assert [1] in batches
    assert sorted(itertools.chain(*batches)) == [0, 1, 2]


def test_small_batches_are_dropped_with_a_warning(caplog):
    batches = list(BatchSampler(durations_s=[1.0, 50.0, 1.0, 1.0], batch_size=8, max_batch_s=10.0, min_batch_size=2))
    lone = 4 - sum(map(len, batches))
    assert lone >= 1
    assert all(len(batch) > 1 for batch in batches)
    assert f"leaves out {lone} utterances" in caplog.text


def test_duration_order_pads_less_and_still_mixes():
    by_duration, by_chance = sampler(order="duration"), sampler(order="random")
    assert mean_padding(by_duration) < 0.1 < mean_padding(by_chance)
    means_s = [np.mean([DURATIONS_S[index] for index in batch]) for batch in by_duration]
    assert abs(np.corrcoef(means_s, np.arange(len(means_s)))[0, 1]) < 0.5


@pytest.mark.parametrize("order", ["random", "duration"])
def test_seed_and_epoch_decide(order):
    one, same, other = sampler(order=order), sampler(order=order), sampler(order=order, seed=1)
    first = list(one)
    assert first == list(one) == list(same)
    assert first != list(other)
    one.set_epoch(1)
    second = list(one)
    assert first != second
    assert second == list(sampler(order=order, epoch=1))


@pytest.mark.parametrize("order", ["random", "duration"])
def test_ranks_share_the_batches(order):
    alone = list(sampler(order=order))
    ranks = [list(sampler(order=order, rank=rank, world_size=3)) for rank in range(3)]
    lengths = [len(sampler(order=order, rank=rank, world_size=3)) for rank in range(3)]
    assert lengths == [len(batches) for batches in ranks]
    assert len(set(lengths)) == 1
    rest = len(alone) % 3
    assert rest, "the test needs a remainder"
    together = Counter(tuple(batch) for batches in ranks for batch in batches)
    assert set(together) == set(map(tuple, alone))
    assert together.total() == len(alone) + 3 - rest


def test_fewer_batches_than_ranks_wrap_around():
    ranks = [list(BatchSampler(durations_s=[1.0], batch_size=4, rank=rank, world_size=3)) for rank in range(3)]
    assert ranks == [[[0]]] * 3


def test_ranks_work_on_like_lengths_in_each_round():
    ranks = [sampler(order="duration", rank=rank, world_size=2) for rank in range(2)]
    longest_s = [[max(DURATIONS_S[index] for index in batch) for batch in batches] for batches in ranks]
    gaps_s = np.abs(np.subtract(*longest_s))
    assert np.median(gaps_s) < 1.0


@pytest.mark.parametrize("world_size", [1, 2])
def test_resumes_in_the_middle_of_an_epoch(world_size):
    whole = list(sampler(epoch=3, rank=world_size - 1, world_size=world_size))
    resumed = sampler(rank=world_size - 1, world_size=world_size)
    resumed.set_epoch(3)
    resumed.start(5)
    assert len(resumed) == len(whole)
    assert list(resumed) == whole[5:]
    assert list(resumed) == whole, "only the next iteration starts late"
    with pytest.raises(ValueError, match="cannot start at batch 999: epoch 3 has"):
        resumed.start(999)


def test_mixture_draws_by_weight_and_keeps_the_epoch_length():
    tasks = ["asr"] * 300 + ["st"] * 100 + ["qa"] * 100
    drawn = mixture(tasks, {"asr": 1, "st": 2, "qa": 0}, np.random.default_rng(0))
    times = Counter(drawn.tolist())
    assert len(drawn) == 500
    assert sum(times[index] for index in range(300)) == 300
    assert sum(times[index] for index in range(300, 400)) == 200
    assert {times[index] for index in range(300, 400)} == {2}
    assert not any(times[index] for index in range(400, 500))


def test_mixture_in_the_sampler_changes_with_the_epoch():
    tasks = ["asr"] * 400 + ["st"] * 100
    batches = sampler(tasks=tasks, mixture_weights={"st": 3.0})
    first = list(itertools.chain(*batches))
    batches.set_epoch(1)
    second = list(itertools.chain(*batches))
    assert len(first) == len(second) == 500
    assert sum(index >= 400 for index in first) == 214  # 500 * 300 / 700
    assert set(first) != set(second)


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="above 0"):
        sampler(batch_size=0)
    with pytest.raises(ValueError, match="above 0"):
        sampler(max_batch_s=0)
    with pytest.raises(ValueError, match="max_batch_tokens 0 must be above 0"):
        sampler(max_batch_tokens=0)
    with pytest.raises(ValueError, match="pass tokens"):
        sampler(max_batch_tokens=10)
    with pytest.raises(ValueError, match="rank 2 is not one of 2"):
        sampler(rank=2, world_size=2)
    with pytest.raises(ValueError, match="pass tasks"):
        sampler(mixture_weights={"asr": 1.0})
    with pytest.raises(ValueError, match=r"does not have: \['sat'\]"):
        list(sampler(tasks=["asr"] * 500, mixture_weights={"sat": 1.0}))
    with pytest.raises(ValueError, match="not all 0"):
        list(sampler(tasks=["asr"] * 500, mixture_weights={"asr": 0.0}))


def test_a_curriculum_begins_with_the_short_ones():
    durations_s = [float(i % 10 + 1) for i in range(40)]
    sampler = BatchSampler(durations_s=durations_s, batch_size=4, curriculum_epochs=3)
    longest = []
    for epoch in range(5):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        indices = [i for batch in batches for i in batch]
        longest.append(max(durations_s[i] for i in indices))
        assert len(indices) == len(set(indices)) == min(40, 10 * (epoch + 1))
        assert indices != sorted(indices, key=lambda i: durations_s[i])  # the order stays random
    assert longest == [3.0, 5.0, 8.0, 10.0, 10.0]
