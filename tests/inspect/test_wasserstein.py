from pathlib import Path

import pytest
import torch

from ossicle.batch import Batch, HiddenStates, Sample
from ossicle.inspect.wasserstein import MeanWasserstein, pair_sums
from ossicle.losses.sinkhorn import wasserstein_similarity


def batch(*texts):
    return Batch(samples=[Sample(id=text, audio=Path("x.wav"), text=text) for text in texts])


def test_pairs_of_the_same_transcript_are_neither():
    similarity = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0], [64.0, 128.0, 256.0]])
    same = torch.tensor([[True, True, False], [True, True, False], [False, False, True]])
    assert pair_sums(similarity, same) == (1 + 16 + 256, 4 + 32 + 64 + 128)


def test_single_points_by_hand():
    # unit vectors at right angles: |x - y|² / 2 = 1; opposite ones: 2
    text, speech = torch.tensor([[[2.0, 0.0]], [[0.0, 3.0]]]), torch.tensor([[[1.0, 0.0]], [[0.0, -1.0]]])
    mask = torch.ones(2, 1, dtype=torch.bool)
    found = MeanWasserstein()
    found.observe(batch("a", "b"), HiddenStates({4: text}, mask), HiddenStates({4: speech}, mask))
    row = found.rows[4]
    assert row.matched == pytest.approx(-(0 + 2) / 2, abs=1e-5)
    assert row.mismatched == pytest.approx(-(1 + 1) / 2, abs=1e-5)


def test_means_are_over_all_batches():
    torch.manual_seed(0)
    found, own, other = MeanWasserstein(), [], []
    for size in (3, 2, 1):
        text, speech = torch.randn(size, 4, 8), torch.randn(size, 6, 8)
        masks = torch.ones(size, 4, dtype=torch.bool), torch.ones(size, 6, dtype=torch.bool)
        masks[0][:, -1] = False  # padding
        found.observe(batch(*"abc"[:size]), HiddenStates({0: text}, masks[0]), HiddenStates({0: speech}, masks[1]))
        similarity = wasserstein_similarity(text[:, :3], masks[0][:, :3], speech, masks[1])
        own += similarity.diagonal().tolist()
        other += similarity[~torch.eye(size, dtype=torch.bool)].tolist()
    assert found.rows[0].matched == pytest.approx(sum(own) / 6)
    assert found.rows[0].mismatched == pytest.approx(sum(other) / 8)


def test_without_other_transcripts_there_is_no_mismatched():
    mask, state = torch.ones(1, 1, dtype=torch.bool), torch.ones(1, 1, 2)
    found = MeanWasserstein()
    found.observe(batch("a"), HiddenStates({0: state}, mask), HiddenStates({0: state}, mask))
    assert found.rows[0].mismatched is None
