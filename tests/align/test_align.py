import itertools
import math

import pytest
import torch
from torch import Tensor

from ossicle.align.ctc import ctc_align, frames_needed
from ossicle.batch import pad
from ossicle.errors import AlignmentError

BLANK = 0


def brute_force(log_probs: Tensor, labels: list[int]) -> tuple[float, tuple[int, ...]]:
    """Return score and path of the best of all V^T paths that spell ``labels``."""
    values = log_probs.tolist()

    def spells(path: tuple[int, ...]) -> bool:
        return [label for label, _ in itertools.groupby(path) if label != BLANK] == labels

    paths = filter(spells, itertools.product(range(log_probs.shape[1]), repeat=len(values)))
    return max((math.fsum(row[label] for row, label in zip(values, path, strict=True)), path) for path in paths)


def spans_of(path: tuple[int, ...]) -> list[tuple[int, int]]:
    runs = [(label, len(list(run))) for label, run in itertools.groupby(path)]
    ends = list(itertools.accumulate(length for _, length in runs))
    return [(end - length, end) for (label, length), end in zip(runs, ends, strict=True) if label != BLANK]


def problem(labels: list[list[int]], lengths: list[int], vocabulary: int, seed: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    shape = (len(labels), max(lengths), vocabulary)
    log_probs = (2 * torch.randn(shape, generator=generator, dtype=torch.float64)).log_softmax(-1)
    targets = pad([torch.tensor(row, dtype=torch.long) for row in labels])
    return log_probs, torch.tensor(lengths), targets.values, targets.mask


@pytest.mark.parametrize("seed", range(6))
def test_the_path_is_the_best_of_all(seed: int) -> None:
    labels = [[1, 2], [1, 1], [2, 2, 1], [3], [1, 2, 3, 1], []]
    log_probs, lengths, targets, mask = problem(labels, [5, 6, 7, 4, 7, 3], 4, seed)
    spans = ctc_align(log_probs, lengths, targets, mask)
    for i, row in enumerate(labels):
        score, path = brute_force(log_probs[i, : lengths[i]], row)
        assert spans.path_scores[i].item() == pytest.approx(score, abs=1e-9)
        found = list(zip(spans.starts[i].tolist(), spans.ends[i].tolist(), strict=True))[: len(row)]
        assert found == spans_of(path)
        means = [log_probs[i, a:b, label].mean().item() for (a, b), label in zip(found, row, strict=True)]
        assert spans.scores[i, : len(row)].tolist() == pytest.approx(means)


def test_a_batch_aligns_like_its_utterances_alone_whatever_the_padding_holds() -> None:
    labels = [[5, 4, 4, 7], [2], [3, 3, 3, 3, 3, 1, 2, 6, 7, 8], [9, 1]]
    log_probs, lengths, targets, mask = problem(labels, [40, 3, 90, 17], 10, 0)
    targets = targets.masked_fill(~mask, -100)
    log_probs[1, 3:] = torch.nan
    batch = ctc_align(log_probs, lengths, targets, mask)
    for i, row in enumerate(labels):
        alone = ctc_align(log_probs[i : i + 1, : lengths[i]], lengths[i : i + 1], *problem([row], [1], 2, 0)[2:])
        for name in ("starts", "ends", "scores"):
            assert torch.equal(getattr(batch, name)[i, : len(row)], getattr(alone, name)[0])
        assert torch.equal(batch.path_scores[i], alone.path_scores[0])


def test_exactly_enough_frames() -> None:
    labels = [[1, 1, 1], [1, 2, 3]]
    log_probs, lengths, targets, mask = problem(labels, [5, 3], 4, 1)
    assert frames_needed(targets, mask).tolist() == [5, 3]
    spans = ctc_align(log_probs, lengths, targets, mask)
    assert spans.starts.tolist() == [[0, 2, 4], [0, 1, 2]]
    assert spans.ends.tolist() == [[1, 3, 5], [1, 2, 3]]


def test_another_blank_and_half_precision() -> None:
    probabilities = torch.full((1, 6, 3), 0.01)
    for frame, label in enumerate([2, 0, 0, 2, 1, 2]):
        probabilities[0, frame, label] = 0.9
    spans = ctc_align(
        probabilities.log().bfloat16(), torch.tensor([6]), torch.tensor([[0, 1]]), torch.ones(1, 2).bool(), blank=2
    )
    assert spans.starts.tolist() == [[1, 4]] and spans.ends.tolist() == [[3, 5]]
    assert spans.scores.dtype == torch.float32


@pytest.mark.parametrize("labels, frames", [([1, 2, 3], 2), ([1, 1], 2), ([], 0)])
def test_too_few_frames_is_an_error_that_names_the_utterance(labels: list[int], frames: int) -> None:
    log_probs, lengths, targets, mask = problem([[1], labels], [4, frames], 4, 0)
    with pytest.raises(
        AlignmentError, match=rf"utterance 1 of the batch has {frames} frames, its {len(labels)} labels"
    ):
        ctc_align(log_probs, lengths, targets, mask)


def test_an_impossible_text_and_a_blank_target_are_errors() -> None:
    log_probs, lengths, targets, mask = problem([[1], [2]], [4, 4], 4, 0)
    log_probs[1, :, 2] = -torch.inf
    with pytest.raises(AlignmentError, match="utterance 1 of the batch: no path"):
        ctc_align(log_probs, lengths, targets, mask)
    with pytest.raises(ValueError, match="contain the blank"):
        ctc_align(log_probs, lengths, targets, mask, blank=1)
