import math
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import load_file

from ossicle.errors import ConfigError, MissingPackageError
from ossicle.losses import sinkhorn, sinkhorn_torch
from ossicle.losses.contrastive import info_nce
from ossicle.losses.sinkhorn import sinkhorn_divergence, wasserstein_similarity
from ossicle.losses.sinkhorn_problem import Layout, Schedule, inner_products
from places import SHARED

FIXTURES = SHARED / "fixtures"
BACKENDS = ["torch", "numba"] if find_spec("numba") else ["torch"]
Clouds = tuple[torch.Tensor, torch.Tensor]


def clouds(lengths: list[int], seed: int = 0, dim: int = 6, spread: float = 0.4, dtype=torch.float32) -> Clouds:
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(len(lengths), max(lengths), dim, generator=generator, dtype=torch.float64) * spread
    return points.to(dtype), torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


def geomloss(x: Clouds, y: Clouds, **options: float) -> torch.Tensor:
    """The loop over pairs that we replace."""
    module = pytest.importorskip("geomloss", reason="geomloss, the oracle, is not installed")
    loss = module.SamplesLoss("sinkhorn", p=2, blur=0.05, backend="tensorized", **options)
    rows = [[loss(a[m], b[n]) for b, n in zip(*y, strict=True)] for a, m in zip(*x, strict=True)]
    return torch.stack([torch.stack(row) for row in rows])


def gradients(value: torch.Tensor, x: torch.Tensor, y: torch.Tensor, seed: int = 5) -> list[torch.Tensor]:
    weights = torch.randn(value.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return list(torch.autograd.grad((value * weights.to(value.dtype)).sum(), [x, y]))


# --- the reference implementations ---


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("schedule", ["sample", "pair"])
def test_the_reference_implementation_gives_the_same_loss_and_gradient(backend: str, schedule: str):
    if not FIXTURES.is_dir():
        pytest.skip("the reference losses are missing (shared/fixtures)")
    reference = load_file(FIXTURES / "contrastive.safetensors")
    speech = reference["speech"].requires_grad_()
    text = reference["text"], reference["text_mask"]
    similarity = wasserstein_similarity(*text, speech, reference["speech_mask"], schedule=schedule, backend=backend)
    loss = info_nce(similarity)
    loss.backward()
    torch.testing.assert_close(-similarity.detach(), reference["wasserstein_distance"], rtol=1e-5, atol=0)
    torch.testing.assert_close(loss.detach(), reference["wasserstein_loss"].squeeze(), rtol=1e-5, atol=0)
    assert relative(speech.grad, reference["wasserstein_grad_speech"]) < 1e-5


@pytest.mark.parametrize("spread", [0.4, 0.01, 3.0])
def test_the_pair_schedule_is_geomloss_in_float64(spread: float):
    x = clouds([1, 7, 13, 4], 0, spread=spread, dtype=torch.float64)
    y = clouds([25, 1, 3, 12, 9], 1, spread=spread, dtype=torch.float64)
    for points in (x[0], y[0]):
        points.requires_grad_()
    theirs = geomloss(x, y)
    ours = sinkhorn_divergence(*x, *y, schedule="pair")
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    for mine, other in zip(gradients(ours, x[0], y[0]), gradients(theirs, x[0], y[0]), strict=True):
        assert relative(mine, other) < 1e-8


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_sample_schedule_is_geomloss_almost(backend: str):
    x, y = clouds([2, 7, 13], 0, spread=0.2), clouds([25, 5, 12], 1, spread=0.2)
    theirs = geomloss((x[0].double().requires_grad_(), x[1]), (y[0].double(), y[1]))
    torch.testing.assert_close(
        sinkhorn_divergence(*x, *y, backend=backend).double(), theirs.detach(), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("options", [{"blur": 0.2}, {"scaling": 0.8}, {"scaling": 0.05}, {"blur": 1.0, "scaling": 0.3}])
def test_blur_and_scaling_mean_what_they_mean_in_geomloss(options: dict[str, float]):
    module = pytest.importorskip("geomloss", reason="geomloss, the oracle, is not installed")
    x, y = clouds([9], 0, dtype=torch.float64), clouds([14], 1, dtype=torch.float64)
    loss = module.SamplesLoss("sinkhorn", p=2, backend="tensorized", **{"blur": 0.05, "scaling": 0.5, **options})
    ours = sinkhorn_divergence(*x, *y, schedule="pair", **options)
    torch.testing.assert_close(ours.squeeze(), loss(x[0][0], y[0][0]), rtol=1e-9, atol=1e-12)


# --- what must be true of it ---


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_single_points_are_half_their_squared_distance_apart(backend: str):
    x, y = torch.tensor([[[0.0, 0.0]], [[1.0, 1.0]]]), torch.tensor([[[3.0, 4.0]]])
    one = torch.ones(2, 1, dtype=torch.bool)
    y.requires_grad_()
    distance = sinkhorn_divergence(x, one, y, one[:1], backend=backend)
    torch.testing.assert_close(distance, torch.tensor([[12.5], [6.5]]))
    distance.sum().backward()
    torch.testing.assert_close(y.grad, torch.tensor([[[5.0, 7.0]]]))  # (y - x_0) + (y - x_1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_is_symmetric_and_zero_between_a_cloud_and_itself(backend: str):
    x, y = clouds([5, 1, 9], 0), clouds([4, 17], 1)
    there = sinkhorn_divergence(*x, *y, backend=backend)
    assert there.shape == (3, 2)
    torch.testing.assert_close(there, sinkhorn_divergence(*y, *x, backend=backend).T, rtol=1e-5, atol=1e-6)
    assert (there > 0).all()
    itself = sinkhorn_divergence(*x, *x, backend=backend)
    torch.testing.assert_close(itself.diagonal(), torch.zeros(3), rtol=0, atol=2e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_neither_order_nor_padding_nor_the_rest_of_the_batch_matters(backend: str):
    x, y = clouds([5, 1, 9], 0), clouds([4, 17], 1)
    expected = sinkhorn_divergence(*x, *y, backend=backend)
    order = torch.tensor([2, 0, 1])
    permuted = sinkhorn_divergence(x[0][order], x[1][order], *y, backend=backend)
    torch.testing.assert_close(permuted, expected[order], rtol=1e-5, atol=1e-6)
    alone = sinkhorn_divergence(x[0][:1], x[1][:1], *y, backend=backend)
    torch.testing.assert_close(alone, expected[:1], rtol=1e-5, atol=1e-6)

    holes = torch.zeros(2, 40, dtype=torch.bool)
    padded = torch.full((2, 40, 6), torch.nan)  # padding is never read
    for cloud in range(2):
        places = torch.randperm(40, generator=torch.Generator().manual_seed(cloud))[: int(y[1][cloud].sum())]
        padded[cloud, places], holes[cloud, places] = y[0][cloud][y[1][cloud]], True
    padded.requires_grad_()
    scattered = sinkhorn_divergence(*x, padded, holes, backend=backend)
    torch.testing.assert_close(scattered, expected, rtol=1e-5, atol=1e-6)
    scattered.sum().backward()
    assert (padded.grad[~holes] == 0).all() and padded.grad.isfinite().all()


def test_the_gradient_is_that_of_finite_differences_where_the_iterations_converge():
    x, y = clouds([4, 2], 0, dim=3, dtype=torch.float64), clouds([3, 5], 1, dim=3, dtype=torch.float64)
    along = [torch.randn(points.shape, generator=torch.Generator().manual_seed(2)) * 1e-4 for points in (x[0], y[0])]

    def total(step: float) -> tuple[torch.Tensor, list[torch.Tensor]]:
        moved = [(points + step * by).requires_grad_() for points, by in zip((x[0], y[0]), along, strict=True)]
        weights = torch.tensor([[1.0, -0.5], [0.3, 2.0]])
        return (sinkhorn_divergence(moved[0], x[1], moved[1], y[1], blur=0.5, scaling=0.995) * weights).sum(), moved

    value, points = total(0.0)
    gradients = torch.autograd.grad(value, points)
    slope = sum(float((gradient * by).sum()) for gradient, by in zip(gradients, along, strict=True))
    assert (total(1.0)[0] - total(-1.0)[0]).item() / 2 == pytest.approx(slope, rel=5e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_similarity_is_the_divergence_of_unit_vectors_with_the_gradient_through_them(backend: str):
    text, speech = clouds([5, 3], 0, spread=2.0), clouds([8, 11], 1, spread=2.0)
    for points in (text[0], speech[0]):
        points.requires_grad_()
    similarity = wasserstein_similarity(*text, *speech, backend=backend)
    unit = [torch.nn.functional.normalize(points, dim=-1) for points in (text[0], speech[0])]
    plain = -sinkhorn_divergence(unit[0], text[1], unit[1], speech[1], backend="torch")
    torch.testing.assert_close(similarity, plain, rtol=1e-5, atol=1e-6)
    pairs = zip(gradients(similarity, text[0], speech[0]), gradients(plain, text[0], speech[0]), strict=True)
    assert all(relative(mine, other) < 1e-4 for mine, other in pairs)


# --- what must not break it ---


@pytest.mark.skipif(len(BACKENDS) == 1, reason="numba is not installed")
@pytest.mark.parametrize("schedule", ["sample", "pair"])
def test_both_solvers_agree_for_lengths_from_1_to_200(schedule: str):
    x, y = clouds([1, 200, 37, 64, 2], 0, spread=0.3), clouds([90, 1, 200, 5], 1, spread=0.3)
    x[0].requires_grad_()
    y[0].requires_grad_()
    results = []
    for backend in BACKENDS:
        value = sinkhorn_divergence(*x, *y, schedule=schedule, backend=backend)
        results.append([value.detach(), *gradients(value, x[0], y[0])])
    for mine, other in zip(*results, strict=True):
        assert relative(mine, other) < 2e-5


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("spread", [1e-7, 1e-3, 10.0])
def test_collapsed_and_far_apart_clouds_give_finite_numbers(backend: str, spread: float):
    x, y = clouds([4, 15, 1], 0, spread=spread), clouds([4, 30], 1, spread=spread)
    y[0][0] = y[0][0, 0]  # one point, many times
    y[0].requires_grad_()
    for options in ({}, {"scaling": 0.01}, {"blur": 1e-3}):
        value = sinkhorn_divergence(*x, *y, backend=backend, **options)
        value.sum().backward()
        assert value.isfinite().all() and y[0].grad.isfinite().all()
        exact = sinkhorn_divergence(x[0].double(), x[1], y[0].detach().double(), y[1], **options)
        torch.testing.assert_close(value.double(), exact, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_problem_that_underflows_is_solved_in_the_log_domain(backend: str):
    generator = torch.Generator().manual_seed(0)
    near = torch.randn(1, 12, 3, generator=generator) * 0.1
    x = torch.cat([near, near + torch.tensor([40.0, 0.0, 0.0])], 1)  # two far clusters, unevenly filled in y
    y = torch.cat([near[:, :3], near + torch.tensor([0.0, 40.0, 0.0])], 1).requires_grad_()
    masks = torch.ones(1, 24, dtype=torch.bool), torch.ones(1, 15, dtype=torch.bool)
    value = sinkhorn_divergence(x, masks[0], y, masks[1], scaling=0.02, backend=backend)
    (gradient,) = torch.autograd.grad(value.sum(), y)
    y64 = y.detach().double().requires_grad_()
    theirs = geomloss((x.double(), masks[0]), (y64, masks[1]), scaling=0.02)
    assert relative(value.detach(), theirs.detach()) < 1e-4
    assert relative(gradient, torch.autograd.grad(theirs.sum(), y64)[0]) < 1e-2


@pytest.mark.parametrize("backend", BACKENDS)
def test_bfloat16_goes_in_and_its_gradient_comes_out(backend: str):
    text, speech = clouds([5, 3], 0), clouds([8, 11], 1)
    half = text[0].bfloat16(), speech[0].bfloat16().requires_grad_()
    similarity = wasserstein_similarity(half[0], text[1], half[1], speech[1], backend=backend)
    assert similarity.dtype == torch.float32
    exact = wasserstein_similarity(half[0].double(), text[1], half[1].double(), speech[1])
    torch.testing.assert_close(similarity.double(), exact, rtol=1e-5, atol=1e-6)
    similarity.sum().backward()
    assert half[1].grad.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        again = wasserstein_similarity(half[0], text[1], half[1], speech[1], backend=backend)
    torch.testing.assert_close(again, similarity)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_bfloat16_gradient_is_close_and_leaves_the_values_alone(backend: str):
    text, speech = clouds([25, 13], 0, dim=64), clouds([48, 31], 1, dim=64)
    gradients, values = [], []
    for half in (False, True):
        heard = (speech[0] + 3.0).requires_grad_()  # a mean that all points share
        values.append(wasserstein_similarity(*text, heard, speech[1], backend=backend, bf16_gradient=half))
        info_nce(values[-1]).backward()
        gradients.append(heard.grad)
    assert torch.equal(*values)
    assert 0 < relative(gradients[1], gradients[0]) < 5e-3


def test_only_what_requires_a_gradient_gets_one():
    x, y = clouds([5, 3], 0), clouds([8, 11], 1)
    y[0].requires_grad_()
    value = sinkhorn_divergence(*x, *y)
    value.sum().backward()
    assert x[0].grad is None and y[0].grad is not None
    with torch.no_grad():
        assert not sinkhorn_divergence(*x, *y).requires_grad


def test_empty_clouds_and_senseless_points_and_options_are_refused():
    x, y = clouds([5, 3, 2], 0), clouds([8, 11], 1)
    empty = y[1].clone()
    empty[1] = False
    with pytest.raises(ValueError, match=r"sequences \[1\] of the second batch have no valid position"):
        sinkhorn_divergence(*x, y[0], empty)
    with pytest.raises(ValueError, match=r"the first mask is \(3, 4\) for points of shape \(3, 5, 6\)"):
        sinkhorn_divergence(x[0], x[1][:, :4], *y)
    broken = x[0].clone()
    broken[2, 1] = math.nan
    with pytest.raises(ValueError, match=r"sequences \[2\] of the first batch"):
        sinkhorn_divergence(broken, x[1], *y)
    with pytest.raises(ValueError, match="blur must be positive"):
        sinkhorn_divergence(*x, *y, blur=0.0)
    with pytest.raises(ValueError, match="schedule must be"):
        sinkhorn_divergence(*x, *y, schedule="batch")
    with pytest.raises(ConfigError, match="backend must be one of auto, torch, numba"):
        sinkhorn_divergence(*x, *y, backend="cuda")
    with pytest.raises(ConfigError, match="the numba solver takes float32"):
        sinkhorn_divergence(x[0].double(), x[1], *y, backend="numba")


def test_without_numba_the_torch_solver_is_used_and_the_package_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sinkhorn, "find_spec", lambda name: None)
    sinkhorn.select_solver.cache_clear()
    x, y = clouds([5, 3], 0), clouds([8], 1)
    assert torch.equal(sinkhorn_divergence(*x, *y), sinkhorn_divergence(*x, *y, backend="torch"))
    with pytest.raises(MissingPackageError, match=r"pip install numba"):
        sinkhorn_divergence(*x, *y, backend="numba")
    sinkhorn.select_solver.cache_clear()


def test_contrastive_losses_import_neither_the_solver_nor_numba():
    code = "import sys, ossicle.losses.contrastive as c; bad = {'numba', 'ossicle.losses.sinkhorn'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", f"{code}; assert not bad, bad"], check=True)


# --- its parts ---


def test_the_temperatures_are_those_of_geomloss():
    module = pytest.importorskip("geomloss._legacy.sinkhorn_divergence", reason="geomloss is not installed")
    for diameter in (3.9, 2.0, 1.2, 0.0501, 0.05, 0.02):
        schedule = Schedule.from_diameters(torch.tensor([diameter], dtype=torch.float64), 0.05, 0.5)
        theirs = module.epsilon_schedule(2, diameter, 0.05, 0.5)
        assert schedule.as_list((0,)) == pytest.approx([float(value) for value in theirs])


def test_clouds_of_similar_length_share_a_tile_and_are_packed_without_padding():
    mask = torch.tensor([[1, 1, 1, 1], [0, 1, 0, 1], [1, 0, 1, 1], [0, 0, 1, 0]], dtype=torch.bool)
    layout = Layout.from_mask(mask)
    assert layout.bundles(8) == [[3, 1], [2, 0]] and layout.bundles(1) == [[3], [1], [2], [0]]
    assert layout.lengths == [4, 2, 3, 1]
    assert layout.source.tolist() == [0, 1, 2, 3, 5, 7, 8, 10, 11, 14]
    assert layout.cloud.tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 2, 3]
    assert layout.rows(2) == slice(6, 9)
    assert layout.missing.tolist() == [4, 6, 9, 12, 13, 15]


@pytest.mark.parametrize("shape", [(3, 5, 7), (300, 17, 1), (1, 1, 4)])
def test_products_are_those_of_a_matrix_product_whatever_the_strides(shape: tuple[int, int, int]):
    rows, columns, width = shape
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(2 * width, 3 * n, generator=generator)[::2, ::3].T for n in (rows, columns))
    exact = x.double() @ y.double().T
    for product in (inner_products(x, y), inner_products(x.double(), y.double())):
        torch.testing.assert_close(product.double(), exact, rtol=1e-5, atol=1e-6)


def test_tiles_of_any_size_give_the_same(monkeypatch: pytest.MonkeyPatch):
    x, y = clouds([5, 1, 9, 8], 0), clouds([4, 17, 30], 1)
    expected = sinkhorn_divergence(*x, *y, backend="torch")
    monkeypatch.setitem(sinkhorn_torch.MAX_TILE, "cpu", (10, 40))
    torch.testing.assert_close(sinkhorn_divergence(*x, *y, backend="torch"), expected, rtol=1e-5, atol=1e-6)
