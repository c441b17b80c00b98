"""The CTC loss against the forward algorithm of Graves et al. (2006), written out position by position."""

import math

import pytest
import torch

from ossicle.losses.ctc import ctc_loss


def forward_algorithm(probabilities: torch.Tensor, labels: list[int]) -> float:
    """Return the probability of ``labels`` under ``probabilities`` (P, V), of which class 0 is the blank."""
    extended = [0, *(symbol for label in labels for symbol in (label, 0))]
    alpha = [float(probabilities[0, symbol]) if place < 2 else 0.0 for place, symbol in enumerate(extended)]
    for row in probabilities[1:]:
        before = [0.0, 0.0, *alpha]
        alpha = [
            float(row[symbol])
            * (
                before[place + 2]
                + before[place + 1]
                + (before[place] if symbol and place > 1 and symbol != extended[place - 2] else 0.0)
            )
            for place, symbol in enumerate(extended)
        ]
    return sum(alpha[-2:]) if len(alpha) > 1 else alpha[-1]


def test_it_is_the_forward_algorithm_per_label_and_averaged_over_utterances():
    scores = torch.randn(3, 9, 5, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    labels, lengths = [[1, 1, 2], [4], [3, 2, 3, 3]], [9, 4, 8]  # equal neighbours need a blank between them
    expected = [
        -math.log(forward_algorithm(row[:length].exp(), wanted)) / len(wanted)
        for row, wanted, length in zip(scores, labels, lengths, strict=True)
    ]
    found = ctc_loss(scores, torch.tensor(lengths), labels)
    assert found.item() == pytest.approx(sum(expected) / 3, rel=1e-5)


def test_labels_that_do_not_fit_count_as_zero_and_have_no_gradient():
    logits = torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
    loss = ctc_loss(logits.log_softmax(-1), torch.tensor([3]), [[2, 2]])
    assert loss.item() == pytest.approx(
        -math.log(forward_algorithm(logits[0].softmax(-1).detach(), [2, 2])) / 2, rel=1e-5
    )
    loss = ctc_loss(logits.log_softmax(-1), torch.tensor([2]), [[2, 2]])  # without room for the blank
    loss.backward()
    assert loss.item() == 0 and float(logits.grad.abs().max()) == 0
