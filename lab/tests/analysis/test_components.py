import math

import pytest
import torch

from ossicle_lab.analysis.components import principal_components


def test_principal_components_of_a_cross():
    # variance 2·9 along the diagonal direction, 2·1 across it
    points = torch.tensor([[3.0, 3.0], [-3.0, -3.0], [1.0, -1.0], [-1.0, 1.0]]) / math.sqrt(2) + 5
    found = principal_components(points)
    assert found.share == pytest.approx([0.9, 0.1])
    assert found.points.shape == (4, 2)
    expected = torch.tensor([[3, 0], [-3, 0], [0, 1], [0, -1]], dtype=torch.float64).abs()
    torch.testing.assert_close(found.points.abs(), expected, atol=1e-6, rtol=0)
    largest = found.points.gather(0, found.points.abs().argmax(0, keepdim=True))
    assert (largest > 0).all()


def test_principal_components_keep_distances_in_any_width():
    torch.manual_seed(0)
    points = torch.randn(3, 50)  # three points span a plane
    flat = principal_components(points).points
    torch.testing.assert_close(torch.cdist(flat, flat), torch.cdist(points, points).double(), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="2 principal components"):
        principal_components(points[:1])
