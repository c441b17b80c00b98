"""The fused GPU kernel gives the numbers of the PyTorch solver.

On a GPU, the tests run the kernel on it. Elsewhere, one test runs them again in Triton's interpreter, which must be
chosen before Triton is imported. Without Triton, the tests skip.
"""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from ossicle.errors import ConfigError, MissingPackageError
from ossicle.losses import sinkhorn, sinkhorn_torch
from ossicle.losses.contrastive import info_nce
from ossicle.losses.sinkhorn import select_solver, sinkhorn_divergence, wasserstein_similarity

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
Clouds = tuple[torch.Tensor, torch.Tensor]

installed = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
kernel = pytest.mark.skipif(
    find_spec("triton") is None or (DEVICE == "cpu" and not INTERPRETED),
    reason="the kernel needs triton, and a GPU or TRITON_INTERPRET=1",
)

COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from ossicle.losses.sinkhorn_triton import _solve

pointers = "products first f_halves g_halves by_row by_column cost memory".split()
kinds = dict.fromkeys(pointers, "*fp32") | {"places": "*i64", "counts": "*i64"}
kinds |= {"ratio": "fp32", "final": "fp32", "begin": "i32"}
for resident, log in ((True, False), (False, True)):
    fixed = {"N": 16, "M": 16, "RESIDENT": resident, "BY_ROW": True, "BY_COLUMN": True, "LOG": log}
    source = ASTSource(_solve, kinds | dict.fromkeys(fixed, "constexpr"), fixed)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 1})
    assert "ex2.approx" in compiled.asm["ptx"] and len(compiled.asm["cubin"]) > 1000
"""


def clouds(lengths: list[int], seed: int = 0, dim: int = 6, spread: float = 0.3) -> Clouds:
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(len(lengths), max(lengths), dim, generator=generator) * spread
    return points.to(DEVICE), (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).to(DEVICE)


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


def solved(x: Clouds, y: Clouds, dtype: torch.dtype = torch.float32, **options: object) -> list[torch.Tensor]:
    """The divergences and both gradients of a weighted sum of them."""
    points = [side[0].detach().to(dtype).requires_grad_() for side in (x, y)]
    value = sinkhorn_divergence(points[0], x[1], points[1], y[1], **options)
    weights = torch.randn(value.shape, generator=torch.Generator().manual_seed(5)).to(value)
    return [value.detach(), *torch.autograd.grad((value * weights).sum(), points)]


def launches(monkeypatch: pytest.MonkeyPatch, log_domain: bool = True) -> list[dict[str, bool]]:
    """Record the constants of each launch of the kernel, and drop those of the log domain if it is False."""
    from ossicle.losses import sinkhorn_triton

    seen, inner = [], sinkhorn_triton._solve

    class Recorded:
        def __getitem__(self, grid: tuple[int]):
            def launch(*arguments: object, **constants: bool) -> None:
                seen.append(constants)
                if log_domain or not constants["LOG"]:
                    inner[grid](*arguments, **constants)

            return launch

    monkeypatch.setattr(sinkhorn_triton, "_solve", Recorded())
    return seen


@pytest.mark.slow
@installed
@pytest.mark.skipif(DEVICE == "cuda" or INTERPRETED, reason="the tests of the kernel run in this process")
def test_the_interpreter_passes_the_tests_for_a_gpu():
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-rs",
        "-W",
        "ignore::RuntimeWarning",
        "-p",
        "no:cacheprovider",
        "-k",
        "kernel",
        __file__,
    ]
    done = subprocess.run(
        command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SKIPPED" not in done.stdout and done.stdout.count(".") >= 10, done.stdout


@installed
def test_the_code_compiles_for_an_h100():
    subprocess.run([sys.executable, "-c", COMPILE], env=os.environ | {"TRITON_INTERPRET": "0"}, check=True)


# --- the numbers of the kernel ---


@kernel
@pytest.mark.parametrize(("schedule", "limit"), [("sample", 1 << 14), ("pair", 1 << 14), ("sample", 512)])
def test_kernel_and_pytorch_give_the_same_values_and_gradients(
    schedule: str, limit: int, monkeypatch: pytest.MonkeyPatch
):
    from ossicle.losses import sinkhorn_triton

    monkeypatch.setattr(sinkhorn_triton, "MAX_TILE", limit)
    seen = launches(monkeypatch)
    x, y = clouds([1, 33]), clouds([20, 1, 40], 1)
    ours = solved(x, y, schedule=schedule, backend="triton")
    assert {launch["RESIDENT"] for launch in seen} == ({True} if limit > 512 else {True, False})
    for dtype in (torch.float32, torch.float64):
        theirs = solved(x, y, dtype, schedule=schedule, backend="torch")
        assert all(relative(mine, other) < 1e-5 for mine, other in zip(ours, theirs, strict=True))


@kernel
def test_kernel_and_pytorch_give_the_same_loss_of_wide_unit_vectors():
    text, speech = clouds([25, 13], dim=64), clouds([48, 31], 1, dim=64)
    gradients = []
    for backend in ("torch", "triton"):
        heard = (speech[0] + 1.0).requires_grad_()  # a mean that all points share
        loss = info_nce(wasserstein_similarity(*text, heard, speech[1], backend=backend))
        loss.backward()
        gradients.append((loss.detach(), heard.grad))
    assert all(relative(mine, other) < 1e-5 for other, mine in zip(*gradients, strict=True))


@kernel
@pytest.mark.parametrize("limit", [1 << 14, 256])
def test_kernel_solves_a_problem_that_underflows_in_the_log_domain(limit: int, monkeypatch: pytest.MonkeyPatch):
    from ossicle.losses import sinkhorn_triton

    monkeypatch.setattr(sinkhorn_triton, "MAX_TILE", limit)
    near = clouds([12], dim=3, spread=0.1)[0].cpu()
    x = torch.cat([near, near + torch.tensor([40.0, 0.0, 0.0])], 1)  # two far clusters, unevenly filled in y
    y = torch.cat([near[:, :3], near + torch.tensor([0.0, 40.0, 0.0])], 1)
    sides = [(side.to(DEVICE), torch.ones(side.shape[:2], dtype=torch.bool, device=DEVICE)) for side in (x, y)]
    exact = solved(*sides, torch.float64, scaling=0.02)
    ours = solved(*sides, scaling=0.02, backend="triton")
    assert relative(ours[0], exact[0]) < 1e-4  # float32 has no more digits there
    assert all(relative(mine, other) < 1e-2 for mine, other in zip(ours[1:], exact[1:], strict=True))
    launches(monkeypatch, log_domain=False)
    assert solved(*sides, scaling=0.02, backend="triton")[0].isnan().all()


@kernel
def test_kernel_agrees_in_the_log_domain_where_nothing_underflows(monkeypatch: pytest.MonkeyPatch):
    from ossicle.losses import sinkhorn_triton

    if not INTERPRETED:
        pytest.skip("a compiled kernel keeps its constants")
    monkeypatch.setattr(sinkhorn_triton, "MIN_SUM", type(sinkhorn_triton.MIN_SUM)(2.0))  # no sum is good enough
    x, y = clouds([1, 18]), clouds([20, 7], 1)
    pairs = zip(solved(x, y, backend="triton"), solved(x, y, backend="torch"), strict=True)
    assert all(relative(mine, other) < 1e-5 for mine, other in pairs)


@kernel
@pytest.mark.parametrize("spread", [1e-7, 10.0])
def test_kernel_gives_finite_numbers_for_collapsed_and_far_apart_clouds(spread: float):
    x, y = clouds([4, 15, 1], spread=spread), clouds([4, 30], 1, spread=spread)
    y[0][0] = y[0][0, 0]  # one point, many times
    for options in ({}, {"scaling": 0.01}):
        ours, exact = solved(x, y, backend="triton", **options), solved(x, y, torch.float64, **options)
        assert all(part.isfinite().all() for part in ours)
        torch.testing.assert_close(ours[0].double(), exact[0], rtol=2e-3, atol=1e-6)


@kernel
def test_kernel_computes_only_the_plans_that_are_needed(monkeypatch: pytest.MonkeyPatch):
    seen = launches(monkeypatch)
    x, y = clouds([5, 3]), clouds([8, 11], 1)
    (value, _, whole), (x_points, y_points) = solved(x, y, backend="triton"), (x[0], y[0].clone().requires_grad_())
    seen.clear()
    again = sinkhorn_divergence(x_points, x[1], y_points, y[1], backend="triton")
    assert [(launch["BY_ROW"], launch["BY_COLUMN"]) for launch in seen[::2]] == [
        (False, True),  # pairs
        (False, False),  # x with itself
        (True, False),  # y with itself
    ]
    weights = torch.randn(again.shape, generator=torch.Generator().manual_seed(5)).to(again)
    (gradient,) = torch.autograd.grad((again * weights).sum(), y_points)
    assert torch.equal(again.detach(), value) and torch.equal(gradient, whole)


# --- its choice ---


def test_auto_never_takes_a_solver_that_was_not_measured():
    select_solver.cache_clear()
    for device in ("cpu", "cuda"):
        assert not select_solver("auto", device, torch.float32).__name__.endswith("triton")
    assert select_solver("auto", "cuda", torch.float32) is sinkhorn_torch


def test_a_missing_package_a_wrong_type_and_a_cpu_are_refused(monkeypatch: pytest.MonkeyPatch):
    x, y = clouds([5, 3]), clouds([8], 1)
    select_solver.cache_clear()
    with pytest.raises(ConfigError, match=r"the triton solver takes float32 on a GPU, not torch\.float64"):
        sinkhorn_divergence(x[0].double(), x[1], *y, backend="triton")
    with monkeypatch.context() as patch:
        patch.setattr(sinkhorn, "find_spec", lambda name: None)
        with pytest.raises(MissingPackageError, match="pip install triton"):
            sinkhorn_divergence(*x, *y, backend="triton")
    if find_spec("triton") is not None and not INTERPRETED:
        with pytest.raises(ConfigError, match="the triton solver needs a GPU: use backend='torch'"):
            sinkhorn_divergence(x[0].cpu(), x[1].cpu(), y[0].cpu(), y[1].cpu(), backend="triton")


def test_the_other_solvers_import_no_triton():
    code = "import sys, ossicle.losses.sinkhorn as s, torch; s.select_solver('auto', 'cuda', torch.float32)"
    code += "; bad = [name for name in sys.modules if name == 'ossicle.losses.sinkhorn_triton']; assert not bad, bad"
    subprocess.run([sys.executable, "-c", code], check=True)
