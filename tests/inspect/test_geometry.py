import math

import pytest
import torch

from ossicle.inspect.geometry import linear_cka, modality_gap

AXES = torch.eye(4)


def test_gap_by_hand():
    # speech (±0.6, 0.8) around (0, 0.8), spread² 0.36; text (±0.8, -0.6) around (0, -0.6), spread² 0.64
    speech = torch.tensor([[0.6, 0.8], [-0.6, 0.8]])
    text = torch.tensor([[0.8, -0.6], [-0.8, -0.6]])
    assert modality_gap(speech, text) == pytest.approx(1.4 / math.sqrt(0.5))
    assert modality_gap(7 * speech, text) == pytest.approx(1.4 / math.sqrt(0.5))  # of unit length first


def test_gap_of_the_same_and_of_collapsed_vectors():
    assert modality_gap(AXES, AXES[[2, 0, 3, 1]]) == pytest.approx(0)
    assert modality_gap(AXES[:1], AXES[:1]) == 0
    assert modality_gap(AXES[:1], AXES[1:2]) == math.inf


def test_cka_by_hand():
    # K and L are the products of the signs: sum K∘L = -4, all rows sum to -1, so HSIC = (-4 + 16/6 - 4) / 4 = -4/3;
    # HSIC of each with itself (12 + 16/6 - 4) / 4 = 8/3
    x = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])
    y = torch.tensor([[1.0], [1.0], [-1.0], [-1.0]])
    assert linear_cka(x, y) == pytest.approx(-0.5)
    assert linear_cka(x, x) == pytest.approx(1)


def test_cka_is_blind_to_rotation_scale_and_shift():
    torch.manual_seed(0)
    x = torch.randn(12, 5)
    rotation, _ = torch.linalg.qr(torch.randn(5, 5))
    assert linear_cka(x, 3 * x @ rotation + 10) == pytest.approx(1, abs=1e-5)
    assert linear_cka(x, x * torch.tensor([5.0, 1, 1, 1, 1])) < 0.95


def test_cka_of_unrelated_wide_vectors_is_about_zero():
    torch.manual_seed(0)
    values = [linear_cka(torch.randn(20, 400), torch.randn(20, 400)) for _ in range(20)]
    assert abs(sum(values) / 20) < 0.03  # the biased estimate is 0.95 here


def test_cka_refuses_what_it_is_not_defined_for():
    with pytest.raises(ValueError, match="at least 4, not 3 and 3"):
        linear_cka(AXES[:3], AXES[:3])
    assert math.isnan(linear_cka(torch.ones(5, 2), torch.randn(5, 2)))
