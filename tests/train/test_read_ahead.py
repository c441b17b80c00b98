"""Batches are read ahead in threads: in order, one batch and no more."""

import threading

import pytest

from ossicle.train.cache import read_ahead

WAIT_S = 20


class Numbers:
    """Items that are their own indices. It keeps which were read, and by which threads."""

    def __init__(self) -> None:
        self.read: list[int] = []
        self.threads: set[int] = set()
        self.event = threading.Event()

    def __getitem__(self, index: int) -> int:
        if index < 0:
            raise ValueError(f"no item {index}")
        self.read.append(index)
        self.threads.add(threading.get_ident())
        if index == 2:
            self.event.set()
        return index


def test_batches_have_their_order():
    batches = [[3, 1], [2], [], [5, 4, 0]]
    found = list(read_ahead(Numbers(), batches))
    assert found == [(indices, indices) for indices in batches]


def test_the_next_batch_is_read_meanwhile_and_no_further_one():
    numbers = Numbers()
    batches = read_ahead(numbers, [[0, 1], [2], [3]])
    assert next(batches) == ([0, 1], [0, 1])
    assert numbers.event.wait(WAIT_S)  # nobody asks for the second batch
    assert sorted(numbers.read) == [0, 1, 2]
    assert threading.get_ident() not in numbers.threads
    assert [indices for indices, _ in batches] == [[2], [3]]


def test_items_of_a_batch_are_read_side_by_side():
    both = threading.Barrier(2)

    class Meeting:
        def __getitem__(self, index: int) -> int:
            both.wait(WAIT_S)
            return index

    assert list(read_ahead(Meeting(), [[0, 1]])) == [([0, 1], [0, 1])]


def test_an_error_is_raised_when_its_batch_is_due():
    batches = read_ahead(Numbers(), [[0], [-1], [1]])
    assert next(batches) == ([0], [0])
    with pytest.raises(ValueError, match="no item -1"):
        next(batches)


def test_nothing_is_read_after_the_caller_has_stopped():
    numbers = Numbers()
    batches = read_ahead(numbers, [[0], [1], [3], [4]])
    next(batches)
    batches.close()
    assert set(numbers.read) <= {0, 1}
